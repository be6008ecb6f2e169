"""What a profile of a cloud comes to: the settings that Lepton and DGX Cloud share, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nemotron_dpo.steps.profiles.profile import CheckedProfile, Profile

Credentials = tuple[str | None, str | None]


@dataclass(frozen=True)
class CloudSettings:
    """A profile. `job_root` is the folder for jobs on storage that all nodes share; `executor_fields` are NeMo-Run's own.

    `credentials` (id, secret) are None where the platform has a login of its own.
    """

    name: str
    source: str
    job_root: str
    workspace: str | None
    has_gpus: bool
    setup_lines: tuple[str, ...]
    startup_commands: tuple[str, ...]
    run_command: str
    executor_fields: Mapping[str, Any]
    credentials: Credentials | None


def cloud_settings(
    profile: Profile,
    given: CheckedProfile,
    job_root: str,
    fields: Mapping[str, Any],
    setup_lines: tuple[str, ...] = (),
    credentials: Credentials | None = None,
) -> CloudSettings:
    """What a platform reads of its own keys, with what every cloud has. Raises UserError naming the key."""
    image = given.need("container_image", "name an image that has nemotron-dpo, or set workspace")
    return CloudSettings(
        name=profile.name,
        source=str(profile.source),
        job_root=job_root,
        workspace=given.get("workspace"),
        has_gpus=bool(given.get("gpus_per_node")),
        setup_lines=setup_lines,
        startup_commands=given.get("startup_commands", ()),
        run_command=given.get("run_command", "{script}"),
        executor_fields={**fields, "container_image": image},
        credentials=credentials,
    )


def is_below(path: str, folder: object) -> bool:
    """Whether `path` lies in `folder`, if that is one."""
    return isinstance(folder, str) and folder != "" and PurePosixPath(path).is_relative_to(folder)
