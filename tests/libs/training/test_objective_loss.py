"""What an objective is given of a packed row, and what is refused before anything is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.inputs import LossInputs
from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.objective.losses.sft import Sft
from nemotron_dpo.objective.protocol import FirstReading, Needs, PairLosses
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import TOKENIZED_PAIRS
from nemotron_dpo.training.batches import micro_batches
from nemotron_dpo.training.objective_loss import check_needs, loss_of
from nemotron_dpo.training.resume import digest
from nemotron_dpo.training.settings import Packing


@dataclass(frozen=True)
class Asking:
    """An objective that only has needs."""

    needs: Needs

    @property
    def terms(self) -> dict[str, FirstReading | None]:
        return {}

    def losses(self, pairs: object) -> PairLosses:
        raise NotImplementedError


def test_needs_that_training_does_not_meet_are_refused() -> None:
    values = frozenset({"entropy", "is_most_probable", "log_sum_squares"})
    everything = Needs(True, True, values, row_rewards=True, whole_batch=True, state=True, tails=True, ordered_rewards=True)
    for objective in (Dpo(0.1), Sft(), Asking(Needs()), Asking(everything)):
        check_needs(objective)
    for needs in (
        Needs(token_values=frozenset({"entropy", "margin"})),
        Needs(reference=True, token_values=frozenset({"margin"})),
    ):
        with pytest.raises(UserError, match="the objective needs margin of each token, and training gives entropy, is_most"):
            check_needs(Asking(needs))


def pairs_of(rewards: list[tuple[float | None, float | None]]) -> Pairs:
    """Pairs with a prompt of one token and responses of two and one, and those rewards."""
    ids = {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": [8]}
    cut = {"chosen_truncated": False, "rejected_truncated": False}
    rows = [
        {"pair_id": bytes(16), "source_line": line, **ids, **cut, "chosen_reward": chosen, "rejected_reward": rejected}
        for line, (chosen, rejected) in enumerate(rewards, 1)
    ]
    return Pairs.of(pa.RecordBatch.from_pylist(rows, schema=TOKENIZED_PAIRS))


@dataclass(frozen=True)
class Gap:
    """An objective whose loss is the difference of the rows' rewards."""

    @property
    def needs(self) -> Needs:
        return Needs(row_rewards=True)

    @property
    def terms(self) -> dict[str, FirstReading | None]:
        return {"gap": None}

    def losses(self, pairs: LossInputs) -> PairLosses:
        gap = pairs.chosen.row_reward - pairs.rejected.row_reward + 0 * pairs.chosen.logp
        return PairLosses(gap, {"gap": gap})


@pytest.mark.usefixtures("megatron")
def test_an_objective_gets_the_rewards_of_its_rows_and_of_no_others() -> None:
    """Rows 4, 1 and 2 of four, in two micro batches; a third without pairs, which ranks in step need, has a loss of 0."""
    pairs = pairs_of([(9.0, 9.0), (1.5, 0.5), (0.25, -0.75), (-2.0, 4.0)])
    batches = micro_batches(pairs, [3, 1, 2], Packing(12, 1))
    batches.append(replace(batches[0], row=pack_row([], [], []), row_rewards_P2=None, pairs=()))
    sums = [loss_of(Gap())(batch, torch.zeros(len(batch.row.targets_R)))[0].item() for batch in batches]
    expected = {3: -6.0, 1: 1.0, 2: 1.0}
    assert sums == [sum(expected[row] for row in batch.pairs) for batch in batches]
    assert sorted(row for batch in batches for row in batch.pairs) == [1, 2, 3]


@pytest.mark.usefixtures("megatron")
def test_rewards_are_not_carried_where_there_are_none() -> None:
    (batch,) = micro_batches(pairs_of([(None, None), (None, None)]), [0, 1], Packing(99, 1))
    assert batch.row_rewards_P2 is None
    (batch,) = micro_batches(pairs_of([(None, None), (2.0, None)]), [1, 0], Packing(99, 1))
    assert batch.row_rewards_P2 is not None
    assert str(batch.row_rewards_P2.tolist()) == "[[2.0, nan], [nan, nan]]"


def test_only_rewards_that_are_used_make_other_data() -> None:
    """Otherwise a run over data without rewards would not be resumed after an update of the program."""
    with_them, without, others = pairs_of([(1.0, 2.0)]), pairs_of([(None, None)]), pairs_of([(2.0, 1.0)])
    assert digest(with_them) == digest(without) == digest(others)
    assert len({digest(pairs, with_rewards=True) for pairs in (with_them, without, others)} | {digest(without)}) == 4
