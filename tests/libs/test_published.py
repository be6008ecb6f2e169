"""What is published appears whole, whoever else writes beside it and whatever was left there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron_dpo import locks, published
from nemotron_dpo.errors import UserError
from nemotron_dpo.published import published_file, published_folder, replacing

HOLD = """
import sys
from pathlib import Path
from nemotron_dpo.published import published_folder, replacing
with {what}(Path(sys.argv[1])) as made:
    (made / "half" if made.is_dir() else made).write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(target: Path, what: str = "replacing") -> subprocess.Popen[str]:
    """A process in the middle of writing `target`."""
    argv = [sys.executable, "-c", HOLD.format(what=what), str(target)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _write(target: Path) -> None:
    """Write `target` as a process does that has not yet looked at the folder."""
    published._swept.clear()
    with replacing(target) as temporary:
        temporary.write_text("whole")


def _places(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.endswith(".tmp")}


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path: Path):
    living, dead = _holder(tmp_path / "living"), _holder(tmp_path / "dead")
    before = _places(tmp_path)
    dead.kill()
    dead.communicate()
    assert _places(tmp_path) == before
    _write(tmp_path / "mine")
    assert [name.split(".")[1] for name in _places(tmp_path)] == ["living"]
    living.communicate("")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"living": "half", "mine": "whole"}


def test_one_that_is_stopped_lives(tmp_path: Path):
    stopped = _holder(tmp_path / "a")
    stopped.send_signal(signal.SIGSTOP)
    _write(tmp_path / "b")
    assert _places(tmp_path)
    stopped.send_signal(signal.SIGCONT)
    stopped.communicate("")
    assert (tmp_path / "a").read_text() == "half"


def test_two_of_one_process_id_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in two containers, where each program is process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert not _places(tmp_path)


def test_what_another_kernel_left_is_believed_dead_after_days_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its locks may not be seen here."""
    place = tmp_path / f".a.{'0' * 8}-{'1' * 16}.tmp"
    place.mkdir()
    for name in (".lock", "a"):
        (place / name).touch()
    _write(tmp_path / "b")
    assert place.is_dir()
    old = time.time() - 8 * 86400
    for path in (place / ".lock", place):
        os.utime(path, (old, old))
    _write(tmp_path / "b")
    assert place.is_dir(), "one file of it is new"
    os.utime(place / "a", (old, old))
    _write(tmp_path / "b")
    assert not place.exists()


def test_a_clock_that_runs_ahead_makes_no_place_of_another_kernel_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ages are by the clock of the file system, which all of its hosts share."""
    place = tmp_path / f".a.{'0' * 8}-{'1' * 16}.tmp"
    place.mkdir()
    (place / ".lock").touch()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 366 * 86400)
    _write(tmp_path / "b")
    assert place.is_dir()


def test_a_folder_that_is_mounted_twice_is_another_to_each():
    """Containers of one node that mount a file server each for itself see no locks of each other's, and share a kernel."""
    devices = {path.stat().st_dev: published.mount_of(path) for path in map(Path, ("/proc", "/dev", "/sys", "/"))}
    assert len(set(devices.values())) == len(devices) > 1
    assert published.mount_of(Path("/proc/self")) == published.mount_of(Path("/proc"))


def test_a_file_server_that_keeps_open_files_under_another_name_is_left_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As NFS does (.nfs...): what is removed while it is open goes once it is closed."""
    unlink, close = Path.unlink, os.close

    def rename(path: Path, missing_ok: bool = False) -> None:
        path.rename(path.with_name(".nfs0001")) if path.name == ".lock" else unlink(path, missing_ok)

    def close_and_go(file: int) -> None:
        close(file)
        for path in tmp_path.rglob(".nfs0001"):
            unlink(path)

    dead = tmp_path / f".c.{published.mount_of(tmp_path)}-{'1' * 16}.tmp"
    dead.mkdir()
    (dead / ".lock").touch()
    monkeypatch.setattr(Path, "unlink", rename)
    monkeypatch.setattr(os, "close", close_and_go)
    _write(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_copy_that_finds_no_room_names_the_target_and_not_its_source(tmp_path: Path):
    """As shutil says it: the source first."""
    for number, due in ((errno.ENOSPC, tmp_path / "b"), (errno.EIO, "source")):
        with pytest.raises(OSError, match=os.strerror(number)) as caught, replacing(tmp_path / "b") as made:
            raise OSError(number, os.strerror(number), "source", None, str(made))
        assert caught.value.filename == str(due)


def test_a_rename_that_finds_no_room_names_the_target(tmp_path: Path):
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)) as caught, replacing(tmp_path / "b") as made:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(made), None, str(tmp_path / "b"))
    assert caught.value.filename == str(tmp_path / "b")


def test_what_only_looks_like_a_place_stays(tmp_path: Path):
    mine = [f".a.{'0' * 8}-{'1' * 16}.tmp", ".a.1234.tmp", "a.tmp", ".tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".l.{published.mount_of(tmp_path)}-{'1' * 16}.tmp").symlink_to(tmp_path)
    _write(tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "b", f".l.{published.mount_of(tmp_path)}-{'1' * 16}.tmp"}


def test_a_place_that_is_swept_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, swept = locks.lock, []

    def lock(file: int, how: int) -> bool:
        if not swept:
            swept.extend(_places(tmp_path))
            published._remove(tmp_path / swept[0])
        return real(file, how)

    monkeypatch.setattr(locks, "lock", lock)
    _write(tmp_path / "a")
    assert swept
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_as_long_as_file_systems_have_them(tmp_path: Path):
    for name in ("a" * 255, "\N{GREEK SMALL LETTER OMEGA}" * 127, os.fsdecode(b"\xff" * 255)):
        _write(tmp_path / name)
        with published_folder(tmp_path / f"{name[:-1]}2") as folder:
            (folder / "x").touch()
    assert len(list(tmp_path.iterdir())) == 6
    with pytest.raises(OSError, match="too long") as caught, published_file(tmp_path / ("a" * 256)):
        pass
    assert caught.value.filename == str(tmp_path / ("a" * 256))


def test_an_error_names_what_was_asked_for(tmp_path: Path):
    def full() -> None:
        raise OSError(28, "No space left on device")

    for what in (replacing, published_folder):  # a block that writes a file may have others to do with
        with pytest.raises(OSError, match="No space left") as caught, what(tmp_path / "a"):
            full()
        assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as missing, published_file(tmp_path / "no" / "a"):
        pass
    assert missing.value.filename == str(tmp_path / "no" / "a")
    with pytest.raises(FileNotFoundError) as other, published_file(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()
    assert other.value.filename == str(tmp_path / "elsewhere")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_is_writing_is_refused_by_name(tmp_path: Path):
    target = tmp_path / "new" / "a"
    target.parent.mkdir()
    other = _holder(target, "published_folder")
    with pytest.raises(UserError) as refused, published_folder(target):
        pass
    assert str(refused.value).startswith(f"{target}: another program is writing it (process {other.pid} on ")
    other.communicate("")
    assert [path.name for path in target.parent.iterdir()] == ["a"]
    with pytest.raises(UserError, match="exists already"), published_folder(target):
        pass


def test_a_folder_whose_writer_was_killed_is_written(tmp_path: Path):
    other = _holder(tmp_path / "a", "published_folder")
    other.kill()
    other.communicate()
    published._swept.clear()
    with published_folder(tmp_path / "a") as folder:
        (folder / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "x"]
