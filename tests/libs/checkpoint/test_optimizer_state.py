"""The optimizer's state on disk: a policy loaded again takes the very step that the one in memory takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nemotron_dpo.errors import UserError
from support import small
from support.forged import Payload, change_metadata, put_object, saved
from support.hybrid_folders import PATTERNS, write_hybrid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

OPTIMIZERS = [
    pytest.param(precision, distributed, id=f"{precision}-{'distributed' if distributed else 'plain'}")
    for precision in ("float32", "bfloat16")
    for distributed in (True, False)
]


def trainable(source: Path, precision: str, distributed: bool):
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve

    model = open_policy(resolve(source), precision)
    return TrainablePolicy(model, Optimization(lr=1e-3, use_distributed_optimizer=distributed))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory):
    from nemotron_dpo.training.data import open_pairs

    path = small.write_pairs(tmp_path_factory.mktemp("data") / "pairs.arrow", small.random_pairs(24, seed=5))
    return open_pairs(path, scored=False, max_length=64, say=print)[0]


def learn(policy, pairs, steps: range) -> None:
    """Raise the log-probs of both sides of four pairs a step; every step sees others."""
    from nemotron_dpo.training.batches import micro_batches
    from nemotron_dpo.training.settings import Packing

    for step in steps:
        batches = micro_batches(pairs, range(4 * step, 4 * step + 4), Packing(None, 2))
        policy.accumulate(batches, lambda batch, logps_R: (-logps_R.sum(), logps_R.detach().sum()))
        policy.step(1e-3 / (step + 1))


def bits(policy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


@pytest.mark.parametrize(("precision", "distributed"), OPTIMIZERS)
def test_the_next_step_is_the_same_bit_for_bit(precision: str, distributed: bool, pairs, llama: Path, tmp_path: Path) -> None:
    check_the_next_step(llama, precision, distributed, pairs, tmp_path)


def test_so_is_that_of_parameters_of_two_precisions(pairs, tmp_path: Path) -> None:
    """The states of a recurrence are float32 beside bfloat16, as NVIDIA publishes its hybrids."""
    from nemotron_dpo.checkpoint import optimizer_state

    hybrid = write_hybrid(tmp_path / "hybrid", PATTERNS["dense"], dtype=torch.bfloat16, states=torch.float32)
    check_the_next_step(hybrid, "bfloat16", True, pairs, tmp_path)
    policy = trainable(hybrid, "bfloat16", False)
    with pytest.raises(UserError, match="float32 parameters beside others"):
        optimizer_state.check_can_be_saved(policy.model, distributed=False)
    optimizer_state.check_can_be_saved(policy.model, distributed=True)


def check_the_next_step(source: Path, precision: str, distributed: bool, pairs, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import megatron, optimizer_state

    policy = trainable(source, precision, distributed)
    learn(policy, pairs, range(3))
    megatron.save(policy.model, tmp_path / "policy", 3, None)
    optimizer_state.save(policy, tmp_path / "optimizer")
    learn(policy, pairs, range(3, 6))
    again = trainable(tmp_path / "policy", precision, distributed)
    optimizer_state.load(again, tmp_path / "optimizer")
    learn(again, pairs, range(3, 6))
    expected, found = bits(policy), bits(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    fresh = trainable(tmp_path / "policy", precision, distributed)
    learn(fresh, pairs, range(3, 6))
    assert not all(torch.equal(bits(fresh)[name], expected[name]) for name in expected)


def common(folder: Path, payload: Payload) -> None:
    (folder / "common.pt").write_bytes(saved({"optimizer": payload}))


def metadata(folder: Path, payload: Payload) -> None:
    change_metadata(folder, lambda metadata: setattr(metadata, "planner_data", payload))


def moment(folder: Path, payload: Payload) -> None:
    put_object(folder, MOMENT, saved(payload))


MOMENT = "optimizer.state.exp_avg.decoder.final_layernorm.weight"


@pytest.mark.parametrize(
    ("hide", "message"),
    [
        (common, "common.pt: cannot be read safely (it names posix.mkdir)"),
        (metadata, ".metadata: cannot be read safely (it names posix.mkdir)"),
        (moment, f".metadata: calls the tensor {MOMENT} a pickled object"),
    ],
)
def test_a_hidden_pickle_never_runs(
    hide: Callable[[Path, Payload], None], message: str, pairs, llama: Path, tmp_path: Path
) -> None:
    from nemotron_dpo.checkpoint import optimizer_state

    policy = trainable(llama, "float32", True)
    learn(policy, pairs, range(1))
    folder, marker = tmp_path / "optimizer", tmp_path / "ran"
    optimizer_state.save(policy, folder)
    (folder / "integrity.json").unlink()
    optimizer_state.load(policy, folder)
    hide(folder, Payload(marker))
    with pytest.raises(UserError) as caught:
        optimizer_state.load(policy, folder)
    assert message in str(caught.value)
    assert not marker.exists()
