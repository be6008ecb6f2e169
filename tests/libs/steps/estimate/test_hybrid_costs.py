"""What a hybrid costs by its layer kinds: against figures by hand, and against what torch counts and keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.layout import Layout
from nemotron_dpo.policy.lora_targets import Lora, adapter_parameters
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.policy.sublayers.dense import Dense
from nemotron_dpo.policy.sublayers.experts import Experts, Router
from nemotron_dpo.policy.sublayers.latent_attention import LatentAttention
from nemotron_dpo.policy.sublayers.mamba import Mamba
from nemotron_dpo.policy.sublayers.rotary import Rotary, Yarn
from nemotron_dpo.steps.estimate import flops, memory
from nemotron_dpo.steps.estimate.sizes import Lengths, Sizes

# of hidden size 256, as wide beside its states as real ones are
MAMBA, ATTENTION = Mamba(8, 64, 128, 2), Attention(8, 2, 32, rotary=None)
DENSE, SHARED = (Dense(n, "relu2", gated=False) for n in (768, 512))
EXPERTS = Experts(Router(8, 2, score="sigmoid", expert_bias=True), Dense(256, "relu2", gated=False), SHARED)
LATENT = LatentAttention(8, 96, 64, plain_size=24, rotary_size=8, value_size=32, rotary=Rotary(10000.0))
GATED = Experts(Router(8, 2, score="sigmoid", expert_bias=True), Dense(256), Dense(512))
LAYERS = {"M": Layer(MAMBA, None), "*": Layer(ATTENTION, None), "-": Layer(None, DENSE), "E": Layer(None, EXPERTS)}
LAYERS |= {"L": Layer(LATENT, Dense(768)), "S": Layer(LATENT, GATED)}
PAIR = (192, 160, 2)  # tokens of prompt and of each response, pairs


def architecture(pattern: str, dtype: str = "bfloat16", layers: dict[str, Layer] | None = None, **sizes: Any) -> Architecture:
    return Architecture(
        tuple((layers or LAYERS)[symbol] for symbol in pattern),
        **{"hidden_size": 256, "vocab_size": 96, **sizes},
        max_position_embeddings=2048,
        norm_epsilon=1e-5,
        tied_embeddings=False,
        dtype=dtype,
        family="nemotron_h",
    )


def test_parameters_are_those_of_nemotron_3_nano() -> None:
    """NVIDIA's card says 30B-A3B; transformers counts 31.58 B of its config."""
    expert, shared = (Dense(n, "relu2", gated=False) for n in (1856, 3712))
    layers = {
        "M": Layer(Mamba(64, 64, 128, 8), None),
        "*": Layer(Attention(32, 2, 128, rotary=None), None),
        "E": Layer(None, Experts(Router(128, 6, score="sigmoid", expert_bias=True, scaling=2.5), expert, shared)),
    }
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    nano = architecture(pattern, layers=layers, hidden_size=2688, vocab_size=131072)
    assert len(nano.layers) == 52
    assert nano.num_parameters() == pytest.approx(31.58e9, rel=2e-4)
    assert nano.num_parameters(met=True) == pytest.approx(3.58e9, rel=0.01)


def test_parameters_and_flops_of_a_layer_by_hand() -> None:
    """in_proj of z, x of 512 channels, B, C of 2 x 128, dt of 8 heads; 4 taps and a bias over x, B, C; 3 x 8; a norm of 512."""
    width = 512 + 512 + 256 + 256 + 8
    parameters = 256 * width + 512 * 256 + 1024 * 5 + 24 + 512 + 256
    assert MAMBA.parameters(architecture("M")).total == parameters
    met = 256 * width + 512 * 256 + 1024 * 4
    within = 64 * 256 + 64 * 512  # a token's scores of 64, for both groups, and what they mix, for all channels
    states = 512 * 128
    lengths = Lengths(10, 20)
    assert flops.scoring(architecture("M"), lengths) == 2 * (met + within + 2 * states) * 30 + 2 * 96 * 256 * 20
    shared = 2 * 256 * 512
    assert EXPERTS.parameters(architecture("E")).total == 8 * 2 * 256 * 256 + 8 * 256 + shared + 256
    assert EXPERTS.weights_met(architecture("E")) == 2 * 2 * 256 * 256 + 8 * 256 + shared


def test_parameters_and_flops_of_latent_attention_by_hand() -> None:
    """Vectors of 96 for queries, 64 for keys and values; 8 heads with keys of 24 + 8 channels and values of 24."""
    narrow = replace(LATENT, value_size=24)
    weights = 256 * 96 + 96 * 8 * 32 + 256 * (64 + 8) + 64 * 8 * (24 + 24) + 8 * 24 * 256
    assert narrow.parameters(architecture("L")).total == weights + 256 + 96 + 64
    assert narrow.weights_met(architecture("L")) == weights
    whole = replace(narrow, query_rank=None)
    assert whole.weights_met(architecture("L")) == weights - 256 * 96 - 96 * 8 * 32 + 256 * 8 * 32
    meetings = Lengths(10, 20).meetings()
    # of 8 heads: scores of 32 channels and mixtures of 24; backward scores, queries' and keys' gradients, and two of values
    assert narrow.mixing_flops(Lengths(10, 20)) == (2 * 8 * (32 + 24) * meetings, 2 * 8 * (3 * 32 + 2 * 24) * meetings)
    # YaRN over 40 times the length makes scores (0.1 ln 40 + 1)^2 = 1.3689^2 times as large
    yarn = Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert narrow.scale == pytest.approx(32**-0.5)
    assert replace(narrow, rotary=Rotary(1e4, 1.0, yarn)).scale == pytest.approx(1.368888**2 * 32**-0.5, rel=1e-5)


def test_ranks_hold_parts_and_adapters_know_every_linear_layer() -> None:
    whole, halves = (memory.memory(architecture("M"), Sizes("float32", 64, Layout(tensor=n))).weights for n in (1, 2))
    linears = 256 * (512 + 512 + 256 + 256 + 8) + 512 * 256 + 1024 * 5 + 24 + 512
    assert whole - halves == 4 * (linears + 2 * 96 * 256) / 2
    assert adapter_parameters(Lora(dim=2, target_modules=("in_proj", "out_proj")), architecture("M*")) == 2 * (
        (256 + 1544) + (512 + 256)
    )
    assert list(MAMBA.undivided(Layout(tensor=2, context=2))) == [("Mamba heads", 8, 4), ("Mamba groups", 2, 4)]


@pytest.mark.usefixtures("megatron")
@pytest.mark.slow
def test_flops_and_kept_bytes_are_what_torch_counts_and_keeps() -> None:
    """In bfloat16, of whose gradients of weights torch counts the products. Attention's kernels take whole blocks of keys."""
    from torch.utils.flop_counter import FlopCounterMode

    from nemotron_dpo.kernels import chosen
    from nemotron_dpo.kernels.torch_ops.table import torch_kernels

    before = chosen.use(torch_kernels())
    try:
        for pattern, within in (("MM", 0.05), ("--", 0.01), ("EE", 0.01), ("M-M*-M-E", 0.05), ("LL", 0.05), ("SS", 0.05)):
            plan, (policy, batch) = architecture(pattern), trainable(pattern)
            kept: dict[int, int] = {}
            with FlopCounterMode(display=False) as counter:
                found = keeps(policy, batch, kept)
            lengths = Lengths(PAIR[0], 2 * PAIR[1])
            due = PAIR[2] * flops.training(plan, Sizes("bfloat16", tokens=1), lengths)
            assert due == pytest.approx(counter.get_total_flops(), rel=within), pattern
            layout = Layout()
            parts = (part.kept(plan, layout, 2).total for part in plan.sublayers())
            assert batch.row.num_tokens * sum(parts) == pytest.approx(found, rel=0.15 if {*pattern} & {*"ES"} else 0.08), (
                pattern
            )
    finally:
        chosen.use(before)


def trainable(pattern: str) -> Any:
    from nemotron_dpo.policy.model import build_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.training.batches import PairBatch

    draw, (prompt, response, count) = np.random.default_rng(0), PAIR
    prompts, chosen, rejected = ([draw.integers(3, 96, n) for _ in range(count)] for n in (prompt, response, response))
    row = pack_row(prompts, chosen, rejected)
    model = build_policy(architecture(pattern), torch.bfloat16, max_length=1024)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    batch = PairBatch(row=row, ref_logps_R=None, pairs=tuple(range(count)))
    return TrainablePolicy(model, Optimization(lr=1e-3)), batch


def keeps(policy: Any, batch: Any, kept: dict[int, int]) -> int:
    """Bytes that a forward pass keeps beside the weights; the backward pass follows."""
    weights, total = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss(_: object, logps_R: torch.Tensor) -> tuple[torch.Tensor, None]:
        total.append(sum(kept.values()))
        return -logps_R.sum(), None

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.accumulate([batch], loss)
    return total[0]
