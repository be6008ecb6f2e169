"""Pairs stay in their file, mapped: what is written there while a run goes on is never learned from."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.training.settings import Packing
from support import objective_runs as runs
from support import small

pytestmark = pytest.mark.usefixtures("megatron")


def overwrite(path: Path, content: bytes) -> None:
    """In place, so that it stays the same file."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def test_a_file_that_is_written_to_is_told_from_one_that_is_touched_or_replaced(tmp_path: Path) -> None:
    from nemotron_dpo.training.data import open_pairs

    path = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(6, seed=5))
    other = small.write_pairs(tmp_path / "other.arrow", small.random_pairs(6, seed=5)).read_bytes()
    whole = path.read_bytes()
    pairs, _ = open_pairs(path, scored=False, max_length=64, say=print)
    for touched in range(2):
        os.utime(path, (touched, touched))
        pairs.check_unchanged()
    middle = len(whole) // 2
    for content in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:-8], whole + b"more"):
        overwrite(path, content)
        with pytest.raises(
            UserError, match=r"pairs\.arrow: was written to while it was trained on: give a changed file another"
        ):
            pairs.check_unchanged()
    overwrite(path, whole)
    pairs.check_unchanged()
    (tmp_path / "new").write_bytes(other[:100])
    (tmp_path / "new").rename(path)
    pairs.check_unchanged()  # what is mapped is still what was checked
    path.unlink()
    pairs.check_unchanged()


@pytest.mark.slow
def test_nothing_moves_where_the_pairs_of_a_step_changed_while_it_was_computed(tmp_path: Path) -> None:
    from nemotron_dpo.training.carried import Carried
    from nemotron_dpo.training.step import train_step

    folder = runs.write(tmp_path)
    settings, policy, looks = (
        runs.settings(runs.OBJECTIVES["mixture"], Packing(None, 2), 4),
        runs.open_trainable(folder / "policy"),
        [],
    )

    def check() -> None:
        looks.append(len(looks))
        if len(looks) == 2:
            raise UserError("was written to", source="pairs.arrow")

    pairs = dataclasses.replace(runs.read_pairs(folder), check_unchanged=check)
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    with pytest.raises(UserError, match="was written to"):
        train_step(policy, pairs, settings, 1, Carried(settings.objective))
    assert all(map(torch.equal, before, policy.model.parameters()))
    train_step(policy, pairs, settings, 1, Carried(settings.objective))
    assert not all(map(torch.equal, before, policy.model.parameters()))
