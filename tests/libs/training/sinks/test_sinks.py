"""A tracker is one file: what lies in the folder of the sinks is opened, fed, synced and closed."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from nemotron_dpo.training import sinks
from nemotron_dpo.training.record import Record

TRACKER = """
class Tracker:
    def __init__(self, run):
        self.file = (run.folder / "heard.txt").open("w")
        self.file.write(f"open {run.done} {run.logger['project']}\\n")

    def write(self, record):
        self.file.write(f"write {record.step} {record.split} {dict(record.values)}\\n")

    def sync(self):
        self.file.write("sync\\n")

    def close(self, *, failed=False):
        self.file.write("close\\n")
        self.file.close()


def open_sink(run):
    return Tracker(run) if run.logger.get("project") else None
"""
FAILING = "def open_sink(run): raise OSError(28, 'No space left on device')"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules count as sinks too."""
    folder = tmp_path / "more"
    folder.mkdir()
    monkeypatch.setattr(sinks, "__path__", [*sinks.__path__, str(folder)])
    return folder


def test_a_tracker_is_one_file(folder: Path, tmp_path: Path) -> None:
    (folder / "my_tracker.py").write_text(TRACKER)
    first, last = Record(4, "train", {"train/loss": 0.5}), Record(4, "validation-v", {"validation-v/loss": 0.25})
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(b'{"step":%d,"train/loss":1.0}\n' % step for step in (1, 2, 3)))
    with sinks.opened(sinks.RecordedRun(tmp_path, 3, {"project": "p"})) as recording:
        recording.write(first)
        recording.sync()
        recording.write(last)
    assert (tmp_path / "heard.txt").read_text().splitlines() == [
        "open 3 p",
        "write 4 train {'train/loss': 0.5}",
        "sync",
        "write 4 validation-v {'validation-v/loss': 0.25}",
        "close",
    ]
    lines = [orjson.loads(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert lines[3:] == [{"step": 4, "train/loss": 0.5}, {"step": 4, "validation-v/loss": 0.25}]


def test_one_that_is_not_asked_for_and_a_rank_that_records_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "silent_tracker.py").write_text(TRACKER)
    with sinks.opened(sinks.RecordedRun(tmp_path)) as recording:
        assert [type(member).__name__ for member in recording.members] == ["MetricsFile", "PairsLog", "RunFile"]
    with sinks.opened(None) as recording:
        recording.write(Record(1, "train", {}))
        recording.sync()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "more", "pairs_log.arrow", "run.json"]


def test_what_was_opened_is_closed_where_another_cannot_be(folder: Path, tmp_path: Path) -> None:
    (folder / "a_tracker.py").write_text(TRACKER)
    (folder / "z_tracker.py").write_text(FAILING)
    with pytest.raises(OSError, match="No space left"), sinks.opened(sinks.RecordedRun(tmp_path, 0, {"project": "p"})):
        pass
    assert (tmp_path / "heard.txt").read_text() == "open 0 p\nclose\n"
