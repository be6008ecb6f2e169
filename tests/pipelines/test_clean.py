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
    assert ".nemotron/jobs/20260101-000000-rl-nemo_rl-dpo\n1 job folder, with the checkpoints in it, is about" in alone.stdout
    assert (_answered(tmp_path, ""), _answered(tmp_path, "n"), weights.exists()) == (1, 1, True)
    assert (_answered(tmp_path, "y"), (tmp_path / ".nemotron").exists()) == (0, False)
    _trained(tmp_path)
    assert subprocess.run([*argv, "yes"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    assert not (tmp_path / ".nemotron").exists()


def test_what_goes_is_what_was_listed(tmp_path: Path):
    """Jobs on another disk behind a link, one whose name starts with a dot, and a job that is itself a link."""
    far, other = tmp_path / "disk" / "jobs", tmp_path / "other" / "weights"
    other.parent.mkdir()
    other.write_text("trained")
    for link, target in ((".nemotron/jobs", far), (".nemotron", far.parent)):
        far.mkdir(parents=True)
        (far / ".hidden").write_text("trained")
        (far / "by-link").symlink_to(other.parent)
        (far.parent / "not-ours").write_text("kept")
        here = tmp_path / link
        here.parent.mkdir(exist_ok=True)
        here.symlink_to(target)
        argv = ["bash", str(SCRIPT), ".nemotron"]
        asked = subprocess.run(argv, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert (asked.returncode, sorted(path.name for path in far.iterdir())) == (1, [".hidden", "by-link"])
        assert f".nemotron/jobs leads to {far}: they go from there." in asked.stdout
        assert f".nemotron/jobs/by-link is a link: it goes, and what it leads to stays: {other.parent}" in asked.stdout
        assert ".nemotron/jobs/.hidden\n" in asked.stdout
        assert "2 job folders, with the checkpoints in them, are about" in asked.stdout
        subprocess.run([*argv, "yes"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        assert (other.read_text(), (far.parent / "not-ours").read_text()) == ("trained", "kept")
        assert not (tmp_path / ".nemotron").exists()
        assert not list(far.parent.glob("jobs/*")), link
        if far.is_dir():
            far.rmdir()


def test_clean_leaves_the_jobs(tmp_path: Path):
    """Its own first line, carried out where there is a trained checkpoint."""
    weights = _trained(tmp_path)
    recipe = re.search(r"^clean:\n +(rm .*)\n", (ROOT / "Justfile").read_text(), re.M)
    assert recipe is not None
    subprocess.run(["bash", "-euc", recipe[1]], cwd=tmp_path, check=True)
    assert weights.read_text() == "trained"
