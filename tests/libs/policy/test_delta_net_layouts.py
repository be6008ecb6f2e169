"""Ways of dividing a policy with gated delta nets over processes against one process, and going on elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import delta_nets, hybrid_job
from support.programs import execute_job

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
JOB = Path(hybrid_job.__file__)
TENSOR, SEQUENCE = {"tensor": 2}, {"tensor": 2, "sequence": True}
PIPELINE, CONTEXT, EXPERT = {"pipeline": 2}, {"context": 2}, {"expert": 2}
EVERY: dict[str, Any] = {**SEQUENCE, **EXPERT, **PIPELINE, "expert_tensor": 1}
LAYOUTS: list[tuple[str, int, dict[str, Any]]] = [
    ("dense", 2, TENSOR),
    ("dense", 2, {**PIPELINE, "first_stage_layers": 3}),
    ("dense", 2, CONTEXT),
    ("mixed", 2, SEQUENCE),
]  # every way at once is where a run goes on, below
# two key/value heads over four ranks, which share each: of its four queries, each rank has one and its gate
SHARED_HEADS = {"linear_num_key_heads": 4, "layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs a job; jobs of the same words are run once."""
    root, done = tmp_path_factory.mktemp("jobs"), {}

    def run(processes: int, name: str, changes: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        folder = root / f"{name} {len(changes or ())}"
        if not folder.exists():
            delta_nets.write_model(folder, name, **(changes or {}))
        out = folder.with_suffix(".json")
        job = json.dumps({"out": str(out), **settings})
        if (processes, job) not in done:
            ended = execute_job(processes, [sys.executable, str(JOB), str(folder), job])
            assert ended.returncode == 0, ended.stderr.decode()
            done[processes, job] = json.loads(out.read_text())
        return done[processes, job]

    return run


def same(found: dict[str, Any], due: dict[str, Any], rel: float = 2e-5) -> None:
    for numbers in ("losses", "norms"):
        assert found[numbers] == pytest.approx(due[numbers], rel=rel), numbers


@pytest.mark.parametrize(("name", "processes", "layout"), LAYOUTS, ids=[f"{row[0]} {row[2]}" for row in LAYOUTS])
def test_several_processes_equal_one(name: str, processes: int, layout: dict[str, Any], work: Callable[..., Any]) -> None:
    one = work(1, name)
    assert one["losses"][1] < one["losses"][0]
    same(work(processes, name, layout=layout), one)


def test_ranks_that_share_a_key_head_have_gates_of_their_own(work: Callable[..., Any]) -> None:
    same(work(4, "dense", SHARED_HEADS, layout={"tensor": 4}), work(1, "dense", SHARED_HEADS))


def test_a_run_goes_on_in_another_layout(work: Callable[..., Any], tmp_path: Path) -> None:
    """Weights or adapters, moments and step counts, from one process to several and back."""
    for lora in (None, {"dim": 4, "alpha": 8}):
        folders = [str(tmp_path / f"{name} {lora is None}") for name in ("one", "several")]
        begun = work(1, "mixed", save=folders[0], lora=lora)
        same(work(4, "mixed", save=folders[1], layout=EVERY, lora=lora), begun)
        on = work(1, "mixed", load=folders[0], lora=lora)
        assert on["losses"][0] < begun["losses"][1]
        # Adam enlarges last bits step by step: in the fourth, C's and torch's operations are 3e-5 apart in one process, too
        same(work(2, "mixed", load=folders[0], layout=EXPERT, lora=lora), on, 6e-5)
        same(work(1, "mixed", load=folders[1], lora=lora), on, 6e-5)
