"""The share of the devices' peak that a step reaches, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from nemotron_dpo.policy import device
from nemotron_dpo.policy.lora import adapted_of
from nemotron_dpo.policy.peak_flops import known_gpu, peak_flops
from nemotron_dpo.policy.uniform import UniformDecoder
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import TOKENIZED_PAIRS
from nemotron_dpo.training.pair_values import PairValues
from nemotron_dpo.training.utilization import utilization

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
# linear_qkv 8 x (8 + 2 x 4), linear_proj 8 x 8, linear_fc1 8 x 32, linear_fc2 16 x 8, in both layers
WEIGHTS = 2 * (128 + 64 + 256 + 128)


def pairs(lengths: list[tuple[int, int, int]]) -> Pairs:
    cut = {"chosen_truncated": False, "rejected_truncated": False}
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {"pair_id": bytes(16), "source_line": 1, **cut, **{name: [5] * count for name, count in zip(names, one, strict=True)}}
        for one in lengths
    ]
    return Pairs.of(pa.RecordBatch.from_pylist(rows, schema=TOKENIZED_PAIRS))


def test_a_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the third pair of three, on two GPUs: 4 prompt tokens and responses of 3 and 2."""
    monkeypatch.setattr("nemotron_dpo.policy.parallel.world_size", lambda: 2)
    one = PairValues(pairs([(1, 1, 1), (2, 2, 2), (4, 3, 2)]), [2], {"chosen_logp": np.zeros(1, np.float32)})
    policy: Any = SimpleNamespace(architecture=DECODER.architecture, config=SimpleNamespace(params_dtype=torch.bfloat16))
    assert adapted_of(policy) is None
    meetings = 7 * 8 / 2 + 2 * 4 + 2 * 3 / 2  # queries times the keys they see: chosen behind the prompt, then rejected
    # what a query meets costs 8 products forward in the scores and 8 in the values, 2 FLOPs each, and 2.5 times that backward
    mixing = 2 * 2 * (8 + 8) * meetings * (1 + 2.5)
    products = 6 * WEIGHTS * 9 + 6 * 32 * 8 * 5
    for name, peak in (("NVIDIA H100 80GB HBM3", 989.5e12), ("NVIDIA H100 PCIe", 756.5e12), ("NVIDIA A100-SXM4-40GB", 312e12)):
        monkeypatch.setattr(device, "name", lambda name=name: name)
        assert utilization(policy, one, 1e-9) == {
            "train_fp_utilization": pytest.approx((products + mixing) / (1e-9 * peak * 2))
        }
    monkeypatch.setattr(device, "name", lambda: "CPU")
    assert utilization(policy, one, 1e-9) == {}


def test_a_peak_is_that_of_the_precision_and_of_no_other_gpu() -> None:
    assert peak_flops("NVIDIA H200", "float32") == 67e12
    assert peak_flops("NVIDIA L4", "bfloat16") == 121e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 362e12
    assert peak_flops("NVIDIA GeForce GTX 1080", "bfloat16") is None
    assert peak_flops("CPU", "float32") is None


def test_a_gpu_is_found_in_other_words_than_its_name() -> None:
    shapes = {"gpu.8xh100-sxm": "H100", "pool4": None, "dgx-a100": "A100", "g2-standard-4 l4": "L4", "NVIDIA A10G": None}
    shapes |= {"NVIDIA GH200 480GB": "GH200", "gb200-nvl72": "GB200", "NVIDIA L40S": "L40S", "": None}
    assert {text: known_gpu(text) for text in shapes} == shapes
