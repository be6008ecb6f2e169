"""A Lepton workspace on loopback: requests are read with the SDK's own types, and jobs truly run.

python fake_lepton.py FOLDER [HOSTS_PREFIX SUBNET]      with the environment of launch_venv.py; on test hosts if given

Exercises what is sent and what is answered; not scheduling, quotas, image pulls, mounts, nor the real service's validation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leptonai.api.v1.types.job import LeptonJob, LeptonJobState  # type: ignore[import-not-found] - installed where this runs, not in .venv

from support import fake_containers
from support.fake_containers import Container, Refused

TOKEN, WORKSPACE, GROUP, NODE = "right-token-of-the-test", "ws", "my-node-group", "node-0"
_MANAGER = Path(__file__).parent / "hosts" / "in_host.sh"


class Workspace:
    """Jobs by their ids, as `python` objects and as containers, one a worker."""

    def __init__(self, hosts: tuple[str, str] | None) -> None:
        self._hosts = hosts
        self._jobs: dict[str, tuple[LeptonJob, list[Container]]] = {}
        self._stopped: set[str] = set()

    def answer(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized")
        match (method, path.strip("/").split("/")):
            case ("GET", ["dedicated-node-groups"]):
                return [{"metadata": {"id": "g-1", "name": GROUP}, "spec": {}, "status": {}}]
            case ("GET", ["dedicated-node-groups", "g-1", "nodes"]):
                return [{"metadata": {"id": NODE, "name": NODE}, "spec": {"unschedulable": False}, "status": {}}]
            case ("POST", ["jobs"]):
                return self._create(body)
            case (_, ["jobs", job_id, *rest]) if job_id in self._jobs:
                return self._of_job(method, job_id, rest, body)
        raise Refused(404, f"{method} {path}: not found")

    def _create(self, body: Any) -> Any:
        job = LeptonJob(**body)
        if not fake_containers.leaves_nothing_out(body, job.model_dump(mode="json", by_alias=True)):
            raise Refused(400, "unknown fields")
        affinity = job.spec.affinity
        if affinity.allowed_dedicated_node_groups != ["g-1"] or affinity.allowed_nodes_in_node_group != [NODE]:
            raise Refused(400, "no such nodes")
        job_id = job.metadata.id_
        if job_id in self._jobs:
            raise Refused(409, f"{job_id} exists")
        self._jobs[job_id] = (job, [self._start(job, n) for n in range(job.spec.completions)])
        return self._shown(job_id)

    def _start(self, job: LeptonJob, index: int) -> Container:
        job_id = job.metadata.id_
        env = {variable.name: variable.value for variable in job.spec.envs} | {
            "LEPTON_WORKSPACE_ID": WORKSPACE,
            "LEPTON_JOB_NAME": job_id,
            "LEPTON_JOB_WORKER_INDEX": str(index),
            "LEPTON_JOB_TOTAL_WORKERS": str(job.spec.completions),
        }
        host: list[str] = []
        if self._hosts and job.spec.completions > 1:
            prefix, subnet = self._hosts
            name = f"{job_id}-{index}.{job_id}-job-svc.ws-{WORKSPACE}.svc.cluster.local"
            with open(f"/run/netns-{prefix}.hosts", "a") as names:
                names.write(f"{subnet}.{11 + index} {name}\n")
            host = [str(_MANAGER), prefix, str(index + 1)]
        return Container(f"{job_id}-{index}-abcde", job.spec.container.command, env, host)

    def _of_job(self, method: str, job_id: str, rest: list[str], body: Any) -> Any:
        _, containers = self._jobs[job_id]
        match (method, rest):
            case ("GET", []):
                return self._shown(job_id)
            case ("PATCH", []) if body == {"spec": {"stopped": True}}:
                self._stopped.add(job_id)
                for container in containers:
                    container.stop()
                return {}
            case ("DELETE", []):
                for container in self._jobs.pop(job_id)[1]:
                    container.stop()
                return {}
            case ("GET", ["replicas"]):
                return [{"metadata": {"id": one.name}, "id": one.name} for one in containers if one.status is None]
            case ("GET", ["replicas", name, "log"]):
                for container in containers:
                    if container.name == name and container.status is None:
                        return container.log()
        raise Refused(404, "gone")

    def _shown(self, job_id: str) -> Any:
        job, containers = self._jobs[job_id]
        shown = job.model_dump(mode="json", by_alias=True, exclude_none=True)
        active = sum(one.status is None for one in containers)
        return shown | {"status": {"state": self._state(job_id).value, "ready": active, "active": active}}

    def _state(self, job_id: str) -> Any:
        statuses = [one.status for one in self._jobs[job_id][1]]
        if job_id in self._stopped:
            return LeptonJobState.Stopping if None in statuses else LeptonJobState.Stopped
        if any(statuses):
            return LeptonJobState.Failed
        return LeptonJobState.Running if None in statuses else LeptonJobState.Completed


if __name__ == "__main__":
    where = Workspace((sys.argv[2], sys.argv[3]) if len(sys.argv) > 2 else None)
    fake_containers.serve(where.answer, Path(sys.argv[1]), chunked=True)
