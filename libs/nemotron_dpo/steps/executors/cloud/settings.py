"""What a profile of Lepton or of DGX Cloud says, checked; what NeMo-Run would put unquoted into a shell is plain text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nemotron_dpo.steps.compile.profile import Profile
from nemotron_dpo.steps.executors.shared.table import Table

_COMMON = {
    "executor": "text", "extends": "text", "container_image": "text", "nodes": "number", "gpus_per_node": "count",
    "nproc_per_node": "number", "nprocs_per_node": "number", "env_vars": "table", "startup_commands": "lines",
    "run_command": "command", "workspace": "path", "custom_spec": "table", "gpu_memory_gb": "number",
}  # fmt: skip
_LEPTON = _COMMON | {
    "nemo_run_dir": "plain_path", "node_group": "text", "node_reservation": "text", "resource_shape": "text",
    "shared_memory_size": "number", "mounts": "tables", "image_pull_secrets": "list", "pre_launch_commands": "lines",
}  # fmt: skip
_DGXCLOUD = _COMMON | {
    "base_url": "url", "kube_apiserver_url": "url", "client_id": "text", "client_secret": "secret", "app_id": "text",
    "app_secret": "secret", "project_name": "text", "pvc_nemo_run_dir": "plain_path", "pvcs": "tables",
    "distributed_framework": "text",
}  # fmt: skip
CLIENT_ID, CLIENT_SECRET = "DGXCLOUD_CLIENT_ID", "DGXCLOUD_CLIENT_SECRET"


@dataclass(frozen=True)
class Settings:
    """A profile. `job_root` is the folder for jobs on storage that all nodes share; `executor_fields` are NeMo-Run's own.

    `credentials` (id, secret) are None where Lepton's own login serves.
    """

    name: str
    source: str
    executor: str
    job_root: str
    workspace: str | None
    has_gpus: bool
    setup_lines: tuple[str, ...]
    startup_commands: tuple[str, ...]
    run_command: str
    executor_fields: Mapping[str, Any]
    credentials: tuple[str | None, str | None] | None
    idle_keys: tuple[str, ...]


def read_settings(profile: Profile) -> Settings:
    """The settings of `profile`. Raises UserError naming the key."""
    given = Table(profile, _LEPTON if profile.executor == "lepton" else _DGXCLOUD)
    given.check()
    is_lepton = profile.executor == "lepton"
    job_root, fields = _lepton(given) if is_lepton else _dgxcloud(given)
    fields |= {"container_image": given.need("container_image", "name an image that has nemotron-dpo, or set workspace")}
    return Settings(
        name=profile.name,
        source=str(profile.source),
        executor=profile.executor,
        job_root=job_root,
        workspace=given.get("workspace"),
        has_gpus=bool(given.get("gpus_per_node")),
        setup_lines=given.get("pre_launch_commands", ()) if is_lepton else (),
        startup_commands=given.get("startup_commands", ()),
        run_command=given.get("run_command", "{script}"),
        executor_fields=fields,
        credentials=None if is_lepton else _credentials(given),
        idle_keys=given.idle("custom_spec") if is_lepton else given.idle(),
    )


def _lepton(given: Table) -> tuple[str, dict[str, Any]]:
    root = given.need("nemo_run_dir", "name a folder on storage that is mounted in all nodes")
    mounts = [dict(mount) for mount in given.get("mounts", ())]
    for mount in mounts:
        if not {"path", "mount_path", "from"} <= set(mount):
            given.refuse("mounts", "has one without path, mount_path or from", _EXAMPLE)
    if not any(_is_below(root, mount["mount_path"]) for mount in mounts):
        given.refuse("nemo_run_dir", f"is {root!r}, which is on none of the mounts", _EXAMPLE)
    fields = {
        "nemo_run_dir": root,
        "node_group": given.need("node_group", "name a node group of the workspace"),
        "resource_shape": given.need("resource_shape", "name what a node has, such as gpu.8xh100-sxm"),
        "mounts": mounts,
    }
    fields |= {key: given.get(key) for key in ("node_reservation", "shared_memory_size") if given.get(key)}
    return root, fields | {"image_pull_secrets": list(given.get("image_pull_secrets", ()))}


def _dgxcloud(given: Table) -> tuple[str, dict[str, Any]]:
    root = given.need("pvc_nemo_run_dir", "name a folder on one of pvcs")
    pvcs = [dict(claim) for claim in given.get("pvcs", ())]
    if not any(_is_below(root, claim.get("path")) for claim in pvcs):
        given.refuse("pvc_nemo_run_dir", f"is {root!r}, which is on none of pvcs", 'pvcs = [{ path = "/workspace", ... }]')
    fields = {
        "base_url": given.need("base_url", "such as https://runai.example.com/api/v1"),
        "kube_apiserver_url": given.need("kube_apiserver_url", "the cluster's own address, where logs are read"),
        "project_name": given.need("project_name", "name a project of Run:ai"),
        "pvc_nemo_run_dir": root,
        "pvcs": pvcs,
        "distributed_framework": given.get("distributed_framework", "PyTorch"),
        "custom_spec": dict(given.get("custom_spec", {})),
    }
    return root, fields


_EXAMPLE = 'mounts = [{ path = "/", mount_path = "/mnt/shared", from = "node-nfs:shared" }]'


def _is_below(path: str, folder: object) -> bool:
    return isinstance(folder, str) and folder != "" and PurePosixPath(path).is_relative_to(folder)


def _credentials(given: Table) -> tuple[str | None, str | None]:
    client = given.get("client_id") or given.get("app_id") or os.environ.get(CLIENT_ID)
    return client, given.get("client_secret") or given.get("app_secret") or os.environ.get(CLIENT_SECRET)
