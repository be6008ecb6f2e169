"""env/from_trl: a file of theirs becomes one that our loader reads, or nothing is written and the line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.config import load_run
from nemotron_dpo.config.theirs import Choices
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root, discover, find_config, find_step
from nemotron_dpo.steps.compile.planners import planner_of
from nemotron_dpo.steps.from_trl import write_ours

THEIRS = "model_name_or_path: m\ndataset_name: rows.jsonl\nmax_steps: 12\nlearning_rate: 5e-7\n"


def written(folder: Path, text: str, choices: Choices | None = None, *, force: bool = False) -> list[str]:
    (folder / "theirs.yaml").write_text(text)
    return write_ours(folder / "theirs.yaml", folder / "ours.yaml", choices or Choices(), force=force)


def test_what_is_written_is_read_and_says_what_it_came_from(tmp_path: Path) -> None:
    lines = written(tmp_path, f"{THEIRS}packing: true\nmystery: 1\n", Choices(processes=4))
    run, _ = load_run(tmp_path / "ours.yaml", [])
    assert (run.policy.optimizer.lr, run.dpo.max_num_steps, run.policy.train_global_batch_size) == (5e-7, 12, 32)
    assert run.data.train.path == "rows.jsonl"
    text = (tmp_path / "ours.yaml").read_text()
    assert "    lr: 5.0e-07 # learning_rate: 5e-7\n" in text
    assert "  reference_policy_kl_penalty: 0.1 # TRL's default of beta\n" in text
    assert lines[0] == "warning: mystery is no key of theirs that is known here, and has no effect"
    assert "1 key has no counterpart here (packing); the file says why" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.yaml", "theirs.yaml"]


REFUSED = [
    (f"{THEIRS}load_in_4bit: true\nfp16: true\n", r'theirs.yaml:6: "fp16" is True, .* \(and 1 more: load_in_4bit is True, which'),
    ("model_name_or_path: [m\n", "theirs.yaml:2: is not YAML"),
    ("- a\n", "theirs.yaml: is no mapping of their keys"),
    (f"{THEIRS}beta: -1\n", "theirs.yaml: beta: -1 comes to dpo.reference_policy_kl_penalty here, which is -1"),
    (f"{THEIRS}dtype: auto\ntorch_dtype: float32\n", '"torch_dtype" says otherwise than dtype: set one of them'),
    (f"{THEIRS}output_dir: ${{oc.env:HOME}}\n", "would be filled in by our loader"),
]  # fmt: skip


def test_what_cannot_be_converted_writes_nothing(tmp_path: Path) -> None:
    for text, message in REFUSED:
        with pytest.raises(UserError, match=message):
            written(tmp_path, text)
        assert [path.name for path in tmp_path.iterdir()] == ["theirs.yaml"], text
    written(tmp_path, THEIRS)
    with pytest.raises(UserError, match=r"ours\.yaml: exists already: force=true replaces it"):
        written(tmp_path, THEIRS)
    written(tmp_path, THEIRS.replace("12", "13"), force=True)
    assert load_run(tmp_path / "ours.yaml", [])[0].dpo.max_num_steps == 13
    with pytest.raises(UserError, match=r"theirs\.yaml"):
        write_ours(tmp_path / "theirs.yaml", tmp_path / "theirs.yaml", Choices(), force=True)


def test_a_config_given_with_c_is_theirs(tmp_path: Path) -> None:
    step = find_step("from_trl", discover(configs_root()))
    kind = planner_of(step)
    theirs = tmp_path / "zephyr.yaml"
    theirs.write_text(THEIRS)
    config, warnings = kind.load(theirs, ["processes=2", "ignore=[a,b]"], None, shipped=step.folder)
    assert warnings == []
    plan = kind.compile(config, tmp_path, step.folder)
    assert plan.stages[0].argv[2:] == (
        "nemotron_dpo.steps.from_trl", str(theirs), "-o", "dpo.zephyr.yaml", "--processes", "2", "--ignore", "a", "--ignore", "b",
    )  # fmt: skip
    assert kind.origins(theirs, ["processes=2"], None, shipped=step.folder)["processes"] == "processes=2"
    assert kind.missing(config) == []
    own = kind.load(find_config(step, None), [], None, shipped=step.folder)[0]
    assert kind.missing(own) == ["config is not set: give -c THEIRS.yaml"]
    gone = kind.load(find_config(step, None), ["config=none.yaml"], None, shipped=step.folder)[0]
    assert kind.missing(gone) == ["none.yaml: no such file: it is config"]
