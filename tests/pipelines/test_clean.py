"""What `just clean` and `just clean-all` remove: nobody loses a trained checkpoint unasked."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "pipelines" / "clean_jobs.sh"


def _trained(folder: Path) -> Path:
    weights = folder / ".nemotron" / "jobs" / "20260101-000000-rl-nemo_rl-dpo" / "run" / "weights.distcp"
    weights.parent.mkdir(parents=True)
    weights.write_text("trained")
    return weights


def _answered(folder: Path, answer: str) -> int:
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    argv = ["bash", str(SCRIPT), ".nemotron"]
    status = subprocess.run(argv, cwd=folder, stdin=theirs, capture_output=True, timeout=60).returncode
    os.close(ours)
    os.close(theirs)
    return status


def test_jobs_go_only_when_that_is_confirmed(tmp_path: Path):
    weights = _trained(tmp_path)
    argv = ["bash", str(SCRIPT), ".nemotron"]
    alone = subprocess.run(argv, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert alone.returncode == 1
    assert ".nemotron/jobs/20260101-000000-rl-nemo_rl-dpo\n1 job folders" in alone.stdout
    assert (_answered(tmp_path, ""), _answered(tmp_path, "n"), weights.exists()) == (1, 1, True)
    assert (_answered(tmp_path, "y"), (tmp_path / ".nemotron").exists()) == (0, False)
    _trained(tmp_path)
    assert subprocess.run([*argv, "yes"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    assert not (tmp_path / ".nemotron").exists()


def test_clean_leaves_the_jobs(tmp_path: Path):
    """Its own first line, carried out where there is a trained checkpoint."""
    weights = _trained(tmp_path)
    recipe = re.search(r"^clean:\n +(rm .*)\n", (ROOT / "Justfile").read_text(), re.M)
    assert recipe is not None
    subprocess.run(["bash", "-euc", recipe[1]], cwd=tmp_path, check=True)
    assert weights.read_text() == "trained"
