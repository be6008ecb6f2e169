"""Longer training goes on from shorter training of the same settings, and from nothing else."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron_dpo.config import load_run
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile import beginnings, job_record, stage_cache
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.dpo_plan import compile_plan
from nemotron_dpo.steps.compile.stage_choice import StageChoice, StageDecision, decide
from nemotron_dpo.steps.compile.stages import Input, Length, Plan, Stage

OPTIMIZER, NONE = True, False


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _decision(job: str, steps: int, settings: str = "lr: 1", epochs: int = 1, *, force: bool = False) -> StageDecision:
    """What happens to training of that length in the job of that name."""
    folder = stage_cache.JOBS / job
    config = folder / "train.yaml"
    length = Length(steps, epochs, settings)
    stage = Stage("dpo-train", ("true", str(config)), outputs=(folder / "run",), resumes=True, length=length)
    stage = replace(stage, inputs={str(config): Input("file", str(config))})
    files = {"train.yaml": f"{settings} steps {steps} epochs {epochs}"}
    plan = Plan(folder, folder / "run", None, files, None, (stage,))
    (decision,) = decide(plan, [StageChoice(stage, is_forced=force)], Digests(stage_cache.DIGESTS), {})
    return decision


def _train(decision: StageDecision, step: int, *, optimizer: bool = OPTIMIZER, status: str = "done", ends: bool = True) -> None:
    """Leave what training that came to `step` leaves, noted as the local executor notes it."""
    assert decision.family is not None
    assert decision.key is not None
    (folder,) = decision.stage.outputs
    (folder / "checkpoints" / f"step_{step}" / ("optimizer" if optimizer else "policy")).mkdir(parents=True)
    facts = {"status": status, "pid": os.getpid(), "host": socket.gethostname()}
    (folder / "run.json").write_text(json.dumps(facts))
    beginnings.note(decision.family, decision.key, decision.stage)
    if ends:
        stage_cache.record(decision.key, "dpo-train", [folder])


def test_a_longer_run_goes_on_and_what_it_makes_is_up_to_date_under_a_key_of_its_own() -> None:
    short = _decision("a", 10)
    _train(short, 10)
    longer = _decision("b", 20)
    assert longer.goes_on_from is not None
    assert (longer.goes_on_from.folder, longer.goes_on_from.step) == (".nemotron/jobs/a/run", 10)
    fresh = _decision("b", 20, force=True)
    assert (fresh.entry, fresh.beginning, fresh.family) == (None, None, short.family)
    assert len({short.key, longer.key, fresh.key}) == 3
    _train(longer, 20)
    again = _decision("c", 20)
    assert again.entry is not None
    assert again.entry.places == (Path(".nemotron/jobs/b/run"),)
    assert again.key == longer.key
    _train(fresh, 21)  # what was trained from the first step is what was asked for, where there are both
    assert _decision("d", 20).key == fresh.key
    assert _decision("e", 10).key == short.key


# (settings, epochs and steps of the longer run, what the shorter one left) -> the step that it goes on from
LEFT = [
    (("lr: 1", 1, 20), {}, 10),
    (("lr: 1", 2, 10), {}, 10),
    (("lr: 1", 1, 20), {"status": "running"}, None),  # it may still be writing
    (("lr: 1", 1, 20), {"status": "stopped", "ends": False, "step": 7}, 7),
    (("lr: 2", 1, 20), {}, None),
    (("lr: 1", 1, 9), {}, None),
    (("lr: 1", 1, 20), {"optimizer": NONE}, None),
]


def test_what_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, ((settings, epochs, steps), left, step) in enumerate(LEFT):
        (tmp_path / str(n)).mkdir()
        monkeypatch.chdir(tmp_path / str(n))
        _train(_decision("a", 10), **{"step": 10, **left})
        found = _decision("b", steps, settings, epochs).goes_on_from
        assert (None if found is None else found.step) == step, (settings, epochs, steps, left)


def test_what_cannot_be_gone_on_from_is_said() -> None:
    _train(_decision("a", 10), 10, optimizer=NONE)
    decision = _decision("b", 20)
    assert decision.goes_on_from is None
    assert decision.how_it_goes_on == (
        "starts at its first step: .nemotron/jobs/a/run has 10 of these steps without an optimizer's state; "
        "with checkpointing.save_optimizer=true a longer run goes on from a shorter one"
    )
    title, line = job_record.decision_line(decision)
    assert title.startswith("dpo-train: starts at its first step")
    assert not line.startswith("cp ")
    _train(_decision("c", 5), 5)  # it got less far, and can be gone on from
    title, line = job_record.decision_line(_decision("b", 20))
    assert title.startswith("dpo-train: goes on from step 5 of .nemotron/jobs/c/run")
    assert line.splitlines()[0] == "cp -r .nemotron/jobs/c/run .nemotron/jobs/b/run"


def test_folders_outside_of_jobs_and_damaged_notes_are_not_believed(tmp_path: Path) -> None:
    short = _decision("a", 10)
    _train(short, 10)
    file = stage_cache.CACHE / f"{short.family}.lengths"
    noted = json.loads(file.read_text())
    (tmp_path / ".nemotron" / "jobs" / "a").rename(tmp_path / "elsewhere")
    for text in (json.dumps([{**noted[0], "folder": "elsewhere/run"}]), "[{", '[{"folder": 1}]', "[1]", "{}"):
        file.write_text(text)
        assert _decision("b", 20).beginning is None, text


def test_the_family_of_dpo_is_all_but_its_length_and_what_is_saved_and_logged() -> None:
    step = configs_root() / "rl" / "nemo_rl" / "dpo"
    base = ["policy.model_name=m", "data.train.path=t.jsonl"]

    def length(*overrides: str) -> Length | None:
        run, _ = load_run(step / "default.yaml", [*base, *overrides])
        return next(s for s in compile_plan(run, Path("job"), step).stages if s.name == "dpo-train").length

    plain = length()
    assert plain is not None
    assert (plain.num_steps, plain.num_epochs) == (500, 1)
    for same in ("dpo.max_num_steps=7", "dpo.max_num_epochs=2", "checkpointing.save_optimizer=true", "logger.log_dir=x"):
        other = length(same)
        assert getattr(other, "settings", None) == plain.settings, same
    for different in ("policy.optimizer.lr=1", "dpo.seed=1", "checkpointing.pretrained_checkpoint.path=c", "dpo.val_period=7"):
        other = length(different)
        assert getattr(other, "settings", plain.settings) != plain.settings, different
    for without in ("checkpointing.enabled=false", "checkpointing.checkpoint_dir=x"):
        assert length(without) is None, without
