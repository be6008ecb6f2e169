"""Loss, metrics, state and gradients of every kind of objective do not depend on how the global batch is computed.

Legend: B pairs of a global batch.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.inputs import LossInputs, Responses, Tails
from nemotron_dpo.objective.protocol import FirstReading, Needs, Objective, PairLosses
from nemotron_dpo.objective.registry import make
from nemotron_dpo.objective.weighted_sum import after
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices
from nemotron_dpo.training import whole_batch
from nemotron_dpo.training.settings import Packing
from support import objective_runs as runs
from support import small
from support.programs import execute_job

pytestmark = pytest.mark.slow
Records = list[dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write(tmp_path_factory.mktemp("objectives"))


@pytest.fixture(scope="module")
def one_row(folder: Path, megatron: None) -> dict[str, Records]:
    """The records of one process whose global batch is one row."""
    return {name: list(runs.records(folder, one, Packing(None, runs.BATCH))) for name, one in runs.OBJECTIVES.items()}


def assert_same(found: Records, expected: Records, name: str, bound: float = 1e-5) -> None:
    assert len(found) == len(expected) == 2 * runs.STEPS + 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=bound, abs=bound), (name, key)


@pytest.mark.parametrize("packing", [Packing(None, 1), Packing(128)], ids=["one", "packed"])
def test_neither_micro_batches_nor_packing_move_a_number(packing: Packing, folder: Path, one_row: dict[str, Records]) -> None:
    for name, objective in runs.OBJECTIVES.items():
        assert_same(list(runs.records(folder, objective, packing)), one_row[name], name)


@dataclass(frozen=True)
class Local:
    """What `objective` would be if it were given the pairs of a micro batch alone."""

    objective: Objective

    @property
    def needs(self) -> Needs:
        return replace(self.objective.needs, whole_batch=False)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        return self.objective.terms

    def losses(self, pairs: LossInputs) -> PairLosses:
        return self.objective.losses(pairs)


def test_by_micro_batches_alone_the_numbers_would_move(folder: Path, one_row: dict[str, Records]) -> None:
    """As TRL's AOT does: so the pairs of these tests can show it."""
    local = list(runs.records(folder, Local(runs.OBJECTIVES["aot"]), Packing(None, 2)))
    assert abs(local[1]["train/loss"] / one_row["aot"][1]["train/loss"] - 1) > 0.01


LAYOUTS = [
    (2, {}, 2),
    (2, {"tensor": 2}, 2),
    (2, {"pipeline": 2}, 1),
    (2, {"context": 2}, 2),
]


@pytest.mark.multiprocess
@pytest.mark.parametrize(("processes", "layout", "pairs_per_row"), LAYOUTS, ids=["dp2", "tp2", "pp2", "cp2"])
def test_no_layout_moves_a_number(
    processes: int, layout: dict[str, int], pairs_per_row: int, folder: Path, one_row: dict[str, Records]
) -> None:
    argv = [sys.executable, runs.__file__, str(folder), json.dumps(layout), str(pairs_per_row)]
    done = execute_job(processes, argv)
    assert done.returncode == 0, done.stderr.decode()
    curves = orjson.loads(done.stdout)
    for name in runs.DIVIDED:
        assert_same(curves[name], one_row[name], name)


def test_a_step_is_that_of_transformers_and_autograd(folder: Path, one_row: dict[str, Records]) -> None:
    """Loss, gradient norm and state of step 1, from plain forward passes over each response and one backward pass."""
    model, pairs = small.load_llama(folder / "policy"), runs.read_pairs(folder)
    rows = batch_indices(0, len(pairs), runs.BATCH, seed=42, shuffle=True).tolist()
    batch_B = LossInputs(_responses(model, pairs, rows, "chosen"), _responses(model, pairs, rows, "rejected"))
    for name, objective in runs.OBJECTIVES.items():
        objective = after(objective, batch_B) if objective.needs.whole_batch else objective
        model.zero_grad()
        loss = objective.losses(batch_B).loss.mean()
        loss.backward(retain_graph=True)
        norm = torch.stack([w.grad.norm() for w in model.parameters() if w.grad is not None]).norm().item()
        step = next(record for record in one_row[name] if "train/loss" in record)
        assert step["train/loss"] == pytest.approx(loss.item(), rel=1e-5), name
        assert step["train/grad_norm"] == pytest.approx(norm, rel=1e-4), name
        watched = {key: value for key, value in step.items() if re.fullmatch("train/log_ratio_.*_mean", key)}
        means = {side: getattr(batch_B, side).log_ratio.mean().item() for side in ("chosen", "rejected")}
        expected = {} if objective.needs.reference else {f"train/log_ratio_{side}_mean": means[side] for side in means}
        assert watched == pytest.approx(expected, rel=1e-5), name
        assert _of_pairs(step) == pytest.approx(_of_pairs_expected(batch_B, objective), rel=1e-4, abs=1e-6), name
        assert _each(step) == pytest.approx(_each_expected(rows, batch_B, objective), rel=1e-4, abs=1e-5), name


OF_PAIRS = r"train/(logps_.*_mean|rewards_margin_mean|kl_.*|.*_per_token)"


def _of_pairs(step: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in step.items() if re.fullmatch(OF_PAIRS, key)}


def _of_pairs_expected(batch_B: LossInputs, objective: Objective) -> dict[str, float]:
    """Means over pairs, and over all response tokens of a side; the KL of a token is half the square of its log-ratio."""
    rewards = objective.losses(batch_B).rewards
    assert rewards is not None
    found = {"rewards_margin_mean": (rewards.chosen - rewards.rejected).mean()}
    for name, side in (("chosen", batch_B.chosen), ("rejected", batch_B.rejected)):
        tokens = side.num_tokens.sum()
        found[f"logps_{name}_mean"] = side.logp.mean()
        found[f"log_ratio_{name}_per_token"] = side.log_ratio.sum() / tokens
        found[f"kl_{name}"] = (side.token_means["half_square"] * side.num_tokens).sum() / tokens
    return {f"train/{name}": value.item() for name, value in found.items()}


def _each(step: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in step.items() if key.startswith("pair ")}


def _each_expected(rows: list[int], batch_B: LossInputs, objective: Objective) -> dict[str, float]:
    """What is to be known of each pair: its preference loss is without its weight, and the whole loss where it has other terms."""
    losses, sides = objective.losses(batch_B), {"chosen": batch_B.chosen, "rejected": batch_B.rejected}
    assert losses.rewards is not None
    columns = {
        "row": torch.tensor(rows),
        **{f"{name}_logp": side.logp for name, side in sides.items()},
        **{f"{name}_log_ratio": side.log_ratio for name, side in sides.items()},
        **{f"{name}_kl": side.token_means["half_square"] for name, side in sides.items()},
        "margin": losses.rewards.chosen - losses.rewards.rejected,
        "loss": losses.terms.get("preference", losses.loss),
    }
    return {f"pair {place} {name}": value for name, values in columns.items() for place, value in enumerate(values.tolist())}


def test_a_validation_goes_by_groups_of_its_own_order(folder: Path, one_row: dict[str, Records]) -> None:
    """Of 14 pairs in groups of 4: the last has two. A group is given what a global batch would be, and no state moves."""
    model, pairs = small.load_llama(folder / "policy"), runs.read_pairs(folder)
    starts = range(0, len(pairs), runs.GROUP)
    groups = [list(range(start, min(start + runs.GROUP, len(pairs)))) for start in starts]
    inputs = [
        LossInputs(_responses(model, pairs, rows, "chosen"), _responses(model, pairs, rows, "rejected")) for rows in groups
    ]
    for name in ("aot", "beta_dpo", "bco", "mixture", "dpo"):
        with torch.no_grad():
            total = sum(runs.OBJECTIVES[name].losses(group).loss.sum().item() for group in inputs)
        assert one_row[name][0]["validation-same/loss"] == pytest.approx(total / len(pairs), rel=1e-5), name


def test_each_objective_has_its_own_gate_at_step_1(folder: Path, tmp_path: Path) -> None:
    """A reference that is the policy passes, and any other is refused by the first term that it shows in."""
    model, pairs = small.load_llama(folder / "policy"), runs.read_pairs(folder)
    scores = [
        [small.reference_logps(model, pairs.prompt[row], side[row]).detach().numpy() for row in range(len(pairs))]
        for side in (pairs.chosen, pairs.rejected)
    ]
    runs.write(tmp_path, scores)
    gated = {name: runs.OBJECTIVES[name] for name in ("aot", "beta_dpo", "bco", "mixture", "shortened")}
    gated |= {name: make(name, beta=0.01) for name in ("ipo", "sppo_hard")}
    for name, objective in gated.items():
        settings = replace(runs.settings(objective, Packing(None, 2), 1), gate_precision="float32")
        (first,) = (one for one in runs.records_of(tmp_path, settings) if "train/loss" in one)
        for term, reading in objective.terms.items():
            if reading is not None:
                assert first[f"train/{term}_loss"] == pytest.approx(reading.value, rel=1e-4), (name, term)
        with pytest.raises(UserError, match=r"loss at step 1 is .* where the reference's own policy gives "):
            list(runs.records_of(folder, settings))


def test_pairs_whose_own_numbers_are_not_finite_are_blamed_and_no_others() -> None:
    """One pair of 0 * inf makes the mean of a batch, and so every loss, NaN."""
    logp, count = torch.tensor([-1.0, math.nan, -3.0]), torch.ones(3)
    fine, broken = Responses(logp.nan_to_num(-2.0), count), Responses(logp, count)
    losses, one = PairLosses(torch.full((3,), math.nan), {}), PairLosses(torch.tensor([0.0, 1.0, math.inf]), {})
    assert whole_batch.not_finite(LossInputs(fine, broken), losses) == [1]
    assert whole_batch.not_finite(LossInputs(fine, fine), losses) == [0, 1, 2]
    assert whole_batch.not_finite(LossInputs(fine, fine), one) == [2]
    assert whole_batch.not_finite(LossInputs(fine, fine), PairLosses(count, {})) == []


def _responses(model: torch.nn.Module, pairs: Pairs, rows: list[int], side: str) -> Responses:
    """As an objective is given them, from the log-probs of the vocabulary at each response token."""
    summed = []
    for row in rows:
        ids, scores = getattr(pairs, side)[row], torch.tensor(getattr(pairs, f"ref_{side}")[row])
        everything = torch.from_numpy(np.concatenate([pairs.prompt[row], ids]).astype(np.int64))
        log_p = model(everything[None]).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        logps = log_p[torch.arange(len(ids)), everything[-len(ids) :]]
        shorter, squares = min(pairs.chosen.lengths[row], pairs.rejected.lengths[row]), log_p.detach().exp().square().sum(-1)
        tail, ratios = logps[shorter:], logps - scores
        count, tail_ratio, half = torch.tensor(float(len(ids))), ratios[shorter:].sum(), (ratios**2).mean() / 2
        summed.append(torch.stack([logps.sum(), count, ratios.sum(), squares.log().mean(), tail.sum(), tail_ratio, half]))
    logp, num_tokens, ratio, log_sum_squares, tail_logp, tail_ratio, half_square = torch.stack(summed, 1)
    means = {"log_sum_squares": log_sum_squares, "half_square": half_square}
    return Responses(logp, num_tokens, ratio, token_means=means, given_tails=Tails(tail_logp, tail_ratio))
