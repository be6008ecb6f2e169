"""Every way of dividing a hybrid over processes against one process: losses, gradient norms, biases, and going on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support import hybrids
from support.layout_jobs import assert_same, trained

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
DENSE, EXPERTS = "M-*M-", "ME*-ME"
TENSOR, SEQUENCE = {"tensor": 2}, {"tensor": 2, "sequence": True}
PIPELINE, UNEVEN = {"pipeline": 2}, {"pipeline": 2, "first_stage_layers": 3}
EXPERT, CONTEXT = {"expert": 2}, {"context": 2}
EVERY: dict[str, Any] = {**SEQUENCE, **EXPERT, **PIPELINE, "expert_tensor": 1}
LAYOUTS: dict[str, dict[int, list[dict[str, Any]]]] = {
    DENSE: {2: [{}, TENSOR, {**UNEVEN}], 4: [{**TENSOR, **CONTEXT}]},
    EXPERTS: {2: [SEQUENCE, CONTEXT]},
}  # pattern -> processes -> layouts; divided experts, and every way at once, are where a run goes on, below


def written(folder: Path, pattern: str) -> Path:
    folder.mkdir()
    torch.save(hybrids.theirs(pattern).state_dict(), folder / "weights.pt")
    return folder


@pytest.mark.parametrize("pattern", LAYOUTS)
def test_several_processes_equal_one(pattern: str, tmp_path: Path) -> None:
    folder, words = written(tmp_path / "model", pattern), {"pattern": pattern, "bias_rate": 1e-3}
    (one,) = trained(1, folder, words)
    assert one["losses"][1] < one["losses"][0]
    for processes, layouts in LAYOUTS[pattern].items():
        divided = trained(processes, folder, *({**words, "layout": layout} for layout in layouts))
        for layout, found in zip(layouts, divided, strict=True):
            assert_same(found, one, (processes, layout))


def test_a_run_goes_on_in_another_layout(tmp_path: Path) -> None:
    """Weights or adapters, biases, moments and step counts, from one process to several and back."""
    folder, kinds = written(tmp_path / "model", EXPERTS), ("whole", "adapters")
    words = [{"pattern": EXPERTS, "bias_rate": 1e-3, "lora": lora} for lora in (None, {"dim": 4, "alpha": 8})]
    one, several = ([str(tmp_path / f"{name} {kind}") for kind in kinds] for name in ("one", "several"))

    def jobs(key: str, places: list[str], layout: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**word, key: place, "layout": layout} for word, place in zip(words, places, strict=True)]

    alone = trained(1, folder, *jobs("save", one, {}), *jobs("load", one, {}))
    begun, on = alone[:2], alone[2:]
    divided = trained(4, folder, *jobs("save", several, EVERY))
    elsewhere = trained(2, folder, *jobs("load", one, EXPERT))
    back = trained(1, folder, *jobs("load", several, {}))
    for number, kind in enumerate(kinds):
        assert_same(divided[number], begun[number], kind)
        assert on[number]["losses"][0] < begun[number]["losses"][1], kind
        assert_same(elsewhere[number], on[number], kind)
        assert_same(back[number], on[number], kind)
