"""A run that is resumed goes on with the state of its objective as if nothing had happened, and a validation leaves it alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nemotron_dpo.training.settings import LoopSettings, Packing, ValidationSettings
from support import objective_runs as runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write(tmp_path_factory.mktemp("objectives"))


def run(folder: Path, settings: LoopSettings, checkpoints: Path, resumed_from: Path | None = None) -> list[dict]:
    """Train to the last step and return all records, each with its step."""
    from nemotron_dpo.checkpoint import optimizer_state
    from nemotron_dpo.training import loop
    from nemotron_dpo.training.carried import Carried, goes_on
    from nemotron_dpo.training.record import TrainingInfo
    from nemotron_dpo.training.resume import Identity, ResumeState
    from nemotron_dpo.training.saving import Checkpoints
    from nemotron_dpo.training.stopping import Stop

    pairs, state = runs.read_pairs(folder), ResumeState.read(resumed_from) if resumed_from else None
    policy = runs.open_trainable(state.policy.path if state else folder / "policy")
    carried, info = Carried(settings.objective), TrainingInfo(len(pairs) // runs.BATCH, runs.BATCH)
    if state:
        optimizer_state.load(policy, state.optimizer)
        carried, info = goes_on(settings.objective, state.totals, state.folder), dataclasses.replace(info, totals=state.totals)
    saved, kept, done = Checkpoints(checkpoints, "a: 1\n", Identity("data", "policy")), [], state.step if state else 0

    def save(step: int) -> bool:
        saved.save(step, policy, info)
        return False  # how long it took is no number that repeats

    for record in loop.records(policy, pairs, {"same": pairs}, settings, save, stop=Stop(), carried=carried, done=done):
        info.add(record)
        kept.append({"step": record.step, **runs.repeatable(record)})
    return kept


@pytest.mark.parametrize("name", ["mixture", "shifted"])
def test_a_resumed_run_has_the_numbers_of_one_that_was_never_ended(name: str, folder: Path, tmp_path: Path) -> None:
    """TRL lost the running mean of BCO with every restart until PR 1869."""
    settings = dataclasses.replace(runs.settings(runs.OBJECTIVES[name], Packing(None, 2), 4), save_period=2)
    whole = run(folder, settings, tmp_path / "whole")
    after_two = run(folder, settings, tmp_path / "resumed", tmp_path / "whole" / "step_2")
    assert after_two == [record for record in whole if record["step"] > 2]
    states = [{key: value for key, value in record.items() if key.startswith("train/state/")} for record in whole]
    seen = [state for state in states if state]
    assert len(seen) == 4
    assert seen[1] != seen[2]


def test_a_validation_moves_no_state(folder: Path, tmp_path: Path) -> None:
    """TRL's BCO moved its mean by what it evaluated until PR 2867."""
    often = runs.settings(runs.OBJECTIVES["beta_dpo"], Packing(None, 2))
    never = dataclasses.replace(often, validation=ValidationSettings(at_start=False, at_end=False))
    with_validations, without = (run(folder, settings, tmp_path / "run") for settings in (often, never))
    assert [record for record in with_validations if "train/loss" in record] == without
