"""Every way of dividing a hybrid over processes against one process: losses, gradient norms, biases, and going on elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support import hybrids
from support.programs import execute_job

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
JOB = Path(hybrids.__file__).with_name("hybrid_job.py")
DENSE, EXPERTS = "M-M*-M-", "MEM*EM-E"
TENSOR, SEQUENCE = {"tensor": 2}, {"tensor": 2, "sequence": True}
PIPELINE, UNEVEN = {"pipeline": 2}, {"pipeline": 2, "first_stage_layers": 3}
EXPERT, CONTEXT = {"expert": 2}, {"context": 2}
LAYOUTS: list[tuple[str, int, dict[str, Any]]] = [
    (DENSE, 2, {}),
    (DENSE, 2, TENSOR),
    (DENSE, 2, {**UNEVEN}),
    (DENSE, 4, {**TENSOR, **CONTEXT}),
    (EXPERTS, 2, SEQUENCE),
    (EXPERTS, 2, CONTEXT),
]  # divided experts, and every way at once, are where a run goes on, below


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Runs a job; jobs of the same words are run once."""
    root, done = tmp_path_factory.mktemp("jobs"), {}

    def run(processes: int, pattern: str, **settings: Any) -> dict[str, Any]:
        folder = root / pattern.replace("*", "a")
        folder.mkdir(exist_ok=True)
        if not (folder / "weights.pt").exists():
            torch.save(hybrids.theirs(pattern).state_dict(), folder / "weights.pt")
        job = json.dumps({"pattern": pattern, "out": str(folder / "out.json"), **settings})
        if (processes, job) not in done:
            ended = execute_job(processes, [sys.executable, str(JOB), str(folder), job])
            assert ended.returncode == 0, ended.stderr.decode()
            done[processes, job] = json.loads((folder / "out.json").read_text())
        return done[processes, job]

    return run


def same(found: dict[str, Any], due: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert found["losses"] == pytest.approx(due["losses"], rel=tolerance)
    assert found["norms"] == pytest.approx(due["norms"], rel=tolerance)
    for name, biases in found["biases"].items():
        assert biases == pytest.approx(due["biases"][name], abs=1e-6)


@pytest.mark.parametrize(("pattern", "processes", "layout"), LAYOUTS, ids=[f"{row[0]} {row[2]}" for row in LAYOUTS])
def test_several_processes_equal_one(pattern: str, processes: int, layout: dict[str, Any], work: Callable[..., Any]) -> None:
    one = work(1, pattern, bias_rate=1e-3)
    assert one["losses"][1] < one["losses"][0]
    same(work(processes, pattern, bias_rate=1e-3, layout=layout), one)


@pytest.mark.parametrize("lora", [None, {"dim": 4, "alpha": 8}], ids=["whole", "adapters"])
def test_a_run_goes_on_in_another_layout(lora: dict[str, Any] | None, work: Callable[..., Any], tmp_path: Path) -> None:
    """Weights or adapters, biases, moments and step counts, from one process to several and back."""
    folders = [str(tmp_path / name) for name in ("one", "several")]
    layout = {**SEQUENCE, **EXPERT, **PIPELINE, "expert_tensor": 1}
    words = {"lora": lora, "bias_rate": 1e-3}
    begun = work(1, EXPERTS, save=folders[0], **words)
    same(work(4, EXPERTS, save=folders[1], layout=layout, **words), begun)
    on = work(1, EXPERTS, load=folders[0], **words)
    assert on["losses"][0] < begun["losses"][1]
    same(work(2, EXPERTS, load=folders[0], layout=EXPERT, **words), on)
    same(work(1, EXPERTS, load=folders[1], **words), on)
