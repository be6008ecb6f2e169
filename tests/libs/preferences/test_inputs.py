"""Chunks of rows: cut by size alone, whatever the line ends; and results in order from any number of workers."""

from __future__ import annotations

import gc
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences import inputs, lines
from nemotron_dpo.preferences.lines import Chunk, TooLong, line_chunks
from nemotron_dpo.preferences.workers import ordered_map


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"").replace(b"\xef", b"")), max_size=30), st.integers(1, 40)
)
def test_lines_are_numbered_and_bounded(contents: list[bytes], limit: int) -> None:
    whole = b"".join(line + b"\n" for line in contents)
    chunks = list(line_chunks(io.BufferedReader(io.BytesIO(whole)), "s", limit))  # type: ignore[arg-type] - all that is asked of it is read
    found = [row for chunk in chunks for row in chunk.rows]
    assert [TooLong() if len(line) > limit else line + b"\n" for line in contents] == found
    assert [chunk.first_line for chunk in chunks] == ([1] if contents else [])


def test_chunks_are_cut_by_bytes_and_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 10)
    monkeypatch.setattr(lines, "CHUNK_ROWS", 3)
    raw = io.BufferedReader(io.BytesIO(b"aaaa\nbbbb\nc\n\n\nd"))  # type: ignore[arg-type] - all that is asked of it is read
    chunks = [(chunk.first_line, chunk.rows) for chunk in line_chunks(raw, "s", 99)]
    assert chunks == [(1, [b"aaaa\n", b"bbbb\n"]), (3, [b"c\n", b"\n", b"\n"]), (6, [b"d"])]


def test_a_huge_line_is_not_held() -> None:
    class Endless(io.RawIOBase):
        left = 64 << 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            count = min(len(buffer), self.left)
            self.left -= count
            buffer[:count] = b"a" * count
            return count

    import tracemalloc

    tracemalloc.start()
    (chunk,) = line_chunks(io.BufferedReader(Endless()), "s", 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunk.rows == [TooLong()]
    assert peak < 8 << 20


def test_folders_and_globs_are_sorted_and_hidden_junk_is_left_out(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "sub/c.jsonl.gz", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = [str(tmp_path / name) for name in ("a.parquet", "b.jsonl", "sub/c.jsonl.gz")]
    assert inputs.expand([str(tmp_path)]) == listed
    assert inputs.expand(["-", str(tmp_path / "*.jsonl"), str(tmp_path / "readme.md")]) == [
        "-",
        str(tmp_path / "b.jsonl"),
        str(tmp_path / "readme.md"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without"):
        inputs.expand([str(tmp_path / "empty")])


def test_digest_is_of_contents_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    # sha256 of "1", from the standard's test tools
    assert inputs.digest([a]) == "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert inputs.digest([a, b]) != inputs.digest([b, a])
    assert inputs.digest([a, "-"]) == "stream"


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 99])
def test_limit(limit: int) -> None:
    chunks = [Chunk("s", 1, [1, 2]), Chunk("s", 3, [3, 4])]
    limited = inputs.limit_rows(iter(chunks), limit)
    assert [row for chunk in limited for row in chunk.rows] == [1, 2, 3, 4][:limit]


def slow_when_even(offset: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        time.sleep(0.01 * (item % 2 == 0))
        if item == 1000:
            raise ValueError("told")
        if item == 2000:
            os._exit(9)
        return item + offset

    return work


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.multiprocess
def test_results_come_in_order(num_workers: int) -> None:
    with ordered_map(slow_when_even, 7, num_workers) as results:
        assert list(results(range(30))) == list(range(7, 37))
        with pytest.raises(ValueError, match="told"):
            list(results([1, 1000, 2]))


def test_what_somebody_else_has_frozen_stays_so() -> None:
    """A process that has more to do would look at all of it again."""
    gc.freeze()
    frozen, threshold = gc.get_freeze_count(), gc.get_threshold()
    with ordered_map(slow_when_even, 7, 1) as results:
        assert list(results([1])) == [8]
        assert gc.get_threshold() > threshold
    assert gc.get_freeze_count() > frozen // 2  # some are freed by and by
    assert gc.get_threshold() == threshold


@pytest.mark.multiprocess
def test_a_dead_worker_is_told() -> None:
    with ordered_map(slow_when_even, 7, 2) as results, pytest.raises(UserError, match="a worker process died"):
        list(results([1, 2000, 3]))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json"])
def test_at_the_end_of_the_files_all_of_their_bytes_were_read(name: str, tmp_path: Path) -> None:
    """Whatever reads them: this is what a person is shown."""
    texts = {"x.csv": "a,b\n1,2\n", "x.tsv": "a\tb\n1\t2\n", "x.jsonl": '{"a": 1}\n', "x.json": '[{"a": 1}]\n'}
    files, places = [tmp_path / name, tmp_path / f"more-{name}"], [0]
    for file in files:
        file.write_text(texts[name])
    chunks = list(inputs.read_chunks([str(file) for file in files], 1 << 20, None, places.append))
    assert [sum(row != b"" for row in chunk.rows) for chunk in chunks if chunk.rows] == [1, 1]
    assert places[-1] == 2 * len(texts[name])
    assert places == sorted(places)
