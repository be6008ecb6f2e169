"""run.json, read while others may write it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nemotron_dpo.documents import yaml_mapping
from nemotron_dpo.run_state import read_facts, read_json


def test_what_is_not_there_is_empty_and_what_cannot_be_read_is_no_such_thing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{")
    for empty in ("none", "none/run.json", "file", "file/run.json"):
        assert read_json(tmp_path / empty) == {}, empty
    loop = tmp_path / "run.json"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links") as caught:
        read_facts(tmp_path)
    assert caught.value.errno == errno.ELOOP


def test_a_pipe_or_a_device_is_no_file_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with (tmp_path / "large").open("wb") as file:
        file.write(b"{}")
        file.truncate(16_000_001)
    for name in ("pipe", "zeros", "large"):
        assert read_json(tmp_path / name) == {}, name
        assert yaml_mapping(tmp_path / name) == {}, name


def test_a_file_that_was_replaced_on_its_server_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"status": "done"}')
    read, stale = Path.read_bytes, [errno.ESTALE]

    def once_stale(path: Path) -> bytes:
        if stale:
            raise OSError(stale.pop(), "Stale file handle", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", once_stale)
    assert read_json(path) == {"status": "done"}
    stale[:] = [errno.ESTALE, errno.ESTALE]
    with pytest.raises(OSError, match="Stale"):
        read_json(path)
