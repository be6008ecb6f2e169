"""Run:ai on loopback, control plane and cluster: requests are read with the vendor's own types, and workloads truly run.

python fake_dgxcloud.py FOLDER      with the environment of launch_venv.py

Exercises what is sent and what is answered; not scheduling, quotas, image pulls, claims, nor the real service's validation.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support import fake_containers
from support.fake_containers import Container, Refused

CLIENT, SECRET, TOKEN, PROJECT = "my-client", "right-secret-of-the-test", "token-of-the-test", "my-project"
CLUSTER = "71f69d83-ba66-4822-adf5-55ce55efd210"


def _vendors(name: str) -> Any:
    """A type of the vendor's, without the 1,300 modules that its packages import."""
    for package in ("runai", "runai.models"):
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            assert spec
            sys.modules[package] = importlib.util.module_from_spec(spec)
    module = importlib.import_module("runai.models." + "_".join(re.findall("[A-Z][a-z]+", name)).lower())
    return getattr(module, name)


_TYPES = {
    "trainings": _vendors("TrainingCreationRequest"),
    "distributed": _vendors("DistributedCreationRequest"),
    "workspaces": _vendors("WorkspaceCreationRequest"),
}


class ControlPlane:
    """Workloads by their ids: kind, name, and containers, one a worker."""

    def __init__(self) -> None:
        self._workloads: dict[str, tuple[str, str, list[Container]]] = {}

    def answer(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        parts = path.strip("/").split("/")
        if (method, parts) == ("POST", ["api", "v1", "token"]):
            return self._token(body)
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized")
        match (method, parts):
            case ("GET", ["api", "v1", "org-unit", "projects"]):
                return {"projects": [{"name": PROJECT, "id": "4500000", "clusterId": CLUSTER}]}
            case ("POST", ["api", "v1", "workloads", kind]) if kind in _TYPES:
                return self._create(kind, body)
            case ("GET", ["api", "v1", "workloads", workload, "pods"]) if workload in self._workloads:
                return {"pods": [{"name": one.name} for one in self._workloads[workload][2]]}
            case (_, ["api", "v1", "workloads", kind, workload]) if self._workloads.get(workload, ("",))[0] == kind:
                return self._of_workload(method, workload)
            case ("GET", ["k8s", "api", "v1", "namespaces", "runai-my-project", "pods", name, "log"]):
                return self._log(name)
        raise Refused(404, f"{method} {path}: not found")

    def _token(self, body: Any) -> Any:
        spelled = {"clientID" if key == "clientId" else key: value for key, value in body.items()}  # case does not count there
        given = _vendors("TokenRequest").from_dict(spelled)
        if not fake_containers.leaves_nothing_out(spelled, given.to_dict()) or given.grant_type != "client_credentials":
            raise Refused(400, "no such grant")
        if (given.client_id, given.client_secret) != (CLIENT, SECRET):
            raise Refused(401, "invalid client credentials")
        return {"accessToken": TOKEN}

    def _create(self, kind: str, body: Any) -> Any:
        request = _TYPES[kind].from_dict(body)
        if not fake_containers.leaves_nothing_out(body, request.to_dict()):
            raise Refused(400, "unknown fields")
        if (request.project_id, request.cluster_id) != ("4500000", CLUSTER):
            raise Refused(403, "no such project")
        workload, name = str(uuid.uuid4()), f"{request.name}-{uuid.uuid4().hex[:5]}"
        num_workers = request.spec.num_workers if kind == "distributed" else 1
        argv = shlex.split(f"{request.spec.command} {request.spec.args or ''}")
        env = {variable.name: variable.value for variable in request.spec.environment_variables or []}
        containers = []
        for index in range(num_workers):
            world = {"RANK": str(index), "WORLD_SIZE": str(num_workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29433"}
            pod = f"{name}-worker-{index}" if num_workers > 1 else f"{name}-0-0"
            containers.append(Container(pod, argv, env | (world if num_workers > 1 else {})))
        self._workloads[workload] = (kind, name, containers)
        return {"workloadId": workload, "name": name, "actualPhase": "Creating"}

    def _of_workload(self, method: str, workload: str) -> Any:
        kind, name, containers = self._workloads[workload]
        if method == "DELETE":
            for container in containers:
                container.stop()
            if kind != "workspaces":  # it is shown until its pods are gone
                for container in containers:
                    container.wait()
            del self._workloads[workload]
            return {}
        statuses = [one.status for one in containers]
        phase = "Failed" if any(statuses) else "Running" if None in statuses else "Completed"
        return {"workloadId": workload, "name": name, "actualPhase": phase}

    def _log(self, name: str) -> Any:
        for _, _, containers in self._workloads.values():
            for container in containers:
                if container.name == name and container.status is None:
                    return container.log()
        raise Refused(404, f'pods "{name}" not found')


if __name__ == "__main__":
    fake_containers.serve(ControlPlane().answer, Path(sys.argv[1]), chunked=False)
