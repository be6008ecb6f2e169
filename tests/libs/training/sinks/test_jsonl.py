"""metrics.jsonl goes on without what is damaged in it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.sinks import RecordedRun
from nemotron_dpo.training.sinks.jsonl import open_sink

RECORDS = [{"step": 0, "validation-v/loss": 0.7}, *({"step": step, "train/loss": 1 / step} for step in range(1, 6))]
LINES = [orjson.dumps(record) for record in RECORDS]
NONE = "line 3 is damaged and left out"


@pytest.mark.parametrize(
    ("lines", "kept", "said"),
    [
        (LINES, [0, 1, 2, 3], []),  # those of steps 4 and 5 are measured again
        ([*LINES[:4], b"", *LINES[4:]], [0, 1, 2, 3], ["line 5 is damaged and left out"]),
        ([LINES[0], LINES[1], b'{"step":2,"train/', LINES[3]], [0, 1, 3], [NONE, "has no record of training step 2"]),
        ([LINES[0], LINES[1], b"\xff", *LINES[2:]], [0, 1, 2, 3], [NONE]),
        ([LINES[0], LINES[1], b"[1]", *LINES[2:]], [0, 1, 2, 3], [NONE]),
        ([LINES[0], LINES[1], b'{"train/loss":1.0}', *LINES[2:]], [0, 1, 2, 3], [NONE]),
        ([LINES[0], LINES[1], b'{"step":"2"}', *LINES[2:]], [0, 1, 2, 3], [NONE]),
        ([LINES[0], LINES[5], *LINES[2:]], [0, 2, 3], ["has no record of training step 1"]),  # its number was another
        ([], [], ["has no record of training step 1, 2, 3"]),
    ],
)
def test_a_damaged_line_costs_no_other(lines: list[bytes], kept: list[int], said: list[str], tmp_path: Path) -> None:
    heard: list[str] = []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b'{"step":4,"tr')  # as a kill tears it
    with contextlib.closing(open_sink(RecordedRun(tmp_path, done=3, say=heard.append))) as metrics:
        metrics.write(Record(4, "train", {"train/loss": 1 / 4}))
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == [RECORDS[place] for place in (*kept, 4)]
    assert heard == [f"warning: {path}: {line}" for line in said]


def test_lost_metrics_are_said(tmp_path: Path) -> None:
    heard: list[str] = []
    open_sink(RecordedRun(tmp_path, done=12, say=heard.append)).close()
    listed = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"
    assert heard == [f"warning: {tmp_path}/metrics.jsonl: has no record of training step {listed}"]
