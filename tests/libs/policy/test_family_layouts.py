"""Families whose layers are more than Llama's, divided over two processes against one, and going on from what was saved."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support import families, hybrid_job
from support.programs import execute_job

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
JOB = Path(hybrid_job.__file__)
TENSOR, SEQUENCE, PIPELINE, CONTEXT = {"tensor": 2}, {"tensor": 2, "sequence": True}, {"pipeline": 2}, {"context": 2}
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "olmo2": [TENSOR, PIPELINE, CONTEXT],
    "granite": [PIPELINE],
    "olmo3": [PIPELINE],
    "gemma2": [CONTEXT],
    "gemma3_text": [TENSOR, PIPELINE],
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_two_processes_equal_one(family: str, tmp_path: Path) -> None:
    """Losses and gradient norms of two steps, and of two more from one process's checkpoint, in a layout with everything split."""
    folder = families.write_model(tmp_path / "hf", family, max_position_embeddings=256)
    one = trained(1, folder, save=str(tmp_path / "one"))
    assert one["losses"][1] < one["losses"][0]
    on = trained(1, folder, load=str(tmp_path / "one"))
    for layout in LAYOUTS[family]:
        same(trained(2, folder, layout=layout), one)
    same(trained(2, folder, layout=SEQUENCE, load=str(tmp_path / "one")), on)


def trained(processes: int, folder: Path, **settings: Any) -> dict[str, Any]:
    out = folder.with_suffix(".json")
    ended = execute_job(processes, [sys.executable, str(JOB), str(folder), json.dumps({"out": str(out), **settings})])
    assert ended.returncode == 0, ended.stderr.decode()
    return json.loads(out.read_text())


def same(found: dict[str, Any], due: dict[str, Any]) -> None:
    for numbers in ("losses", "norms"):
        assert found[numbers] == pytest.approx(due[numbers], rel=1e-5), numbers
