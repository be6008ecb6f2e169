"""DGX Cloud: submit through NeMo-Run's executor; token, state, log and cancelling by Run:ai's and Kubernetes' own addresses.

NeMo-Run asks for a new token with every question and three times over half a minute where it is refused, cancels
distributed workloads only, reads no logs from outside the cluster, and its own launch loses the exit status in a pipe.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.cloud import vendor
from nemotron_dpo.steps.executors.cloud.log import StreamedLog, pieces
from nemotron_dpo.steps.executors.cloud.submission import Submission
from nemotron_dpo.steps.executors.dgxcloud.settings import CLIENT_ID, CLIENT_SECRET
from nemotron_dpo.steps.executors.shared.attend import Say
from nemotron_dpo.steps.executors.shared.follow import JobState, NoAnswer

_LOGIN = f"check client_id, and the secret in {CLIENT_SECRET}"
_CALL_SECONDS = 30
_STREAM_SECONDS = 60
_TOKEN_SECONDS = 240
# Run:ai's phase -> Slurm's word
_STATES = {
    "Creating": "PENDING", "Initializing": "PENDING", "Resuming": "PENDING", "Pending": "PENDING", "Updating": "PENDING",
    "Running": "RUNNING", "Stopping": "RUNNING", "Terminating": "RUNNING", "Deleting": "RUNNING", "Completed": "COMPLETED",
    "Failed": "FAILED", "Degraded": "FAILED", "Stopped": "CANCELLED", "Deleted": "CANCELLED",
}  # fmt: skip


@dataclass
class RunAi:
    """The control plane at `base_url`, for the application `credentials`."""

    base_url: str
    credentials: tuple[str, str]
    secrets: tuple[str, ...]
    _token: str = field(default="", repr=False)
    _asked: float = 0.0

    def token(self) -> str:
        """A bearer token, no older than it may be. Raises UserError where it is refused."""
        if not self._token or time.monotonic() - self._asked > _TOKEN_SECONDS:
            client_id, secret = self.credentials
            given = {"grantType": "client_credentials", "clientId": client_id, "clientSecret": secret}
            answer = self._call("POST", "/token", json=given)
            self._token, self._asked = answer.json().get("accessToken") or "", time.monotonic()
            if not self._token:
                raise UserError("gave no token", source=self.base_url, remedy=_LOGIN)
        return self._token

    def request(self, method: str, path: str) -> Any | None:
        """The answer to one request; None where there is no such thing (any more)."""
        answer = self._call(method, path, headers={"Authorization": f"Bearer {self.token()}"})
        return None if answer is None else answer.json() if answer.content else {}

    def _call(self, method: str, path: str, **options: Any) -> Any:
        import requests

        with vendor.explained(self.base_url, login=_LOGIN, secrets=self.secrets):
            answer = requests.request(method, self.base_url + path, timeout=_CALL_SECONDS, **options)
        if answer.status_code == 404 and path != "/token":
            return None
        if not answer.ok:
            raise vendor.refused(self.base_url, answer.status_code, answer.text, login=_LOGIN, secrets=self.secrets)
        return answer


@dataclass(frozen=True)
class DgxJob:
    """One workload of a project."""

    runai: RunAi
    kind: str
    job_id: str
    name: str
    project: str
    log: StreamedLog
    pause_seconds: float = 1.0

    def state(self) -> JobState:
        found = self.runai.request("GET", f"/workloads/{self.kind}/{self.job_id}")
        phase = "Deleted" if found is None else found.get("actualPhase") or found.get("phase")
        if phase not in _STATES:
            raise NoAnswer(f"says {phase} of job {self.job_id}", source=self.runai.base_url)
        return self.log.ending_of(_STATES[phase], phase)

    def read(self, offset: int) -> bytes:
        return self.log.read(offset)

    def cancel(self) -> None:
        self.runai.request("DELETE", f"/workloads/{self.kind}/{self.job_id}")

    def by_hand(self) -> tuple[str, str]:
        """The commands that follow and cancel it."""
        words = "runai training pytorch" if self.kind == "distributed" else "runai training"
        follow = [*words.split(), "logs", self.name, "-p", self.project, "--follow"]
        return shlex.join(follow), shlex.join([*words.split(), "delete", f"--uuid={self.job_id}", "-p", self.project])


def submit(submission: Submission, staged: Path, say: Say) -> DgxJob:
    """Copy `staged` to the claim and create the workload. Raises UserError in one line."""
    client_id, secret = submission.credentials or (None, None)
    if not client_id or not secret:
        missing, variable = ("client_secret", CLIENT_SECRET) if client_id else ("client_id", CLIENT_ID)
        raise UserError("is missing", source=f"profile {submission.profile}", field=missing, remedy=f"export {variable}=...")
    module = vendor.load("nemo_run.core.execution.dgxcloud")
    fields = submission.fields
    runai = RunAi(fields["base_url"], (client_id, secret), submission.secrets)
    token = runai.token()
    executor = module.DGXCloudExecutor(**fields, client_id=client_id, client_secret=secret)
    executor.job_dir, executor.pvc_job_dir = str(staged), submission.folder
    with vendor.explained(runai.base_url, login=_LOGIN, secrets=submission.secrets):
        project, cluster = executor.get_project_and_cluster_id(token)
        if not project:
            remedy = "check project_name, and what the application may see"
            raise UserError(f"has no project {fields['project_name']}", source=runai.base_url, remedy=remedy)
        executor.move_data(token, project, cluster, sleep=1)
        with submission.unsure("look at the workloads of the project"):
            answer = executor.create_training_job(runai.token(), project, cluster, submission.name)
    if answer.status_code not in (200, 202):
        raise vendor.refused(runai.base_url, answer.status_code, answer.text, login=_LOGIN, secrets=submission.secrets)
    made, kind = answer.json(), "distributed" if fields["nodes"] > 1 else "trainings"
    job_id, name = made["workloadId"], made.get("name") or submission.name
    return DgxJob(runai, kind, job_id, name, fields["project_name"], StreamedLog(lambda: _stream(runai, job_id, fields), say))


def _stream(runai: RunAi, job_id: str, fields: Any) -> Iterator[bytes]:
    """The log of the first pod from its start, by the cluster's own address, as long as the server sends it."""
    import requests

    found = (runai.request("GET", f"/workloads/{job_id}/pods") or {}).get("pods", [])
    pods = sorted(found, key=lambda pod: ("-master-" not in pod["name"], pod["name"]))
    if not pods:
        return
    namespace = pods[0].get("namespace") or f"runai-{fields['project_name']}"
    url = f"{fields['kube_apiserver_url']}/api/v1/namespaces/{namespace}/pods/{pods[0]['name']}/log"
    headers = {"Authorization": f"Bearer {runai.token()}"}
    with requests.get(url, params={"follow": "true"}, headers=headers, stream=True, timeout=(10, _STREAM_SECONDS)) as answer:
        answer.raise_for_status()
        yield from pieces(answer)
