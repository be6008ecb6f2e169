"""pairs_log.arrow has a row for every pair of every record, is readable while it grows, and goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import nemotron_dpo.training
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import PAIRS_LOG, TOKENIZED_PAIRS, open_reader
from nemotron_dpo.training.pair_values import PairValues
from nemotron_dpo.training.record import Record
from nemotron_dpo.training.sinks import RecordedRun
from nemotron_dpo.training.sinks.pairs_log import open_sink

NAME, LOGPS = "pairs_log.arrow", ("chosen_logp", "rejected_logp")
SOURCES = ["a.jsonl", "b.jsonl", None, "a.jsonl", "c.jsonl"]


def data(sources: Sequence[str | None]) -> Pairs:
    """A pair of each source: pair N has N + 1 prompt tokens, N + 2 chosen ones, one rejected one, and comes from line 10 N."""
    cut = {"chosen_truncated": False, "rejected_truncated": False}
    rows = [
        {
            "pair_id": bytes([row] * 16),
            "source_line": 10 * row,
            "prompt_ids": [5] * (row + 1),
            "chosen_ids": [6] * (row + 2),
            "rejected_ids": [7],
            "source": source,
            "source_file": None if source else f"part-{row}",
            **cut,
        }
        for row, source in enumerate(sources)
    ]
    return Pairs.of(pa.RecordBatch.from_pylist(rows, schema=TOKENIZED_PAIRS))


DATA = data(SOURCES)


def record(step: int, rows: list[int], split: str = "train", **values: float) -> Record:
    """What step `step` measured of `rows`: each value is `step` and the row's number behind the point, where none is given."""
    known = {name: [step + row / 8 for row in rows] for name in LOGPS}
    known |= {name: [value] * len(rows) for name, value in values.items()}
    by_name = {name: np.array(column, dtype=np.float32) for name, column in known.items()}
    return Record(step, split, {f"{split}/loss": 0.5}, PairValues(DATA, rows, by_name))


SCORED: dict[str, Any] = {"chosen_log_ratio": 0.25, "rejected_log_ratio": -0.5, "margin": 0.75, "loss": 0.375}
RECORDS = [
    record(0, [2, 0], "validation-held", **SCORED),
    record(1, [1, 4], **SCORED),
    record(2, [3, 2], **SCORED),
    record(2, [2, 0], "validation-held", **SCORED),
    record(3, [0, 1], **SCORED),
]


def written(folder: Path, records: list[Record], **run: Any) -> bytes:
    """The file once a run of these records is over."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(open_sink(RecordedRun(folder, **run))) as log:
        for one in records:
            log.write(one)
    return (folder / NAME).read_bytes()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    with open_reader(folder / NAME, "pairs_log") as reader:
        return reader.read_all().to_pylist()


def test_a_row_says_all_of_its_pair(tmp_path: Path) -> None:
    written(
        tmp_path, [*RECORDS[:2], record(2, [3]), Record(2, "train", {"timing/train/checkpointing": 1.0})], lineage={"x": "y"}
    )
    found = rows_of(tmp_path)
    assert found[0] == {
        "step": 0,
        "split": "validation-held",
        "pair_id": b"\2" * 16,
        "source": None,
        "source_file": "part-2",
        "source_line": 20,
        "prompt_tokens": 3,
        "chosen_tokens": 4,
        "rejected_tokens": 1,
        "chosen_logp": 0.25,
        "rejected_logp": 0.25,
        **SCORED,
    }
    told = [(row["step"], row["split"], row["pair_id"][0], row["source"]) for row in found]
    assert told == [
        (0, "validation-held", 2, None),
        (0, "validation-held", 0, "a.jsonl"),
        (1, "train", 1, "b.jsonl"),
        (1, "train", 4, "c.jsonl"),
        (2, "train", 3, "a.jsonl"),
    ]
    assert {name: found[4][name] for name in SCORED} == dict.fromkeys(SCORED)  # of an objective that compares nothing, unscored
    with open_reader(tmp_path / NAME, "pairs_log") as reader:
        assert reader.schema.equals(PAIRS_LOG)
        assert (reader.info.version, reader.info.digests) == (2, {"x": "y"})


def test_it_can_be_read_while_it_grows(tmp_path: Path) -> None:
    """By our reader, which says that more is to come, and by any other; a run that failed or was stopped has no trailer."""
    log = open_sink(RecordedRun(tmp_path))
    for number, one in enumerate(RECORDS, start=1):
        log.write(one)
        with open_reader(tmp_path / NAME, "pairs_log") as reader:
            table, wrong = reader.read_so_far()
        assert len(table) == 2 * number
        assert "ends without its trailer" in str(wrong)
        with pa.memory_map(str(tmp_path / NAME)) as file:
            assert pa.ipc.open_stream(file).read_all()["source_line"].to_pylist() == table["source_line"].to_pylist()
    log.close(failed=True)
    for folder, run in ((tmp_path, None), (tmp_path / "stopped", {"stopped_by": lambda: "SIGTERM"}), (tmp_path / "done", {})):
        if run is not None:
            written(folder, RECORDS, **run)
        with open_reader(folder / NAME, "pairs_log") as reader:
            table, wrong = reader.read_so_far()
        assert (len(table), wrong is None) == (10, folder.name == "done")


def test_a_resumed_run_has_the_file_of_one_that_was_never_ended(tmp_path: Path) -> None:
    """Wherever a kill cuts the file, what was before the step that the run goes on from is there, and nothing behind it."""
    whole = written(tmp_path / "whole", RECORDS)
    kept = len(written(tmp_path / "kept", RECORDS[:4], stopped_by=lambda: "SIGTERM"))
    for length in [*range(kept, len(whole), 97), len(whole)]:
        folder, heard = tmp_path / str(length), []
        folder.mkdir()
        (folder / NAME).write_bytes(whole[:length])
        assert written(folder, RECORDS[4:], done=2, say=heard.append) == whole
        assert (heard, [path.name for path in folder.iterdir()]) == ([], [NAME])


def test_a_run_that_begins_anew_keeps_nothing(tmp_path: Path) -> None:
    written(tmp_path, RECORDS)
    assert written(tmp_path, RECORDS[:1]) == written(tmp_path / "other", RECORDS[:1])


def _flipped(content: bytes) -> bytes:
    """A bit of a log-prob of step 2 is another."""
    place = content.index(np.float32(2 + 3 / 8).tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("content", "steps", "said"),
    [
        (lambda whole: whole[:10], [], ["{path}: is not an Arrow stream or is empty: did the stage before it fail?: it is written anew", "{path}: has no pairs of training step 1, 2"]),
        (lambda whole: None, [], ["{path}: has no pairs of training step 1, 2"]),
        (_flipped, [0, 0, 1, 1], ["{path}: is damaged behind 4 rows: what follows (6) is left out", "{path}: has no pairs of training step 2"]),
    ],
)  # fmt: skip
def test_what_is_lost_is_said(content: Any, steps: list[int], said: list[str], tmp_path: Path) -> None:
    whole, heard = written(tmp_path, RECORDS), []
    damaged = content(whole)
    (tmp_path / NAME).unlink()
    if damaged is not None:
        (tmp_path / NAME).write_bytes(damaged)
    written(tmp_path, RECORDS[4:], done=2, say=heard.append)
    assert heard == [f"warning: {line.format(path=tmp_path / NAME)}" for line in said]
    assert [row["step"] for row in rows_of(tmp_path)] == [*steps, 3, 3]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", no_space)
        yield


def test_a_log_that_cannot_be_begun_leaves_the_one_before(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole = written(tmp_path, RECORDS)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No space left"):
        open_sink(RecordedRun(tmp_path, done=2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {NAME: whole}


@pytest.mark.parametrize("library", ["duckdb", "polars"])
def test_the_examples_find_the_pairs_that_regressed_most(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are written in the README: of 12 pairs, validated three times, the ten whose margin fell most since the first."""
    pytest.importorskip(library)
    falls = [0.5, -3.0, 1.0, -8.0, 2.0, -1.0, 9.0, -0.25, 4.0, -6.0, 0.25, -2.0]  # of the pair of each line, from step 0 to 4
    margins = [
        (0, "validation-default", np.ones(12)),
        (0, "validation-other", np.full(12, 50.0)),
        (1, "train", np.full(12, -30.0)),
        (2, "validation-default", np.linspace(-20, 20, 12)),
        (4, "validation-default", 1 + np.array(falls)),
        (4, "validation-other", np.zeros(12)),
    ]
    many, rows = data(["a.jsonl"] * 12), list(range(12))
    records = []
    for step, split, given in margins:
        values = given.astype(np.float32)
        known = PairValues(many, rows, {LOGPS[0]: values, LOGPS[1]: values, "margin": values})
        records.append(Record(step, split, {}, known))
    (tmp_path / "work").mkdir()
    written(tmp_path / "work" / "logged", records)
    monkeypatch.chdir(tmp_path)
    text = (Path(nemotron_dpo.training.__path__[0]) / "README.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if f"import {library}" in code)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    worst = (
        names["worst"].fetchall() if library == "duckdb" else names["worst"].select("source", "source_line", "change").rows()
    )
    expected = sorted((fall, 10 * row) for row, fall in enumerate(falls))[:10]
    assert worst == [("a.jsonl", line, fall) for fall, line in expected]


def test_a_flipped_bit_is_never_taken_for_a_row(tmp_path: Path) -> None:
    """300 random bits, those of names and of Arrow's headers included: what is read are rows as they were, maybe fewer."""
    whole, rng, fewer = written(tmp_path, RECORDS), random.Random(0), 0
    rows = rows_of(tmp_path)
    for bit in rng.sample(range(8 * len(whole)), 300):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / NAME).write_bytes(content)
        with contextlib.suppress(UserError), open_reader(tmp_path / NAME, "pairs_log") as reader:
            table, wrong = reader.read_so_far()
            assert table.to_pylist() == rows[: len(table)], bit
            assert wrong is not None or len(table) == len(rows), bit
            fewer += wrong is not None
    assert fewer > 100
