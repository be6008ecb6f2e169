"""The estimate of FLOPs and memory: by hand for a policy small enough, and against what torch counts and keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.load_balancing import LoadBalancing
from nemotron_dpo.policy.lora_targets import Lora
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.sublayers.experts import Router
from nemotron_dpo.policy.uniform import UniformDecoder
from nemotron_dpo.steps.estimate import flops, memory
from nemotron_dpo.steps.estimate import sizes as estimate_sizes
from nemotron_dpo.steps.estimate.sizes import Lengths, Sizes
from support import families, small

DECODER = UniformDecoder(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=16,
    num_attention_heads=2,
    num_query_groups=1,
    kv_channels=4,
    vocab_size=32,
    max_position_embeddings=64,
    norm_epsilon=1e-5,
    rotary_base=1e4,
    tied_embeddings=True,
    dtype="float32",
)
# linear_qkv 8 x (8 + 2 x 4), linear_proj 8 x 8, linear_fc1 8 x 32, linear_fc2 16 x 8
LAYER = 128 + 64 + 256 + 128
DECODER_OF_EXPERTS = replace(DECODER, experts=Router(num=4, top_k=2))
POLICY, MIXTURE = DECODER.architecture, DECODER_OF_EXPERTS.architecture
LENGTHS = Lengths(prompt=4, responses=6)
# by pairs of query and key, half the squares: 4 x 4 in the prompt, each response of 3 with the 4 before it and itself
MEETINGS = 16 / 2 + 2 * (3 * 4 + 9 / 2)


def test_parameters() -> None:
    assert POLICY.num_parameters() == 2 * (LAYER + 16) + 32 * 8 + 8
    assert replace(DECODER, tied_embeddings=False).architecture.num_parameters() == 2 * (LAYER + 16) + 2 * 32 * 8 + 8
    assert replace(DECODER, qkv_bias=True, qk_norm=True).architecture.num_parameters() == 2 * (LAYER + 16 + 16 + 8) + 32 * 8 + 8
    attention, expert, router = 192, 384, 4 * 8
    assert MIXTURE.num_parameters() == 2 * (attention + 4 * expert + router + 16) + 32 * 8 + 8
    assert MIXTURE.num_parameters(met=True) == 2 * (attention + 2 * expert + router + 16) + 32 * 8 + 8


def test_flops_of_a_pair() -> None:
    sizes = Sizes("float32", tokens=10)
    layers, scores, output = 2 * LAYER * 10, 2 * 8 * MEETINGS, 32 * 8 * 6
    assert flops.scoring(POLICY, LENGTHS) == 2 * layers + 4 * scores + 2 * output
    assert flops.training(POLICY, sizes, LENGTHS) == 6 * layers + 14 * scores + 6 * output
    parted = replace(sizes, layout=Layout(context=2))
    assert flops.training(POLICY, parted, LENGTHS) == 6 * layers + 14 * scores + 8 * output
    again = replace(sizes, recompute=Recompute())
    assert flops.training(POLICY, again, LENGTHS) == 8 * layers + 18 * scores + 6 * output
    lora = replace(sizes, lora=Lora(dim=2, target_modules=("linear_qkv",)))
    adapters = 2 * 2 * (8 + 16)
    assert flops.training(POLICY, lora, LENGTHS) == 4 * layers + 14 * scores + 4 * output + 6 * 10 * adapters


def test_a_token_of_a_mixture_meets_the_picked_experts_alone() -> None:
    twice = replace(DECODER, ffn_hidden_size=32).architecture
    router = 2 * 2 * (4 * 8) * 10
    assert flops.scoring(MIXTURE, LENGTHS) == flops.scoring(twice, LENGTHS) + router


def test_an_auxiliary_loss_of_the_global_batch_takes_a_forward_pass_of_the_layers() -> None:
    plain = Sizes("float32", tokens=10)
    once = flops.training(MIXTURE, plain, LENGTHS)
    layers = flops.scoring(MIXTURE, LENGTHS) - 2 * 32 * 8 * 6  # all but the output layer
    for settings, architecture, passes in (
        (LoadBalancing("aux_loss", 0.1), MIXTURE, 0),
        (LoadBalancing("global_aux_loss", 0.1), MIXTURE, 1),
        (LoadBalancing("transformers_aux_loss", 0.1), MIXTURE, 1),
        (LoadBalancing("global_aux_loss", 0.0), MIXTURE, 0),
        (LoadBalancing("global_aux_loss"), replace(DECODER, experts=Router(4, 2, aux_loss_coeff=0.0)).architecture, 0),
        (LoadBalancing("global_aux_loss"), replace(DECODER, experts=Router(4, 2, aux_loss_coeff=0.1)).architecture, 1),
    ):
        assert flops.training(architecture, replace(plain, load_balancing=settings), LENGTHS) == once + passes * layers
    dense = replace(plain, load_balancing=LoadBalancing("global_aux_loss", 0.1))
    assert flops.training(POLICY, dense, LENGTHS) == flops.training(POLICY, plain, LENGTHS)


PARAMETERS = 2 * (LAYER + 16) + 256  # the final norm is not counted


@pytest.mark.parametrize(
    ("changes", "weights", "optimizer", "gradients"),
    [
        ({}, 4, 8, 4),
        ({"precision": "bfloat16"}, 2, 12, 4),
        ({"precision": "bfloat16", "grads_in_fp32": False}, 2, 12, 2),
        ({"precision": "bfloat16", "copies": 4}, 2, 3, 4),
        ({"precision": "bfloat16", "copies": 4, "distributed": False}, 2, 12, 4),
        ({"copies": 2, "layout": Layout(context=2)}, 4, 2, 4),
    ],
)
def test_bytes_of_a_weight(changes: dict, weights: float, optimizer: float, gradients: float) -> None:
    need = memory.memory(POLICY, Sizes(**{"precision": "float32", "tokens": 10, **changes}))
    assert (need.weights, need.optimizer, need.gradients) == (
        weights * PARAMETERS,
        optimizer * PARAMETERS,
        gradients * PARAMETERS,
    )


def test_model_parallel_ranks_hold_parts() -> None:
    sizes = Sizes("float32", tokens=10, layout=Layout(tensor=2, pipeline=2))
    assert memory.memory(POLICY, sizes).weights == 4 * (LAYER / 2 + 16 + 256 / 2)
    experts = Sizes("float32", tokens=10, layout=Layout(expert=2), copies=2)
    held = 2 * (192 + 32 + 16) + 256, 2 * 2 * 384
    need = memory.memory(MIXTURE, experts)
    assert need.weights == 4 * sum(held)
    assert need.optimizer == 8 * (held[0] / 2 + held[1])  # each expert is there once, the rest twice


def test_frozen_routers_have_neither_gradients_nor_moments() -> None:
    """Each of the two layers has a router of 4 x 8, which tensor parallelism does not divide and pipeline stages share out."""
    for layout, routers in ((Layout(), 2 * 32), (Layout(tensor=2, sequence=True), 2 * 32), (Layout(pipeline=2), 32)):
        trained = Sizes("bfloat16", tokens=10, layout=layout)
        before, after = (memory.memory(MIXTURE, sizes) for sizes in (trained, replace(trained, frozen_routers=True)))
        assert (before.optimizer - after.optimizer, before.gradients - after.gradients) == (12 * routers, 4 * routers)
        assert before.weights == after.weights
    lora = Sizes("bfloat16", tokens=10, lora=Lora(dim=2, target_modules=("linear_qkv",)))
    assert memory.memory(MIXTURE, lora) == memory.memory(MIXTURE, replace(lora, frozen_routers=True))


def test_activations_of_a_layer() -> None:
    """x and its norm, twice; q and k rotated and v; attention's result; gate and up; a float a norm and a query head."""
    elements = 4 * 8 + (2 + 1 + 1) * 4 + 2 * 4 + 2 * 16
    kept = 4 * (elements + 2 + 2)
    sizes = Sizes("float32", tokens=10, spread=1)
    one, two = (memory.memory(replace(DECODER, num_layers=n).architecture, sizes).activations for n in (1, 2))
    assert two - one == 10 * kept
    full = replace(sizes, recompute=Recompute())
    one, two = (memory.memory(replace(DECODER, num_layers=n).architecture, full).activations for n in (1, 2))
    assert two - one == 10 * 4 * 8


def test_logits_are_kept_as_the_output_layer_keeps_them() -> None:
    from nemotron_dpo.kernels import logits

    assert (estimate_sizes.CPU_LOGITS_BYTES, estimate_sizes.GPU_LOGITS_BYTES) == (logits.KEPT_BYTES, logits.GPU_KEPT_BYTES)
    assert (memory.LOGITS_TOKENS, memory.LOGITS_ENTRIES) == (logits.KEPT_TOKENS, logits.BLOCK_ENTRIES)
    few, most = (memory.memory(POLICY, Sizes("bfloat16", tokens=10, logits_bytes=size)).logits for size in (100, 600))
    assert most - few == 500
    whole = memory.memory(POLICY, Sizes("bfloat16", tokens=10)).logits
    assert whole - few == 10 * POLICY.vocab_size * 2 - 100


def test_largest_row_is_the_last_that_fits() -> None:
    sizes = Sizes("bfloat16", tokens=1)
    tokens = memory.largest_tokens(POLICY, sizes, 410e6)
    assert tokens is not None
    below, above = (memory.memory(POLICY, replace(sizes, tokens=n)).total for n in (tokens, tokens + 64))
    assert below <= 410e6 < above
    assert memory.largest_tokens(POLICY, sizes, 390e6) is None


def _trainable(folder: Path, precision: str):
    import torch

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.rows import pack_row
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.training.batches import PairBatch

    draw, (prompt, response, count) = np.random.default_rng(0), PAIR
    prompts, chosen, rejected = ([draw.integers(3, small.VOCAB, n) for _ in range(count)] for n in (prompt, response, response))
    row = pack_row(prompts, chosen, rejected)
    model = open_policy(resolve(folder), precision)
    batch = PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=tuple(range(count)))
    return TrainablePolicy(model, Optimization(lr=1e-3)), batch


PAIR = (40, 44, 3)  # tokens of prompt and of each response, pairs


WIDE: dict = {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than it is long, so that norms and rope are as small a part as they are in real policies."""
    return small.write_llama(tmp_path_factory.mktemp("estimate") / "hf", **WIDE)


@pytest.mark.usefixtures("megatron")
def test_flops_are_what_torch_counts(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nemotron_dpo.kernels import chosen, logits
    from nemotron_dpo.kernels.torch_ops.logits import read_logits

    by_torch = replace(chosen.kernels(), read_logits=read_logits)
    monkeypatch.setattr(chosen, "_chosen", by_torch)  # torch counts its own products alone
    trainable, batch = _trainable(policy, "bfloat16")  # whose gradients are products of their own, which torch counts
    architecture = trainable.model.architecture

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            trainable.accumulate([batch], lambda _, logps_R: (-logps_R.sum(), torch.zeros(1)))
        return counter.get_total_flops()

    once, lengths = counted(), Lengths(PAIR[0], 2 * PAIR[1])
    expected = PAIR[2] * flops.training(architecture, Sizes("bfloat16", tokens=1), lengths)
    assert once == pytest.approx(expected, rel=0.2)
    monkeypatch.setattr(logits, "KEPT_BYTES", 0)  # as of pairs too long for it: their logits are made twice
    assert counted() - once == 2 * len(batch.row.targets_R) * architecture.vocab_size * architecture.hidden_size


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_what_torch_keeps(policy: Path, precision: str) -> None:
    _check_activations(policy, precision)


@pytest.mark.usefixtures("megatron")
def test_activations_of_layers_with_more_norms_are_what_torch_keeps(tmp_path: Path) -> None:
    """Behind each block, besides those before it or in their place; of queries and keys, by head or over all heads."""
    for family in ("olmo2", "granite", "gemma2", "gemma3_text"):
        layers: dict = {} if family in ("olmo2", "granite") else {"layer_types": ["sliding_attention", "full_attention"] * 2}
        _check_activations(families.write_model(tmp_path / family, family, **WIDE, **layers), "float32")


def _check_activations(policy: Path, precision: str) -> None:
    import torch

    trainable, batch = _trainable(policy, precision)
    architecture = trainable.model.architecture
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainable.model.parameters()}
    kept: dict[int, int] = {}
    total: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss(_: object, logps_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total.append(sum(kept.values()))
        return -logps_R.sum(), torch.zeros(1)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainable.accumulate([batch], loss)
    sizes = Sizes(precision, tokens=batch.row.num_tokens, spread=1)
    layers = [replace(architecture, layers=architecture.layers[:n]) for n in (0, None)]
    none, four = (memory.memory(layer, sizes).activations for layer in layers)
    assert total[0] == pytest.approx(four - none, rel=0.2)
