"""Which step of a run is meant: the last, the best by the run's own metric, or a number."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.step_folders import measured, policy_of

LOSS = "val:validation-default_loss"


def make_run(folder: Path, values: dict[int, float | None], metric: str | None = LOSS, higher: str = "false") -> Path:
    """A run whose step_N were measured so, as far as this module reads it."""
    for step, value in values.items():
        step_folder = folder / "checkpoints" / f"step_{step}"
        (step_folder / "policy").mkdir(parents=True)
        (step_folder / "policy" / "latest_checkpointed_iteration.txt").write_text(str(step))
        info = {"total_steps": step} | ({} if value is None else {LOSS: value})
        (step_folder / "training_info.json").write_bytes(orjson.dumps(info))
        ranked = f"  metric_name: {metric or 'null'}\n  higher_is_better: {higher}\n"
        (step_folder / "config.yaml").write_text(f"checkpointing:\n{ranked}")
    return folder


@pytest.mark.parametrize("name", ["config.yaml", "training_info.json", "resume.json"])
def test_a_pipe_in_a_step_is_refused(tmp_path: Path, name: str):
    run = make_run(tmp_path / "run", {1: 0.3})
    path = run / "checkpoints" / "step_1" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{name}: is no regular file"):
        policy_of(run, "best")


def test_a_step_is_the_last_the_best_or_a_number(tmp_path: Path):
    run = make_run(tmp_path / "job" / "run", {9: 0.3, 20: 0.5, 100: 0.4, 110: None})
    (tmp_path / "job" / "job.yaml").touch()
    for place in (tmp_path / "job", run, run / "checkpoints"):
        for which, step in {"last": 110, "best": 9, "20": 20, "100": 100}.items():
            assert policy_of(place, which) == run / "checkpoints" / f"step_{step}" / "policy", (place, which)
    assert policy_of(run / "checkpoints" / "step_20", "last") == run / "checkpoints" / "step_20" / "policy"
    assert policy_of(run / "checkpoints" / "step_20", "20") == run / "checkpoints" / "step_20" / "policy"
    assert policy_of(tmp_path / "job" / "elsewhere", "last") is None


def test_of_equals_the_newest_is_the_best_and_higher_may_be_better(tmp_path: Path):
    assert policy_of(make_run(tmp_path / "a", {10: 0.5, 20: 0.5, 30: 0.7}), "best") == tmp_path / "a/checkpoints/step_20/policy"
    higher = make_run(tmp_path / "b", {10: 0.5, 20: 0.9, 30: 0.7}, higher="true")
    assert policy_of(higher, "best") == higher / "checkpoints" / "step_20" / "policy"


@pytest.mark.parametrize(
    ("values", "metric", "which", "message"),
    [
        ({10: 0.1, 20: 0.2}, LOSS, "30", "has no checkpoint of step 30: there are those of 10, 20"),
        ({10: 0.1, 20: 0.2}, None, "best", "no step is the best: checkpointing.metric_name is null"),
        ({10: None}, LOSS, "best", f"no step is the best: none was measured by {LOSS}"),
    ],
)
def test_a_step_that_is_not_there_is_said(tmp_path: Path, values: dict, metric: str | None, which: str, message: str):
    with pytest.raises(UserError, match=message):
        policy_of(make_run(tmp_path, values, metric), which)


def test_a_step_folder_is_no_other_step(tmp_path: Path):
    run = make_run(tmp_path, {10: 0.1, 20: 0.2})
    for which in ("best", "20"):
        with pytest.raises(UserError, match=f"is one step of a run, and not step {which}: name the run"):
            policy_of(run / "checkpoints" / "step_10", which)


def test_records_that_cannot_be_read_name_their_file(tmp_path: Path):
    run = make_run(tmp_path, {10: 0.1, 20: 0.2})
    (run / "checkpoints" / "step_20" / "config.yaml").write_text("[")
    with pytest.raises(UserError, match=r"step_20/config\.yaml: does not say by what the run ranks its steps"):
        policy_of(run, "best")


def test_what_is_not_as_it_was_saved_ranks_no_step(tmp_path: Path):
    """A digit of a metric that turned into another one is still a number: resume.json has the digests."""
    run = make_run(tmp_path, {10: 0.1, 20: 0.2})
    for name, damaged, what in (
        ("training_info.json", b"0.9", r"training_info\.json: is damaged"),
        ("config.yaml", b"higher_is_better: true", r"config\.yaml: is not what was saved with step_20: .* copy it again"),
    ):
        folder = run / "checkpoints" / "step_20"
        content = (folder / name).read_bytes()
        digests = {"files": {name: hashlib.sha256(content).hexdigest()}}
        (folder / "resume.json").write_bytes(orjson.dumps(digests))
        assert policy_of(run, "best") == run / "checkpoints" / "step_10" / "policy"
        (folder / name).write_bytes(content.replace(b"0.2", damaged).replace(b"higher_is_better: false", damaged))
        with pytest.raises(UserError, match=what):
            policy_of(run, "best")
        (folder / name).write_bytes(content)


def test_numbers_that_are_none_are_damage(tmp_path: Path):
    (tmp_path / "step_10").mkdir()
    for text in ("1" + "0" * 400, "[" * 100_000, '"x"', "[]", "{}"):
        (tmp_path / "step_10" / "training_info.json").write_text('{"loss": ' + text + "}")
        with pytest.raises(UserError, match=r"training_info\.json: is damaged"):
            measured(tmp_path / "step_10")
