"""Families whose layers are more than Llama's, divided over two processes against one, going on from what one saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import families
from support.layout_jobs import assert_same, trained

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
TENSOR, SEQUENCE, PIPELINE, CONTEXT = {"tensor": 2}, {"tensor": 2, "sequence": True}, {"pipeline": 2}, {"context": 2}
WHOLE_EXPERTS = {**SEQUENCE, "expert_tensor": 1}  # all on each rank, where other layers are divided
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "olmo3": [SEQUENCE, PIPELINE],  # OLMo 2 is the same without windows
    "ministral3": [TENSOR, PIPELINE, CONTEXT],  # of texts to either side of the length from which queries grow
    "granite": [TENSOR, PIPELINE],
    "gemma2": [SEQUENCE, PIPELINE],
    "gemma3_text": [TENSOR, PIPELINE, CONTEXT],
    "gpt_oss": [PIPELINE, CONTEXT, {**WHOLE_EXPERTS, "expert": 2}],  # megatron-core divides no expert that has biases
    "mixtral": [WHOLE_EXPERTS],
}
CHANGES: dict[str, dict[str, Any]] = {"gemma3_text": {"sliding_window": 150}, "ministral3": {"sliding_window": 20}}


@pytest.mark.parametrize("family", LAYOUTS)
def test_two_processes_equal_one(family: str, tmp_path: Path) -> None:
    """Losses and gradient norms of two more steps, from the weights and the optimizer of two."""
    layers = 4 if family in ("gemma2", "gemma3_text", "olmo3") else 2
    changes = {"max_position_embeddings": 256, "num_hidden_layers": layers, **CHANGES.get(family, {})}
    folder = families.write_model(tmp_path / "hf", family, **changes)
    saved = str(tmp_path / "one")
    begun, on = trained(1, folder, {"save": saved}, {"load": saved})
    assert on["losses"][1] < begun["losses"][0]
    divided = trained(2, folder, *({"layout": layout, "load": saved} for layout in LAYOUTS[family]))
    for layout, found in zip(LAYOUTS[family], divided, strict=True):
        assert_same(found, on, layout)
