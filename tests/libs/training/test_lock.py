"""One run in a folder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.locks import OF_FOLDER as NAME
from nemotron_dpo.training.lock import only_run

HOLD = """
import sys
from pathlib import Path
from nemotron_dpo.training.lock import only_run
with only_run(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def _quiet(line: str) -> None:
    raise AssertionError(line)


def _holder(folder: Path) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes)  # type: ignore[call-overload] - options are those of the call
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_until_the_first_is_gone(tmp_path: Path):
    folder = tmp_path / "a" / "run"
    first = _holder(folder)
    with pytest.raises(UserError) as refused, only_run(folder, _quiet):
        pass
    assert f"{folder}: another dpo-train works in it (process {first.pid} on " in str(refused.value)
    first.kill()  # and its file stays
    first.communicate()
    assert (folder / NAME).exists()
    with only_run(folder, _quiet):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_folders_that_stay_empty_are_removed(tmp_path: Path):
    with only_run(tmp_path / "a" / "b", _quiet):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with only_run(tmp_path / "mine", _quiet):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_lock_that_ends_its_life_while_another_opens_it_is_no_lock(tmp_path: Path, monkeypatch):
    """The name is taken away between opening and locking, as a run that ends does it."""
    import fcntl

    real, removed = fcntl.flock, []

    def flock(file: int, how: int) -> None:
        if not removed:
            removed.append((tmp_path / NAME).unlink())
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_run(tmp_path, _quiet):
        monkeypatch.undo()
        assert (tmp_path / NAME).exists()
        with pytest.raises(UserError), only_run(tmp_path, _quiet):
            pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch):
    import errno
    import fcntl

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with only_run(tmp_path, said.append):
        pass
    assert said == [f"warning: {tmp_path}: its file system has no locks: no other run may work in it"]


def test_an_error_of_the_machine_is_not_taken_for_another_run(tmp_path: Path, monkeypatch):
    import errno
    import fcntl

    def flock(file: int, how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as failure, only_run(tmp_path, _quiet):
        pass
    assert (failure.value.errno, failure.value.filename) == (errno.EIO, str(tmp_path))
