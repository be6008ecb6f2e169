"""Ways of dividing a policy with gated delta nets over processes against one process, and going on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import delta_nets
from support.layout_jobs import assert_same, trained

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
TENSOR, SEQUENCE = {"tensor": 2}, {"tensor": 2, "sequence": True}
PIPELINE, CONTEXT, EXPERT = {"pipeline": 2}, {"context": 2}, {"expert": 2}
EVERY: dict[str, Any] = {**SEQUENCE, **EXPERT, **PIPELINE, "expert_tensor": 1}
# two key/value heads over four ranks, which share each: of its four queries, each rank has one and its gate
SHARED_HEADS = {"linear_num_key_heads": 4, "layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2}
CASES: dict[str, tuple[str, dict[str, Any], int, list[dict[str, Any]]]] = {
    "dense": ("dense", {}, 2, [TENSOR, {**PIPELINE, "first_stage_layers": 3}, CONTEXT]),
    "ranks that share a key head and have gates of their own": ("dense", SHARED_HEADS, 4, [{"tensor": 4}]),
    "mixed": ("mixed", {}, 2, [SEQUENCE]),
}  # every way at once is where a run goes on, below


@pytest.mark.parametrize("case", CASES)
def test_several_processes_equal_one(case: str, tmp_path: Path) -> None:
    name, changes, processes, layouts = CASES[case]
    folder = delta_nets.write_model(tmp_path / "model", name, **changes)
    (one,) = trained(1, folder, {})
    assert one["losses"][1] < one["losses"][0]
    divided = trained(processes, folder, *({"layout": layout} for layout in layouts))
    for layout, found in zip(layouts, divided, strict=True):
        assert_same(found, one, layout, 2e-5)


def test_a_run_goes_on_in_another_layout(tmp_path: Path) -> None:
    """Weights or adapters, moments and step counts, from one process to several and back."""
    folder, loras = delta_nets.write_model(tmp_path / "model", "mixed"), {"whole": None, "adapters": {"dim": 4, "alpha": 8}}
    one, several = ([str(tmp_path / f"{name} {kind}") for kind in loras] for name in ("one", "several"))

    def jobs(key: str, places: list[str], layout: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"lora": lora, key: place, "layout": layout} for lora, place in zip(loras.values(), places, strict=True)]

    alone = trained(1, folder, *jobs("save", one, {}), *jobs("load", one, {}))
    begun, on = alone[:2], alone[2:]
    divided = trained(4, folder, *jobs("save", several, EVERY))
    elsewhere = trained(2, folder, *jobs("load", one, EXPERT))
    back = trained(1, folder, *jobs("load", several, {}))
    for number, kind in enumerate(loras):
        assert_same(divided[number], begun[number], kind, 2e-5)
        assert on[number]["losses"][0] < begun[number]["losses"][1], kind
        # Adam enlarges last bits step by step: in the fourth, C's and torch's operations are 3e-5 apart in one process, too
        assert_same(elsewhere[number], on[number], kind, 6e-5)
        assert_same(back[number], on[number], kind, 6e-5)
