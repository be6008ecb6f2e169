"""eval/preference_score ends with the pairs that changed most; its streams say that their scores are a policy's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from nemotron_dpo.streams import open_reader
from support.programs import check, error_line, run


@pytest.mark.slow
def test_the_pairs_that_changed_most_end_the_step(policy: Path, tmp_path: Path) -> None:
    other = shutil.copytree(policy, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    rows = [{"prompt": f"Question {n}?", "chosen": f"Right {n}.", "rejected": "No." * (n + 1)} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"data.path={tmp_path / 'rows.jsonl'}", f"policy.model_name={other}", f"reference.model_name={policy}"]
    done = check("nemotron-steps", "run", "eval/preference_score", *given, cwd=tmp_path)
    (job,) = tmp_path.glob(".nemotron/jobs/*")
    found = json.loads((job / "scores.json").read_text())["changed_most"]
    changes = [one["after"] - one["before"] for one in (*found["improved"], *found["regressed"])]
    assert 1 <= len(changes) <= 8
    assert all(change > 0 for change in changes[: len(found["improved"])])
    assert all(change < 0 for change in changes[len(found["improved"]) :])
    one = (found["improved"] + found["regressed"])[0]
    row = rows[one["line"] - 1]
    assert row["prompt"] in one["prompt"]
    assert (one["chosen"], one["rejected"]) == (f"{row['chosen']}<|im_end|>", f"{row['rejected']}<|im_end|>")
    shown = done.stdout.decode()
    assert "improved most:" in shown or "regressed most:" in shown
    assert f"    chosen: {row['chosen']}<|im_end|>" in shown
    for name, schema, column in [
        ("policy", "policy_scores", "chosen_logps"),
        ("reference", "scored_pairs", "ref_chosen_logps"),
    ]:
        with open_reader(job / f"{name}.arrow", schema) as reader:
            assert column in reader.read_all().schema.names
    _no_run_takes_them_for_a_references(job / "policy.arrow", other, tmp_path)


def _no_run_takes_them_for_a_references(scores: Path, policy: Path, folder: Path) -> None:
    done = run("dpo-train", scores, "--policy", policy, "--run-dir", folder / "run")
    line = f"{scores}: holds policy_scores where scored_pairs is due"
    assert (done.returncode, error_line(done, "dpo-train")[: len(line)]) == (1, line)
