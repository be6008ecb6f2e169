"""What a validation set has of its own in place of the val_ keys of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.config import DpoConfig, dump_run, load_run, of_val_set
from nemotron_dpo.config.dpo import ValSetConfig
from nemotron_dpo.config.identity import identity
from nemotron_dpo.errors import UserError

SETS = "data.val_data_paths={hard: h.jsonl, easy: e.jsonl}"


def test_a_set_has_what_it_names_and_the_rest_of_all(tmp_path: Path) -> None:
    overrides = [SETS, "dpo.val_sets.hard.val_period=10", "dpo.val_sets.hard.val_at_end=false", "dpo.val_batches=3"]
    run = load_run(None, overrides)[0]
    rest = {"val_batches": 3, "val_global_batch_size": 8, "val_at_start": True}
    assert of_val_set(run.dpo, "hard") == {**rest, "val_period": 10, "val_at_end": False}
    assert of_val_set(run.dpo, "easy") == {**rest, "val_period": 50, "val_at_end": True}
    assert of_val_set(DpoConfig(val_sets={"x": ValSetConfig(val_period=0, val_batches=0)}), "x")["val_period"] == 0
    (tmp_path / "run.yaml").write_text(dump_run(run))
    assert load_run(tmp_path / "run.yaml", [])[0] == run


def test_what_cannot_be_meant_is_one_line() -> None:
    for override, line in {
        "dpo.val_sets.herd.val_period=1": '"dpo.val_sets.herd" is of no validation set: there are hard, easy',
        "dpo.val_sets.hard.val_perod=1": '"dpo.val_sets.hard.val_perod" is no known key: the keys there are val_period, '
        "val_batches, val_global_batch_size, val_at_start, val_at_end",
        "dpo.val_sets.hard.val_global_batch_size=0": '"dpo.val_sets.hard.val_global_batch_size" is 0 where at least 1 is due',
        "dpo.val_sets.hard=7": '"dpo.val_sets.hard" is 7 where a mapping is due',
        "dpo.max_num_steps=-1": '"dpo.max_num_steps" is -1 where at least 0 is due',
    }.items():
        with pytest.raises(UserError) as caught:
            load_run(None, [SETS, override])
        assert str(caught.value) == f"{override}: {line}"
    with pytest.raises(UserError, match="is 0, which validates and trains nothing, and there is no validation set"):
        load_run(None, ["dpo.max_num_steps=0"])


def test_sets_that_are_never_looked_at_are_said() -> None:
    """And none is where nothing is trained, which looks at all of them; nor is all of such a run warm-up."""
    never = ["dpo.val_period=0", "dpo.val_at_start=false", "dpo.val_at_end=false", "checkpointing.metric_name=null"]
    warm_up = "policy.scheduler.warmup_steps=1000"
    for overrides, ends in (
        ([warm_up], ["no more than 500 steps: all of it is warm-up", "val_at_end: nothing is ever validated"]),
        (["dpo.val_sets.hard.val_period=5"], ["with neither val_at_start nor val_at_end: easy is never validated"]),
        (["dpo.val_sets.hard.val_period=5", "dpo.val_sets.easy.val_at_start=true"], []),
        (["dpo.max_num_steps=0", warm_up], []),
    ):
        said = [str(line) for line in load_run(None, [SETS, *never, *overrides])[1]]
        assert len(said) == len(ends), said
        assert all(line.endswith(end) for line, end in zip(said, ends, strict=True)), said


def test_a_set_is_ranked_by_where_it_is_looked_at_after_a_step() -> None:
    rank = [SETS, "dpo.val_period=0", "dpo.val_at_end=false", "checkpointing.metric_name=val:validation-hard_loss"]
    with pytest.raises(UserError, match="of a validation that never runs while training"):
        load_run(None, [*rank, "dpo.val_sets.easy.val_period=5"])
    load_run(None, [*rank, "dpo.val_sets.hard.val_period=5"])


def test_a_run_that_was_saved_before_there_were_any_goes_on_without_a_word() -> None:
    free = identity(load_run(None, [SETS])[0], has_routers=False)[1]
    assert free["dpo.val_sets"] is None
    changed = identity(load_run(None, [SETS, "dpo.val_sets.easy.val_batches=2"])[0], has_routers=False)[1]
    own = {"val_period": None, "val_batches": 2, "val_global_batch_size": None, "val_at_start": None, "val_at_end": None}
    assert changed["dpo.val_sets"] == {"easy": own}
