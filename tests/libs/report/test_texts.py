"""Texts of pairs, by the run's own tokenizer, and the change of their tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nemotron_dpo.report.run_folder import open_run
from nemotron_dpo.report.texts import PROMPT_CHARACTERS, RESPONSE_CHARACTERS, texts
from support.report_runs import SETTINGS, pair_id, usual_rows, write_run, write_texts
from support.small_tokenizers import byte_level

WANTED = {pair_id(0), pair_id(1), pair_id(9)}


def test_texts_and_changes(tmp_path: Path) -> None:
    """Tokens of bytes that make one character together are one piece, whose change is their sum."""
    run = write_run(tmp_path / "run", usual_rows(), settings=[*SETTINGS, "--validation", "scored.arrow"])
    said = [("user: \u4e2d?", "caf\u00e9 \U0001f600", "no\x07"), ("p" * 9000, "x " * 5000, "a\u202eb")]
    after = write_texts(run, said, shift=0.25)
    found = texts(open_run(run), "validation-default", WANTED, after)
    assert found.remarks == ("1 of these pairs are not in scored.arrow.",)
    first, second = found.by_id[pair_id(0)], found.by_id[pair_id(1)]
    assert (first.prompt, first.chosen, first.rejected) == ("user: \u4e2d?", "caf\u00e9 \U0001f600", "no<U+0007>")
    assert "".join(token.text for token in first.chosen_tokens) == first.chosen
    changes = {token.text.strip(): token.change for token in first.chosen_tokens}
    assert changes["\U0001f600"] == pytest.approx(4 * 0.25)  # four bytes, none of which is a letter of the training text
    assert all(token.change < 0 for token in first.rejected_tokens)
    count = {
        side: len(byte_level().encode(text, add_special_tokens=False).ids) for side, text in zip("pc", said[1][:2], strict=True)
    }
    assert second.prompt == f"[the end of {count['p']:,} tokens] ... {'p' * PROMPT_CHARACTERS}"
    assert second.chosen == f"{'x ' * (RESPONSE_CHARACTERS // 2)} ... [the beginning of {count['c']:,} tokens]"
    assert second.chosen_tokens[-1].text == f" ... [the beginning of {count['c']:,} tokens]"
    assert second.rejected == "a<U+202E>b"


def test_without_scores_there_is_no_change_and_without_a_stream_no_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", usual_rows(), settings=[*SETTINGS, "--validation", "scored.arrow"])
    write_texts(run, [("p", "c", "r")])
    bare = texts(open_run(run), "validation-default", {pair_id(0)}, None)
    assert bare.by_id[pair_id(0)].chosen_tokens == ()
    assert texts(open_run(run), "validation-other", {pair_id(0)}, None).by_id == {}
    for path in (run / "checkpoints").rglob("tokenizer.json"):
        path.unlink()
    (remark,) = texts(open_run(run), "validation-default", {pair_id(0)}, None).remarks
    assert remark == "The texts of these pairs are not shown: no tokenizer.json lies where the run found it."


def test_the_tokenizer_is_of_the_last_step_whatever_the_clock_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", usual_rows(), settings=[*SETTINGS, "--validation", "scored.arrow"])
    write_texts(run, [("p", "c", "r")])
    (known,) = (run / "checkpoints").rglob("tokenizer.json")
    for step, content in ((9, "damaged"), (10, known.read_text())):
        policy = run / "checkpoints" / f"step_{step}" / "policy"
        policy.mkdir(parents=True)
        (policy / "tokenizer.json").write_text(content)
    os.utime(run / "checkpoints" / "step_10" / "policy", (1e9, 1e9))
    assert texts(open_run(run), "validation-default", {pair_id(0)}, None).by_id[pair_id(0)].chosen == "c"


def test_streams_are_found_where_the_command_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", usual_rows(), settings=["--validation", "hard=held.arrow", "--validation", "other.arrow"])
    assert open_run(run).streams() == {}
    for name in ("scored", "held", "other"):
        (tmp_path / f"{name}.arrow").write_bytes(b"")
    wanted = {"train": "scored", "validation-hard": "held", "validation-default": "other"}
    assert open_run(run).streams() == {split: tmp_path / f"{name}.arrow" for split, name in wanted.items()}
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "folder": "a" * 6000}))  # no system has it: the report does without
    assert open_run(run).streams() == {}
    (run / "run.json").unlink()  # lost, or of an earlier version
    assert open_run(run).streams() == {}
