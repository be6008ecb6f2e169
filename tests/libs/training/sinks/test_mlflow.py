"""MLflow's own client reads back what was logged into files, and its own server on loopback says what it was sent."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from nemotron_dpo.training import sinks
from nemotron_dpo.training.record import Record
from support import forks
from support.forked_host import fork_hosts
from support.programs import free_port
from support.tracked import LINEAGE, NOT_MONITORED, log_folder, recorded, told, track
from support.tracker_packages import tracker_environment

ASKED = ["logger.mlflow_enabled=true", NOT_MONITORED, "logger.mlflow.run_name=r", "logger.mlflow.experiment_name=e"]
LONG = "x" * 7000  # newer servers take 6000 characters of a param, older ones 500 or 250
IMPORTED = (
    "mlflow",
    "mlflow.store.tracking.file_store",
    "mlflow.store.tracking.rest_store",
    "nemotron_dpo.training.tracking.host",
)
READ = """
import json, os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
found = client.get_experiment_by_name("e")
(run,) = client.search_runs([found.experiment_id])
history = {name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
config = json.load(open(client.download_artifacts(run.info.run_id, "config.json")))
print(json.dumps({"name": run.info.run_name, "status": run.info.status, "params": run.data.params, "history": history, "config": config}))
"""


def _enter(monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, str]:
    environment = dict(tracker_environment(home, MLFLOW_DISABLE_TELEMETRY="true"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PYTHONPATH", "HOME"):
        monkeypatch.setenv(name, environment[name])
    return environment


def _python(environment: Mapping[str, str]) -> forks.Python:
    """One that has imported MLflow, which most of the time of a tracker's process goes into."""
    known = (("PYTHONPATH", environment["PYTHONPATH"]), ("MLFLOW_DISABLE_TELEMETRY", "true"))
    return forks.Python(variables=known, first=IMPORTED)


def _client(environment: Mapping[str, str], uri: str, script: Path) -> dict:
    """What READ prints, whose place is `script`."""
    if not forks.can_fork(environment, python := _python(environment)):
        return told(READ, environment, uri)
    script.write_text(READ)
    done = forks.run([sys.executable, str(script), uri], env=environment, python=python)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _server(folder: Path, port: int, environment: dict[str, str]) -> Iterator[None]:
    """MLflow's server with a database in `folder`, as `mlflow server` starts it; that needs as long again to do so."""
    folder.mkdir()
    argv = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), "mlflow.server.fastapi_app:app"]
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/m.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            argv, env={**environment, **settings}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _served(uri: str) -> dict:
    """What READ prints, as the server says it."""

    def get(place: str, **query: str) -> dict:
        with urllib.request.urlopen(f"{uri}/{place}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return json.load(answer)

    found = get("api/2.0/mlflow/experiments/get-by-name", experiment_name="e")["experiment"]["experiment_id"]
    asked = urllib.request.Request(f"{uri}/api/2.0/mlflow/runs/search", json.dumps({"experiment_ids": [found]}).encode())
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        (run,) = json.load(answer)["runs"]
    info, data = run["info"], run["data"]
    history = {
        name: [
            [m["step"], m["value"]]
            for m in get("api/2.0/mlflow/metrics/get-history", run_id=info["run_id"], metric_key=name)["metrics"]
        ]
        for name in (metric["key"] for metric in data["metrics"])
    }
    params = {param["key"]: param["value"] for param in data["params"]}
    config = get("get-artifact", path="config.json", run_uuid=info["run_id"])
    return {"name": info["run_name"], "status": info["status"], "params": params, "history": history, "config": config}


def _check(read: dict) -> None:
    """Check what is there of a run of seven steps that was killed after step 5 and resumed after 3."""
    assert (read["name"], read["status"]) == ("r", "FINISHED")
    assert read["history"]["train/loss"] == [[step, pytest.approx(1 / step)] for step in range(1, 8)]
    assert [step for step, _ in read["history"]["validation-held/loss"]] == [0, 5, 7]
    assert read["params"]["dpo.reference_policy_kl_penalty"] == "0.05"
    assert read["params"]["policy.optimizer.betas.1"] == "0.999"
    assert read["params"]["lineage.train.reference"] == LINEAGE["train.reference"]
    assert read["params"]["logger.wandb.notes"] == LONG[:500]
    assert read["config"]["config"]["logger"]["wandb"]["notes"] == LONG
    assert read["config"]["config"]["dpo"]["max_num_steps"] == 500


@pytest.mark.slow
def test_files_have_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = _enter(monkeypatch, tmp_path)
    fork_hosts(monkeypatch, _python(environment))
    run, asked = tmp_path / "run", [*ASKED, f"logger.wandb.notes={LONG}"]
    said = track(run, asked, 0, 5) + track(run, asked, 4, 7)
    assert said == [f"tracked by mlflow: {log_folder(run)}"] * 2
    _check(_client(environment, (log_folder(run) / "mlflow").as_uri(), tmp_path / "read.py"))


@pytest.mark.slow
def test_its_server_is_waited_for_and_has_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts after the run, whose first records wait for it. NaN, on which its pages fail, is left out."""
    environment, port, said = _enter(monkeypatch, tmp_path), free_port(), []
    fork_hosts(monkeypatch, _python(environment))
    uri, run = f"http://127.0.0.1:{port}", tmp_path / "run"
    asked = [*ASKED, f"logger.wandb.notes={LONG}", f"logger.mlflow.tracking_uri={uri}"]
    with sinks.opened(recorded(run, asked, say=said.append)) as recording:
        recording.write(Record(0, "validation-held", {"validation-held/loss": 0.5}))
        for step in range(1, 6):
            recording.write(Record(step, "train", {"train/loss": 1 / step, "train/accuracy": math.nan if step == 2 else 1.0}))
        recording.write(Record(5, "validation-held", {"validation-held/loss": 0.5}))
        end = time.monotonic() + 280  # a busy machine takes minutes to start the server
        while not any("is not there" in line for line in said):
            assert time.monotonic() < end
            time.sleep(0.1)
        with _server(tmp_path / "server", port, environment):
            while not any("left out" in line for line in said):
                assert time.monotonic() < end
                time.sleep(0.1)
            _closed(recording)
            said += track(run, asked, 4, 7)
            read = _served(uri)
    _check(read)
    assert [step for step, _ in read["history"]["train/accuracy"]] == [1, 3, 4, 5]
    what = [line.removeprefix("mlflow: ").removeprefix("warning: ") for line in said if line.startswith("mlflow")]
    assert what[0].startswith("the server is not there, and is tried again: API request to ")
    assert what[1:] == [
        "the server is there again",
        "values that are not finite are left out, the first train/accuracy of step 2",
    ]


def _closed(recording: sinks.Sinks) -> None:
    """Close the trackers before the block of the sinks ends."""
    for sink in recording.members:
        sink.close()


@pytest.mark.slow
def test_a_server_that_answers_nothing_is_left_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers: the end is waited for as long as is set, and the process is gone."""
    import socket

    from nemotron_dpo.training.tracking import trackers

    _enter(monkeypatch, tmp_path)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = track(
            tmp_path / "run", [*ASKED, f"logger.mlflow.tracking_uri=http://127.0.0.1:{silent.getsockname()[1]}"], 0, 50
        )
    assert said[1:] == [
        f"warning: mlflow did not take everything in time and was stopped: see {log_folder(tmp_path / 'run')}/mlflow.log; "
        "metrics.jsonl has every metric",
    ]
