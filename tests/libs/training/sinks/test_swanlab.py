"""SwanLab offline, read by its own reader: without a key, and as SWANLAB_MODE asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tracked import NOT_MONITORED, log_folder, told, track
from support.tracker_packages import tracker_environment

READ = """
import json, pathlib, sys
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
from swanlab.sdk.internal.core_python.store import DataStoreReader

rows = []
(path,) = pathlib.Path(sys.argv[1]).rglob("*.swanlab")
reader = DataStoreReader()
reader.open(path)
for data in reader:
    record = Record.FromString(data)
    if record.HasField("scalar"):
        rows.append([record.scalar.key, record.scalar.step, record.scalar.value.number])
print(json.dumps({"rows": rows, "config": path.with_name("files").joinpath("config.yaml").read_text()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "offline"])
def test_it_is_kept_offline(mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = tracker_environment(tmp_path)
    for name in ("PYTHONPATH", "HOME"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    monkeypatch.setenv("SWANLAB_MODE", mode) if mode else monkeypatch.delenv("SWANLAB_MODE", raising=False)
    said = track(tmp_path / "run", ["logger.swanlab_enabled=true", "logger.swanlab.project=p", NOT_MONITORED], 0, 3)
    assert [("kept offline" in line) for line in said] == [False, *([] if mode else [True])]
    read = told(READ, environment, log_folder(tmp_path / "run"))
    assert [row for row in read["rows"] if row[0] == "train/loss"] == [
        ["train/loss", n, pytest.approx(1 / n)] for n in (1, 2, 3)
    ]
    assert [row[1] for row in read["rows"] if row[0] == "validation-held/loss"] == [0, 3]
    assert "reference_policy_kl_penalty" in read["config"]
