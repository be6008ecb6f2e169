"""Errors of the machine are one line each, in the system's words and with the place that a person named."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import as_user_error, at, behind, named, named_file, places, told_in_words


def test_every_number_has_its_line():
    for number in errno.errorcode:
        line = str(as_user_error(OSError(number, "whatever a library says", "a.arrow")))
        assert line.startswith(f"a.arrow: {os.strerror(number).lower()}"), number
        assert "\n" not in line
        assert str(at(OSError(number, "x", "one", None, "two"), "b")) == f"[Errno {number}] {os.strerror(number)}: 'b'"


def test_what_rust_tells_of_the_machine_has_its_line():
    """As safetensors says it, which raises no OSError."""
    said = behind(ValueError("Error while serializing: I/O error: Stale file handle (os error 116)"))
    assert said is not None
    assert (said.message, said.remedy) == ("stale file handle", "the file server has changed it: run again, or mount anew")
    assert behind(ValueError("os error 116")) is None


def test_what_gloo_tells_of_the_machine_has_its_line():
    gloo = RuntimeError("[enforce fail at gloo/transport/tcp/loop.cc:48] rv != -1. 24 vs 24. pipe: Too many open files")
    assert str(told_in_words(gloo)) == "too many open files: raise the limit: ulimit -n"
    assert told_in_words(RuntimeError("Connection closed by peer")) is None


def test_the_innermost_place_counts():
    with pytest.raises(OSError, match="Input") as caught, named("outer"), named("inner"):
        raise OSError(errno.EIO, "x")
    assert caught.value.filename == "inner"
    with pytest.raises(FileNotFoundError) as other, named("outer"):
        Path("/no/such/file").read_bytes()
    assert other.value.filename == "/no/such/file"
    with pytest.raises(UserError, match=r"^kept$"), named("outer"):
        raise UserError("kept")


def test_an_error_of_reading_is_of_the_file_that_was_open():
    """The system names none; Linux gives nobody the first page of a process's memory."""
    memory = Path("/proc/self/mem")

    def by_open(path: Path) -> bytes:
        def inner(file: BinaryIO) -> bytes:
            return file.read()

        with Path(os.devnull).open("wb") as other, path.open("rb") as file:
            assert other.writable()
            return inner(file)

    def unbuffered(path: Path) -> bytes:
        with path.open("rb", buffering=0) as file:
            return file.read(8)

    for read in (Path.read_bytes, Path.read_text, by_open, unbuffered):
        with pytest.raises(OSError, match="Input") as caught:
            read(memory)
        assert caught.value.filename is None
        line = "/proc/self/mem: input/output error: does the disk, or its server, work?"
        assert str(as_user_error(caught.value)) == line
        assert places(caught.value) == ["/proc/self/mem"]
        with pytest.raises(OSError, match="Input") as placed, named("out"):
            read(memory)
        assert placed.value.filename == "/proc/self/mem"


def test_a_file_without_a_name_is_no_place():
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    with open(descriptor, "rb") as file, pytest.raises(OSError, match="Input") as caught:
        file.read()
    assert as_user_error(caught.value).source is None


def test_an_error_of_writing_is_of_no_file_that_is_read(tmp_path: Path):
    """/dev/full has no room, and the system names no place then either."""
    (tmp_path / "a").write_text("x")

    def copied(source: BinaryIO) -> None:
        with Path("/dev/full").open("wb", buffering=0) as target:
            shutil.copyfileobj(source, target)

    def written(source: BinaryIO) -> None:
        assert source.readable()
        with Path("/dev/full").open("wb") as target:
            target.write(b"x")

    for write in (copied, written):
        with (tmp_path / "a").open("rb") as file, pytest.raises(OSError, match="space") as caught, named("out"):
            write(file)
        assert caught.value.filename == "out"


def test_of_a_copy_the_source_is_named_and_where_there_is_no_room_the_copy():
    def error(number: int, *names: str) -> OSError:
        return OSError(number, "x", *(names[:1] if len(names) < 2 else (names[0], None, names[1])))

    assert places(error(errno.EIO)) == []
    assert places(error(errno.EIO, "from")) == ["from"]
    assert places(error(errno.EIO, "from", "to")) == ["from"]
    assert places(error(errno.ENOSPC, "from", "to")) == ["from", "to"]


class _Failing:
    """A file whose every call is answered as by a disk that is gone."""

    closed = False

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        return call

    def __iter__(self) -> Any:
        raise OSError(errno.EIO, "Input/output error")


def test_an_open_file_names_itself():
    calls = {"write": (b"x",), "read": (3,), "flush": (), "close": (), "seek": (0,), "readline": ()}
    file = named_file(cast(BinaryIO, _Failing()), "a.arrow")
    assert file.closed is False
    for name, arguments in calls.items():
        with pytest.raises(OSError, match=r"'a\.arrow'"):
            getattr(file, name)(*arguments)
    with pytest.raises(OSError, match=r"'a\.arrow'"):
        list(file)
    with pytest.raises(OSError, match=r"'a\.arrow'"), file:
        pass


def test_what_a_library_makes_of_it_is_seen_through():
    """As torch's writer does it: its own complaint comes while the system's is on its way."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    except RuntimeError as error:
        found = behind(error)
    assert found is not None
    assert found.message == "no space left on device"
    assert behind(ValueError("ours")) is None
