"""TensorBoard's own reader finds what metrics.jsonl has, each step once, also of a run that was resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tracked import LINEAGE, log_folder, records, told, track
from support.tracker_packages import tracker_environment

READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

read = {}
for folder in sys.argv[1:]:
    events = EventAccumulator(folder)
    events.Reload()
    read |= {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    if "run" in events.Tags()["tensors"]:
        read["text"] = events.Tensors("run")[0].tensor_proto.string_val[0].decode()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = HParamsPluginData.FromString(content).session_start_info.hparams
        read["hparams"] = {name: value.number_value or value.string_value for name, value in hparams.items()}
print(json.dumps(read))
"""


@pytest.mark.slow
def test_each_step_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = tracker_environment(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    asked = ["logger.tensorboard_enabled=true", "logger.gpu_monitoring.collection_interval=0.2"]
    said = track(tmp_path / "run", asked, 0, 5) + track(tmp_path / "run", asked, 4, 6)  # killed after step 5, resumed after 3
    log = log_folder(tmp_path / "run")
    assert said == [f"tracked by tensorboard: {log}"] * 2
    read = told(READ, environment, log / "tensorboard", log / "tensorboard" / "machine")
    assert read["train/loss"] == [[step, pytest.approx(1 / step)] for step in range(1, 7)]
    assert read["train/lr"] == [[step, pytest.approx(5e-7)] for step in range(1, 7)]
    assert [step for step, _ in read["validation-held/loss"]] == [0, 6]  # that of step 5 was of the part that is done again
    assert read["hparams"]["dpo.reference_policy_kl_penalty"] == 0.05
    assert read["hparams"]["lineage.train.reference"] == LINEAGE["train.reference"]
    assert '"max_num_steps": 500' in read["text"]
    seconds = [step for step, _ in read["ray/node.0.mem_gb"]]
    assert seconds == sorted(seconds)
    assert {name for name in read if name.startswith("ray/")} >= {"ray/node.0.mem_total_gb", "ray/node.0.cpu.util"}
    assert len(records(0, 5)) == 7
