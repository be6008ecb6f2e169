"""What a Slurm profile says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemotron_dpo.steps.profiles.profile import CheckedProfile, Profile

_BUILD_TIME = "01:00:00"


@dataclass(frozen=True)
class ImageBuild:
    """How a container image is imported."""

    partition: str | None
    time: str
    cache_dir: str | None
    gpus_per_node: int | None


@dataclass(frozen=True)
class CpuJobs:
    """What jobs ask for whose stages run no model."""

    partition: str
    time: str | None
    mem: str | None
    cpus: int | None


@dataclass(frozen=True)
class SlurmSettings:
    """A Slurm profile. `job_root` is None where jobs lie in the local job folder, which nodes then share with us.

    `tasks_per_node` and `cpus_per_task` are as the profile has them. `cpu` is None where stages without a model are part of the
    job that has the GPUs.
    """

    name: str
    source: str
    account: str | None
    partition: str | None
    time: str | None
    mem: str | None
    exclusive: str | None
    has_gpus: bool
    tasks_per_node: int | None
    cpus_per_task: int | None
    tunnel: Literal["local", "ssh"]
    host: str | None
    user: str | None
    identity: str | None
    job_root: str | None
    workspace: str | None
    container_image: str | None
    mounts: tuple[str, ...]
    setup_lines: tuple[str, ...]
    startup_commands: tuple[str, ...]
    run_command: str
    cpu: CpuJobs | None
    build: ImageBuild

    @property
    def is_shared(self) -> bool:
        """Whether the job runs in the local job folder itself."""
        return self.job_root is None


def read_settings(profile: Profile, *, attached: bool) -> SlurmSettings:
    """The settings of `profile` for a run that is followed, or not. Raises UserError naming the key."""
    given = CheckedProfile(profile)
    partition = given.get("run_partition" if attached else "batch_partition") or given.get("partition")
    tunnel = given.choice("tunnel", ("local", "ssh"), "ssh" if given.get("host") else "local")
    if tunnel == "ssh" and not given.get("host"):
        given.refuse("host", "is missing", 'tunnel = "ssh" needs the login node\'s name')
    if tunnel == "ssh" and not given.get("remote_job_dir"):
        given.refuse("remote_job_dir", "is missing", "name a folder on the cluster that all nodes share")
    lustre = given.get("lustre_mount")
    return SlurmSettings(
        name=profile.name,
        source=str(profile.source),
        account=given.get("account"),
        partition=partition,
        time=given.get("time"),
        mem=given.get("mem"),
        exclusive=given.get("exclusive"),
        has_gpus=bool(given.get("gpus_per_node")),
        tasks_per_node=given.get("ntasks_per_node"),
        cpus_per_task=given.get("cpus_per_task"),
        tunnel=tunnel,
        host=given.get("host"),
        user=given.get("user"),
        identity=given.get("identity"),
        job_root=given.get("remote_job_dir"),
        workspace=given.get("workspace"),
        container_image=given.get("container_image"),
        mounts=(*given.get("mounts", ()), *([lustre] if lustre else [])),
        setup_lines=given.get("setup_lines", ()),
        startup_commands=given.get("startup_commands", ()),
        run_command=given.get("run_command", "{script}"),
        cpu=_cpu_jobs(given),
        build=_build(given, partition),
    )


def _cpu_jobs(given: CheckedProfile) -> CpuJobs | None:
    partition = given.get("cpu_partition")
    others = {key: given.get(key) for key in ("cpu_time", "cpu_mem", "cpu_cpus_per_task")}
    if partition is None:
        for key, value in others.items():
            if value is not None:
                given.refuse(key, "is of jobs that there are only with cpu_partition", "name the partition, or leave it out")
        return None
    return CpuJobs(partition, others["cpu_time"] or given.get("time"), others["cpu_mem"], others["cpu_cpus_per_task"])


def _build(given: CheckedProfile, partition: str | None) -> ImageBuild:
    gpus = given.get("build_gpus_per_node") or 1 if given.get("build_include_gpus") else None
    partition = given.get("build_partition") or (None if gpus else given.get("cpu_partition")) or partition
    return ImageBuild(partition, given.get("build_time") or _BUILD_TIME, given.get("build_cache_dir"), gpus)
