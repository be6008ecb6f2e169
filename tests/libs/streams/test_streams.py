"""Streams are whole or an error: trailers, provenance, atomic files, pipes."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import SCORED_PAIRS, TOKENIZED_PAIRS, StreamInfo, open_reader, open_writer, published_file, spool
from support import version_1
from support.stream_rows import INFO, batch, lines_read, unannounced, write


@pytest.mark.parametrize("batches", [[], [batch(0)], [batch(2), batch(0), batch(3, 2)]])
def test_rows_and_provenance_come_back(tmp_path: Path, batches: list[pa.RecordBatch]) -> None:
    path = write(tmp_path / "a.arrow", *batches)
    with open_reader(path, "tokenized_pairs") as reader:
        assert reader.info == INFO
        assert reader.read_all()["source_line"].to_pylist() == list(range(sum(b.num_rows for b in batches)))
    assert os.listdir(tmp_path) == ["a.arrow"]


@pytest.mark.parametrize("name", version_1.STREAMS)
def test_version_1_is_read_in_the_columns_of_this_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(version_1.STREAMS[name])
    with open_reader(path, name) as reader:
        table = reader.read_all()
        assert (reader.info.version, reader.info.settings, reader.warning) == (1, {"max_length": 8}, None)
        assert table.schema == reader.schema == {"tokenized_pairs": TOKENIZED_PAIRS, "scored_pairs": SCORED_PAIRS}[name]
    ids = {"prompt_ids": [1], "chosen_ids": [1, 2], "rejected_ids": [3], "chosen_truncated": False, "rejected_truncated": True}
    added = {"source": None, "chosen_reward": None, "rejected_reward": None, "source_file": None}
    scores = {"ref_chosen_logps": [-0.5, -1.0], "ref_rejected_logps": [-2.0]} if name == "scored_pairs" else {}
    assert table.to_pylist()[1] == {"pair_id": (1).to_bytes(16, "big"), "source_line": 2, **ids, **added, **scores}
    pairs = Pairs.of(table)
    assert (pairs.source[0], pairs.source.counts()) == ("", {"": 2})
    assert np.isnan([pairs.chosen_reward, pairs.rejected_reward]).all()
    copy = write(tmp_path / "copy", *table.to_batches(), info=StreamInfo(name, "tests", "0"))
    with open_reader(copy, name) as reader:
        assert (reader.info.version, reader.read_all()) == (3, table)
    content = bytearray(path.read_bytes())
    content[content.index((1).to_bytes(16, "big")) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged in rows 1 to 2: its checksum differs"):
        lines_read(path, name)


def test_version_2_is_read_with_no_file_named(tmp_path: Path) -> None:
    lacks = [column for column in TOKENIZED_PAIRS if column.name != "source_file"]
    with (tmp_path / "a").open("wb") as file:
        described = replace(INFO, version=2).attach(pa.schema(lacks))
        described = described.with_metadata({key: value for key, value in described.metadata.items() if key != b"crc32"})
        with pa.ipc.new_stream(file, described) as stream:
            stream.write_batch(batch(2).select([column.name for column in lacks]))
            stream.write_batch(batch(0).select([column.name for column in lacks]), custom_metadata={"rows": "2"})
    with open_reader(tmp_path / "a", "tokenized_pairs") as reader:
        table = reader.read_all()
    assert table.schema == TOKENIZED_PAIRS
    assert (table["source"].to_pylist(), table["source_file"].to_pylist()) == (["", "prefs.jsonl"], [None, None])


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", batch(2), batch(3, 2)).read_bytes()
    cut = tmp_path / "cut"
    assert lines_read(tmp_path / "whole") == [0, 1, 2, 3, 4]
    end_of_stream = 8
    messages = []
    for length in range(1, len(whole) - end_of_stream, 8):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError) as caught:
            lines_read(cut)
        messages.append(str(caught.value))
    assert all(message.startswith(f"{cut}: ") for message in messages)
    assert "the stream from preference-tokenize" in messages[-1]
    assert "after 5 rows" in messages[-1]


def test_a_file_that_is_cut_while_it_is_read_is_told_before_it_is_looked_at(tmp_path: Path) -> None:
    """What lies behind the cut is gone from memory too: to touch it would end the process."""
    path = write(tmp_path / "x.arrow", batch(2), batch(3, 2))
    with open_reader(path, "tokenized_pairs") as reader:
        rows = iter(reader)
        next(rows)
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(UserError, match=r"x\.arrow: the stream from \S+ was cut while it was read, after 2 rows"):
            next(rows)


def without_trailer(path: Path, rows: int | str | None) -> None:
    with path.open("wb") as file, pa.ipc.new_stream(file, unannounced(INFO)) as stream:
        stream.write_batch(batch(2))
        if rows is not None:
            stream.write_batch(batch(0), custom_metadata={b"rows": str(rows).encode()})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "ends without its trailer after 2 rows"),
        ("2x", "has 2 rows where its trailer says '2x' after 2 rows"),
        (3, "has 2 rows where its trailer says '3' after 2 rows"),
        (2, None),
    ],
)
def test_the_trailer_must_agree(tmp_path: Path, rows: int | str | None, words: str | None) -> None:
    without_trailer(tmp_path / "a", rows)
    if words is None:
        assert lines_read(tmp_path / "a") == [0, 1]
        with open_reader(tmp_path / "a", "tokenized_pairs") as reader:
            assert str(reader.warning).startswith(f"{tmp_path}/a: has no checksums: write it again")
        return
    with pytest.raises(UserError, match=words):
        lines_read(tmp_path / "a")


def foreign(path: Path) -> None:
    with path.open("wb") as file, pa.ipc.new_stream(file, TOKENIZED_PAIRS) as stream:
        stream.write_batch(batch(1))


def newer(path: Path) -> None:
    write(path, batch(1), info=StreamInfo("tokenized_pairs", "preference-tokenize", "9.9", version=4))


def other_columns(path: Path) -> None:
    with path.open("wb") as file, pa.ipc.new_stream(file, INFO.attach(SCORED_PAIRS)) as stream:
        stream.close()


REFUSED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "missing": (lambda path: None, (), "no such file"),
    "folder": (lambda path: path.mkdir(), (), "is a folder where an Arrow stream is due"),
    "empty": (lambda path: path.write_bytes(b""), (), "is empty: did the stage before it fail?"),
    "text": (lambda path: path.write_text("{}\n" * 99), (), "is JSON where an Arrow stream is due: make a stream of it with preference-tokenize"),
    "foreign": (foreign, (), "is an Arrow stream but not one of tokenized_pairs"),
    "newer": (
        newer, (), "holds tokenized_pairs/4; this program reads tokenized_pairs/1 to /3: read it with the version that",
    ),
    "other columns": (other_columns, (), "says that it holds tokenized_pairs/3, and has other columns: write it again"),
    "not scored": (
        lambda path: write(path), ("scored_pairs",), "holds tokenized_pairs where scored_pairs is due: run ref-logprobs on it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "accept", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_stream_is_refused(tmp_path: Path, make: Any, accept: tuple[str, ...], words: str) -> None:
    make(tmp_path / "a")
    with pytest.raises(UserError) as caught:
        lines_read(tmp_path / "a", *accept)
    assert str(caught.value).startswith(f"{tmp_path}/a: {words}")


def fail_after_writing(path: Path) -> None:
    with contextlib.suppress(RuntimeError), open_writer(path, INFO) as writer:
        writer.write(batch(3))
        raise RuntimeError


def test_a_failed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", batch(1))
    before = path.read_bytes()
    fail_after_writing(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_pipe_is_written_in_place_and_must_end_with_its_trailer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read = io.BytesIO()
    reader = threading.Thread(target=lambda: read.write((tmp_path / "pipe").read_bytes()))
    reader.start()
    fail_after_writing(tmp_path / "pipe")
    reader.join()
    (tmp_path / "copy").write_bytes(read.getvalue())
    with pytest.raises(UserError, match="the stream from preference-tokenize"):
        lines_read(tmp_path / "copy")


@pytest.mark.parametrize("name", ["none/a", "."])
def test_an_unwritable_target_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as caught, published_file(tmp_path / name):
        pytest.fail("must not be entered")
    assert not os.path.basename(str(caught.value.filename)).startswith(".")


WRITE = """
import os, sys
sys.path[:0] = {path!r}
from nemotron_dpo.errors import UserError
from nemotron_dpo.streams import *
try:
    with open_writer("-", StreamInfo("tokenized_pairs", "p", "1")) as writer: pass
except UserError as error:
    print(error, error.usage, file=sys.stderr)
"""


def test_stdout_is_refused_in_a_job_of_several_processes() -> None:
    environment = {**os.environ, "WORLD_SIZE": "2"}
    argv = [sys.executable, "-c", WRITE.format(path=sys.path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "-o - cannot be used with WORLD_SIZE > 1: use a file True\n"
    assert done.stdout == ""


def test_stdout_is_refused_on_a_terminal() -> None:
    controller, terminal = os.openpty()
    argv = [sys.executable, "-c", WRITE.format(path=sys.path)]
    done = subprocess.run(argv, stdout=terminal, stderr=subprocess.PIPE, text=True, check=True)
    os.close(controller)
    os.close(terminal)
    assert done.stderr == "<stdout>: refusing to write a binary stream to a terminal: pipe it or give -o FILE True\n"


def test_spool_takes_a_file_where_it_lies(tmp_path: Path) -> None:
    path = write(tmp_path / "a", batch(1))
    assert spool(str(path), tmp_path / "spooled") == path
    with pytest.raises(UserError, match="no such file"):
        spool(str(tmp_path / "none"), tmp_path / "spooled")


def test_spool_keeps_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "a", batch(4)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole)))
    assert lines_read(spool("-", tmp_path / "spooled")) == [0, 1, 2, 3]
