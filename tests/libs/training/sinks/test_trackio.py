"""Trackio's own storage has each step once, also of a run that was resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tracked import LINEAGE, NOT_MONITORED, log_folder, told, track
from support.tracker_packages import tracker_environment

READ = """
import json
from trackio.sqlite_storage import SQLiteStorage

logs = SQLiteStorage.get_logs("p", "n")
print(json.dumps({"logs": logs, "config": SQLiteStorage.get_run_config("p", "n")}, default=str))
"""


@pytest.mark.slow
def test_each_step_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["logger.trackio_enabled=true", "logger.trackio={project: p, name: n}", NOT_MONITORED]
    environment = tracker_environment(tmp_path)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    for name in ("PYTHONPATH", "HOME"):
        monkeypatch.setenv(name, environment[name])
    said = track(tmp_path / "run", asked, 0, 5) + track(tmp_path / "run", asked, 4, 7)
    log = log_folder(tmp_path / "run")
    assert said == [f"tracked by trackio: {log}"] * 2
    read = told(READ, {**environment, "TRACKIO_DIR": str(log / "trackio")})
    losses = [(row["step"], row["train/loss"]) for row in read["logs"] if "train/loss" in row]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 8)]
    assert [row["step"] for row in read["logs"] if "validation-held/loss" in row] == [0, 5, 7]
    assert read["config"]["lineage"] == LINEAGE
