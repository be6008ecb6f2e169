"""Lepton: submit through NeMo-Run's executor, ask its client how the job is, and read the log ourselves.

NeMo-Run's own launch runs a script that the job fetches from the network, and its log reader waits for ever for a job that
has already failed; neither is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.cloud import vendor
from nemotron_dpo.steps.executors.cloud.log import StreamedLog, pieces
from nemotron_dpo.steps.executors.cloud.submission import Submission
from nemotron_dpo.steps.executors.shared.attend import Say
from nemotron_dpo.steps.executors.shared.follow import JobState, NoAnswer

_LOGIN = "lep login, or set LEPTON_WORKSPACE_ID and LEPTON_WORKSPACE_TOKEN"
_STREAM_SECONDS = 60
# Lepton's word -> Slurm's
_STATES = {
    "Starting": "PENDING", "Queueing": "PENDING", "Awaiting": "PENDING", "PendingRetry": "PENDING", "Restarting": "PENDING",
    "Running": "RUNNING", "Stopping": "RUNNING", "Deleting": "RUNNING", "Completed": "COMPLETED", "Failed": "FAILED",
    "Stopped": "CANCELLED", "Deleted": "CANCELLED", "Archived": "COMPLETED",
}  # fmt: skip


@dataclass(frozen=True)
class LeptonJob:
    """One job of a workspace."""

    executor: Any
    client: Any
    job_id: str
    log: StreamedLog
    secrets: tuple[str, ...]
    pause_seconds: float = 1.0

    def state(self) -> JobState:
        with vendor.explained("Lepton", login=_LOGIN, secrets=self.secrets):
            try:
                word = self.executor.status(self.job_id).value
            except RuntimeError as error:
                if getattr(getattr(error, "response", None), "status_code", None) != 404:
                    raise
                word = "Deleted"
        if word not in _STATES:
            raise NoAnswer(f"says {word} of job {self.job_id}", source="Lepton")
        return self.log.ending_of(_STATES[word], word)

    def read(self, offset: int) -> bytes:
        return self.log.read(offset)

    def cancel(self) -> None:
        with vendor.explained("Lepton", login=_LOGIN, secrets=self.secrets):
            self.client.job.update(self.job_id, {"spec": {"stopped": True}})

    def by_hand(self) -> tuple[str, str]:
        """The commands that follow and cancel it."""
        return f"lep job log --id {self.job_id}", f"lep job stop --id {self.job_id}"


def submit(submission: Submission, staged: Path, say: Say) -> LeptonJob:
    """Copy `staged` to the nodes' storage and create the job. Raises UserError in one line."""
    module = vendor.load("nemo_run.core.execution.lepton")
    with vendor.explained("Lepton", login=_LOGIN, secrets=submission.secrets):
        client = _client(module)
        executor = module.LeptonExecutor(**submission.fields)
        executor.job_dir, executor.lepton_job_dir = str(staged), submission.folder
        _check_node_group(client, executor.node_group, submission)
        executor.move_data(poll_interval=1)
        with submission.unsure("lep job list"):
            created = executor.create_lepton_job(submission.name)
        job_id = created.metadata.id_ or submission.name
    log = StreamedLog(lambda: _stream(module, job_id), say)
    return LeptonJob(executor, client, job_id, log, submission.secrets)


def _client(module: Any) -> Any:
    try:
        return module.APIClient()
    except (RuntimeError, TypeError):  # the latter where there is a workspace and no token
        raise UserError("no login", source="Lepton", remedy=_LOGIN) from None


def _check_node_group(client: Any, name: str, submission: Submission) -> None:
    names = [group.metadata.name for group in client.nodegroup.list_all()]
    if name not in names:
        remedy = f"the workspace has {', '.join(map(str, names)) or 'none'}"
        raise UserError(f"there is no node group {name}", source=f"profile {submission.profile}", remedy=remedy)


def _stream(module: Any, job_id: str) -> Iterator[bytes]:
    """The log of the first worker from its start, as long as the server sends it."""
    import requests

    client = module.APIClient()  # of the reader's thread alone
    names = [replica.metadata.id_ or replica.id_ for replica in client.job.get_replicas(job_id)]
    first = [name for name in names if name.removeprefix(job_id).startswith("-0")] or names
    if not first:
        return
    headers = {"Authorization": f"Bearer {client.token()}", "origin": client.workspace_origin_url or client.url}
    url = f"{client.url}/jobs/{job_id}/replicas/{first[-1]}/log"
    with requests.get(url, headers=headers, stream=True, timeout=(10, _STREAM_SECONDS)) as response:
        response.raise_for_status()
        yield from pieces(response)
