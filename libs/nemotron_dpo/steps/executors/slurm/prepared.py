"""A run as jobs of Slurm before anything is submitted: their scripts, their folder on the cluster, and the files in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared import environment
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.shared.script import task_script
from nemotron_dpo.steps.executors.slurm.asked import Asked, directives
from nemotron_dpo.steps.executors.slurm.client import UploadedFile
from nemotron_dpo.steps.executors.slurm.parts import JobPart, holds_idle_gpus, parts_of
from nemotron_dpo.steps.executors.slurm.programs import no_programs, programs_in_container
from nemotron_dpo.steps.executors.slurm.script import SlurmJobFacts, job_script
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings, read_settings
from nemotron_dpo.steps.executors.slurm.squash import Squash, squash_of, squash_script
from nemotron_dpo.steps.profiles.profile import Profile


@dataclass(frozen=True)
class PreparedSlurmJob:
    """All that will be written to the cluster and asked of Slurm; each of `parts` waits for the one before it."""

    plan: Plan
    settings: SlurmSettings
    facts: SlurmJobFacts
    parts: tuple[JobPart, ...]
    paths: PathMap
    squash: Squash | None
    environment: dict[str, str]

    @property
    def log(self) -> str:
        return f"{self.facts.folder}/log.txt"

    @property
    def secrets(self) -> list[str]:
        """The files with variables that jobs which are still queued have not read."""
        return [f"{self.facts.folder}/{part.secrets}" for part in self.parts] if self.environment else []

    @property
    def task(self) -> str:
        settings, facts = self.settings, self.facts
        return task_script(
            facts.folder, facts.config, settings.startup_commands, settings.run_command, programs_in_container(settings)
        )

    @property
    def sees_our_files(self) -> bool:
        return self.settings.tunnel == "local"

    @property
    def remarks(self) -> list[str]:
        """What its administrators, or whoever waits for it, would want to know before it is submitted."""
        lines = [f"warning: {line}" for line in no_programs(self.plan, self.settings, self.environment)]
        if names := holds_idle_gpus(self.parts):
            number = sum(part.asked.nodes * (part.asked.gpus or 0) for part in self.parts)
            gpus = f"{number} GPU{'s' * (number > 1)}"
            how = "cpu_partition in the profile gives such stages jobs of their own"
            lines.append(f"{', '.join(names)}: no model runs there, and the job holds {gpus} meanwhile: {how}")
        return lines

    def script(self, part: JobPart) -> str:
        """The batch script of one part."""
        return job_script(self.plan, part, self.settings, self.facts, self.paths)

    def report(self, tell: Callable[[Plan], str]) -> str:
        """What `tell` says of the plan, with the paths that the cluster has."""
        return self.paths.text(tell(self.plan))

    def squash_script(self, *, force: bool) -> str:
        """The script that imports the container image."""
        assert self.squash is not None
        build = self.settings.build
        asked = Asked(build.partition, build.time, gpus=build.gpus_per_node)
        lines = directives(self.settings, f"{self.facts.name}-image", asked)
        return squash_script(self.squash, self.settings, "\n".join(lines), force=force)

    def files(self, *, force_squash: bool) -> dict[str, UploadedFile]:
        """What is written into the folder on the cluster."""
        texts = {name: self.paths.text(text) for name, text in self.plan.files.items()}
        texts |= {part.script: self.script(part) for part in self.parts} | {"task.sh": self.task, "log.txt": ""}
        if self.squash and self.squash.source:
            texts["image.sh"] = self.squash_script(force=force_squash)
        files = {name: UploadedFile(text.encode()) for name, text in texts.items()}
        secret = UploadedFile(environment.shell_text(self.environment).encode(), 0o600)
        return files | ({part.secrets: secret for part in self.parts} if self.environment else {})


def prepare(plan: Plan, profile: Profile, *, num_nodes: int, checkpoint_dir: str | None, attached: bool) -> PreparedSlurmJob:
    """What `plan` becomes under `profile`, its processes on `num_nodes`; `checkpoint_dir` None is the run folder's.

    Raises UserError for a profile that does not do.
    """
    settings = read_settings(profile, attached=attached)
    root = settings.job_root or str(plan.job.parent.absolute())
    folder = f"{root}/{plan.job.name}"
    squash = squash_of(settings.container_image, root) if settings.container_image else None
    paths = _path_map(plan, settings, folder)
    facts = SlurmJobFacts(
        name=plan.job.name,
        folder=folder,
        work=settings.workspace or (str(Path.cwd()) if settings.tunnel == "local" else "."),
        checkpoints=paths.of(checkpoint_dir or f"{plan.run_dir}/checkpoints"),
        config=f"{folder}/train.yaml",
        environment_names=tuple(names := environment.job_environment(profile)),
        image=squash.file if squash else None,
    )
    processes = max(1, plan.num_processes // num_nodes)
    parts = parts_of(plan.stages, settings, nodes=num_nodes, processes=processes)
    return PreparedSlurmJob(plan, settings, facts, parts, paths, squash, names)


def _path_map(plan: Plan, settings: SlurmSettings, folder: str) -> PathMap:
    """Where the cluster has the job folder, the tiny policy (made in the job, unless it lies here ready), and our configs."""
    pairs = [(str(plan.job), folder)]
    shares_cache = settings.tunnel == "local" and not settings.container_image
    if plan.prelude and not (shares_cache and plan.prelude.is_cached):
        pairs += [(str(plan.prelude.scratch), f"{folder}/tiny-sft.partial"), (str(plan.prelude.target), f"{folder}/tiny-sft")]
    if settings.workspace:
        pairs.append((str(manifest.configs_root()), os.path.join(settings.workspace, "configs")))
    return PathMap(tuple(pairs))
