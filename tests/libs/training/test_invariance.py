"""Loss, metrics, state and gradients of every kind of objective do not depend on how the global batch is computed.

Legend: B pairs of a global batch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from nemotron_dpo.objective.inputs import LossInputs, Responses, Tails
from nemotron_dpo.objective.weighted_sum import after
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices
from nemotron_dpo.training.settings import Packing
from support import objective_runs as runs
from support import small
from support.programs import execute_job

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


@pytest.mark.parametrize("packing", [Packing(None, 1), Packing(None, 2), Packing(128)], ids=["one", "two", "packed"])
def test_neither_micro_batches_nor_packing_move_a_number(packing: Packing, folder: Path, one_row: dict[str, Records]) -> None:
    for name, objective in runs.OBJECTIVES.items():
        assert_same(list(runs.records(folder, objective, packing)), one_row[name], name)


LAYOUTS = [
    (2, {}, 2),
    (2, {"tensor": 2}, 2),
    (2, {"pipeline": 2}, 1),
    (2, {"context": 2}, 2),
]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(("processes", "layout", "pairs_per_row"), LAYOUTS, ids=["dp2", "tp2", "pp2", "cp2"])
def test_no_layout_moves_a_number(
    processes: int, layout: dict[str, int], pairs_per_row: int, folder: Path, one_row: dict[str, Records]
) -> None:
    argv = [sys.executable, runs.__file__, str(folder), json.dumps(layout), str(pairs_per_row)]
    done = execute_job(processes, argv)
    assert done.returncode == 0, done.stderr.decode()
    curves = orjson.loads(done.stdout)
    for name in runs.OBJECTIVES:
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
        count, tail_ratio = torch.tensor(float(len(ids))), ratios[shorter:].sum()
        summed.append(torch.stack([logps.sum(), count, ratios.sum(), squares.log().mean(), tail.sum(), tail_ratio]))
    logp, num_tokens, ratio, log_sum_squares, tail_logp, tail_ratio = torch.stack(summed, 1)
    means = {"log_sum_squares": log_sum_squares}
    return Responses(logp, num_tokens, ratio, token_means=means, given_tails=Tails(tail_logp, tail_ratio))
