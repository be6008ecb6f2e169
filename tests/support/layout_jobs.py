"""Jobs of `hybrid_job.py` from a test, and what two of them must have in common."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support import hybrid_job
from support.programs import execute_job


def trained(processes: int, folder: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What these jobs find, done in turn by the same processes."""
    outs = [folder.with_name(f"{folder.name} {number}.json") for number in range(len(jobs))]
    words = [json.dumps({"out": str(out), **job}) for out, job in zip(outs, jobs, strict=True)]
    ended = execute_job(processes, [sys.executable, hybrid_job.__file__, str(folder), *words])
    assert ended.returncode == 0, ended.stderr.decode()
    found = [json.loads(out.read_text()) for out in outs]
    for out in outs:
        out.unlink()
    return found


def assert_same(found: dict[str, Any], due: dict[str, Any], what: object, rel: float = 1e-5) -> None:
    """Losses and gradient norms to `rel`, and biases of routers where `found` has them; `what` is named where they differ."""
    for numbers in ("losses", "norms"):
        assert found[numbers] == pytest.approx(due[numbers], rel=rel), (what, numbers)
    for name, biases in found["biases"].items():
        assert biases == pytest.approx(due["biases"][name], abs=1e-6), (what, name)
