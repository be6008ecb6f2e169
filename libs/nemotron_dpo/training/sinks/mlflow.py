"""MLflow: a server, a database or, where neither the config nor the environment names one, files in `LOG_DIR/exp_NNN/mlflow`.

The client alone is needed (mlflow-skinny), and server and database as far as their address asks for more.
"""

# its library is an extra of pyproject.toml
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import TrackedRun, flat

T = TypeVar("T")
_PARAM_LENGTH = 500  # the most that every server takes; newer ones take 6000
_PARAMS_AT_ONCE = 100
_RETRY_SECONDS = (1.0, 15.0)  # before the first time and, doubled each time, before the last ones


def start(run: TrackedRun) -> MlflowRun:
    """Begin a run, or go on with the one that is known or that the settings name."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else its newer versions refuse folders
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked for it
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # `_patiently` tries on
    from mlflow import MlflowClient

    uri = run.settings.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or run.folder.as_uri()
    client = MlflowClient(uri)
    is_new = not run.known
    run_id = _patiently(lambda: _run_id(client, run), run.say)
    run.remember({"run_id": run_id})
    client.update_run(run_id, status="RUNNING")
    tracking = MlflowRun(client, run_id, run.done, run.say)
    if is_new:
        tracking.describe({"config": run.config, "lineage": run.lineage})
    return tracking


def _run_id(client: Any, run: TrackedRun) -> str:
    """The id of the run in MLflow."""
    settings = run.settings
    known = run.known.get("run_id") or settings.get("run_id") or os.environ.get("MLFLOW_RUN_ID")
    if known:
        return client.get_run(known).info.run_id
    experiment = settings.get("experiment_name") or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    name = settings.get("run_name") or os.environ.get("MLFLOW_RUN_NAME") or run.name
    return client.create_run(_experiment_id(client, experiment, settings), run_name=name).info.run_id


def _experiment_id(client: Any, name: str, settings: Mapping[str, Any]) -> str:
    """The id of the experiment `name`, made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=settings.get("artifact_location"))
    except MlflowException:  # another run was first
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


class MlflowRun:
    """Logs a batch of metrics a record. What an earlier process of the run logged of a step already stays as it is."""

    def __init__(self, client: Any, run_id: str, done: int, say: Callable[[str], object]) -> None:
        self._client, self._id, self._say = client, run_id, say
        self._last: dict[str, int] = {}  # by split, the last step that is there already
        self._done = done
        self._left_out = False

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Log hyperparameters and lineage as params, which have limits, and as config.json, which has none."""
        from mlflow.entities import Param

        named = {**flat(facts["config"]), **{f"lineage.{name}": digest for name, digest in facts["lineage"].items()}}
        params = [Param(_name(name)[:250], str(value)[:_PARAM_LENGTH]) for name, value in named.items()]
        try:
            for first in range(0, len(params), _PARAMS_AT_ONCE):
                batch = params[first : first + _PARAMS_AT_ONCE]
                _patiently(lambda batch=batch: self._client.log_batch(self._id, params=batch), self._say)
            self._client.log_text(self._id, json.dumps(facts, indent=2, default=str), "config.json")
        except Exception as error:  # some services take fewer params, and artifacts have a store with rights of its own
            self._say(f"warning: hyperparameters could not be stored in full: {' '.join(str(error).split())[:200]}")

    def write(self, record: Record) -> None:
        """Log the values of `record` under its step."""
        from mlflow.entities import Metric

        if record.step <= self._logged_to(record):
            return
        now, finite = int(time.time() * 1000), {n: v for n, v in record.values.items() if math.isfinite(v)}
        if len(finite) < len(record.values) and not self._left_out:  # its pages fail on NaN, its databases change infinity
            self._left_out = True
            name = next(name for name in record.values if name not in finite)
            self._say(f"values that are not finite are left out, the first {name} of step {record.step}")
        metrics = [Metric(_name(name), float(value), now, record.step) for name, value in finite.items()]
        _patiently(lambda: self._client.log_batch(self._id, metrics=metrics), self._say)

    def close(self, *, failed: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

    def _logged_to(self, record: Record) -> int:
        """The last step that the run has of this split from before; -1 where it has none."""
        if self._done == 0:
            return -1
        if record.split not in self._last:
            name = _name(next(iter(record.values)))
            history = _patiently(lambda: self._client.get_metric_history(self._id, name), self._say)
            self._last[record.split] = max((metric.step for metric in history), default=-1)
        return self._last[record.split]


def _name(name: str) -> str:
    """`name` as MLflow takes it."""
    return re.sub(r"[^\w./ \-]", "_", name)


def _patiently(call: Callable[[], T], say: Callable[[str], object]) -> T:
    """What `call` gives, once the server is there; how long that takes is bounded by who feeds this process."""
    from mlflow.exceptions import MlflowException

    pause, longest = _RETRY_SECONDS
    is_said = False
    while True:
        try:
            result = call()
        except MlflowException as error:
            why = " ".join(str(error).split())[:200]
            is_absent = error.get_http_status_code() >= 500 and re.match("API request to .* failed with", why)
            if not is_absent:
                raise
            if not is_said:
                say(f"warning: the server is not there, and is tried again: {why}")
            is_said = True
            time.sleep(pause)
            pause = min(2 * pause, longest)
        else:
            if is_said:
                say("the server is there again")
            return result
