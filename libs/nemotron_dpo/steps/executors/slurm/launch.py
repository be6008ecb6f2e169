"""A run on Slurm from the plan to the exit status: prepare the files of a batch job, submit it, follow it, cancel it."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.steps.compile.stages import Plan
from nemotron_dpo.steps.executors.shared import environment
from nemotron_dpo.steps.executors.shared.attend import Say, Unsure, attend, nothing_left_behind
from nemotron_dpo.steps.executors.shared.follow import Follower, NoAnswer
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.shared.script import task_script
from nemotron_dpo.steps.executors.slurm.client import SlurmClient, SlurmJob, UploadedFile
from nemotron_dpo.steps.executors.slurm.script import SlurmJobFacts, directives, job_script
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings, read_settings
from nemotron_dpo.steps.executors.slurm.squash import Squash, squash_of, squash_script
from nemotron_dpo.steps.executors.slurm.tunnel import open_tunnel
from nemotron_dpo.steps.profiles.profile import Profile


@dataclass(frozen=True)
class PreparedSlurmJob:
    """A batch job before it is submitted: all that will be written to the cluster and asked of Slurm."""

    plan: Plan
    settings: SlurmSettings
    facts: SlurmJobFacts
    paths: PathMap
    squash: Squash | None
    environment: dict[str, str]

    @property
    def log(self) -> str:
        return f"{self.facts.folder}/log.txt"

    @property
    def script(self) -> str:
        return job_script(self.plan, self.settings, self.facts, self.paths)

    @property
    def task(self) -> str:
        settings, facts = self.settings, self.facts
        return task_script(facts.folder, facts.config, settings.startup_commands, settings.run_command)

    @property
    def sees_our_files(self) -> bool:
        return self.settings.tunnel == "local"

    def report(self, tell: Callable[[Plan], str]) -> str:
        """What `tell` says of the plan, with the paths that the cluster has."""
        return self.paths.text(tell(self.plan))

    def squash_script(self, *, force: bool) -> str:
        """The script that imports the container image."""
        assert self.squash is not None
        build = self.settings.build
        given = {"partition": build.partition or self.settings.partition, "time": build.time}
        lines = directives(self.settings, f"{self.facts.name}-image", nodes=1, gpus=build.gpus_per_node)
        lines += [f"#SBATCH --{name}={value}" for name, value in given.items() if value]
        return squash_script(self.squash, self.settings, "\n".join(lines), force=force)


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
        checkpoints=checkpoint_dir or f"{paths.of(str(plan.run_dir))}/checkpoints",
        config=f"{folder}/train.yaml",
        num_nodes=num_nodes,
        processes_per_node=max(1, plan.num_processes // num_nodes),
        environment_names=tuple(names := environment.job_environment(profile)),
        image=squash.file if squash else None,
    )
    return PreparedSlurmJob(plan, settings, facts, paths, squash, names)


def dry_lines(job: PreparedSlurmJob, *, force_squash: bool) -> list[tuple[str, str]]:
    """(what, text) of every file and command, secrets hidden."""
    lines: list[tuple[str, str]] = []
    if job.squash and job.squash.source:
        unless = "" if force_squash else f", unless {job.squash.file} exists"
        lines.append((f"image.sh, submitted first{unless}", job.squash_script(force=force_squash)))
    if job.environment:
        secret = environment.shell_text(environment.shown(job.environment))
        lines.append(("env.sh, for the owner's eyes, removed when the job starts", secret))
    argv = ["sbatch", "--parsable", *_options(job), f"{job.facts.folder}/job.sh"]
    return [*lines, ("task.sh", job.task), ("job.sh", job.script), ("submitted by", shlex.join(argv))]


def launch(job: PreparedSlurmJob, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object]) -> int:
    """Submit `job`; where `attached`, follow it and return its exit status. The log goes to `show`, remarks to `say`."""
    with contextlib.ExitStack() as held:
        with nothing_left_behind(job.plan.job):
            client = SlurmClient(held.enter_context(open_tunnel(job.settings)))
            job_id = _submit(client, job, force_squash=force_squash, say=say)
        by_hand = client.tunnel.by_hand
        follow, cancel = by_hand(["tail", "-F", job.log]), by_hand(["scancel", job_id])
        if not attached:
            print(f"{job_id}\nfollow it: {follow}\ncancel it: {cancel}", flush=True)
            return 0
        say(f"job {job_id} is submitted; cancel it: {cancel}")
        status = attend(Follower(SlurmJob(client, job_id, job.log), job_id, job.log, show, say), say)
        if status == 0:
            _fetch_results(client, job)
        return status


def _submit(client: SlurmClient, job: PreparedSlurmJob, *, force_squash: bool, say: Say) -> str:
    """The id of the job. Where Slurm refuses it, its folder is removed again."""
    folder, settings = job.facts.folder, job.settings
    client.upload(folder, files_of(job, force_squash=force_squash), exists=settings.is_shared)
    try:
        first = submit_squash(client, job, force=force_squash, say=say)
        return client.submit([*first, *_options(job)], f"{folder}/job.sh")
    except NoAnswer as error:
        remedy = f"it may be queued all the same: squeue --name {job.facts.name}"
        raise Unsure(error.message, source=error.source, remedy=remedy) from None
    except UserError as error:
        client.remove(folder)
        raise UserError(error.message, source=error.source or f"profile {settings.name}", remedy=error.remedy) from None


def submit_squash(client: SlurmClient, job: PreparedSlurmJob, *, force: bool, say: Say) -> list[str]:
    """The option that makes the job wait for its image, where that is not there or made anew."""
    if job.squash is None or job.squash.source is None or (client.exists(job.squash.file) and not force):
        return []
    log = f"{job.squash.file}.log"
    squash_id = client.submit([f"--output={literal(log)}"], f"{job.facts.folder}/image.sh")
    say(f"job {squash_id} imports {job.settings.container_image} to {job.squash.file}; its log is {log}")
    return [f"--dependency=afterok:{squash_id}", "--kill-on-invalid-dep=yes"]


def _fetch_results(client: SlurmClient, job: PreparedSlurmJob) -> None:
    """Bring what the report of the run reads, where the job folder is not ours."""
    small = [path for path in job.plan.artifacts.values() if path.suffix == ".json"]
    for path in [] if job.settings.is_shared else [job.plan.run_dir / "metrics.jsonl", *small]:
        if content := client.read(job.paths.of(str(path))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def files_of(job: PreparedSlurmJob, *, force_squash: bool) -> dict[str, UploadedFile]:
    """What is written into the folder of `job` on the cluster."""
    texts = {name: job.paths.text(text) for name, text in job.plan.files.items()}
    texts |= {"job.sh": job.script, "task.sh": job.task, "log.txt": ""}
    if job.squash and job.squash.source:
        texts["image.sh"] = job.squash_script(force=force_squash)
    files = {name: UploadedFile(text.encode()) for name, text in texts.items()}
    if job.environment:
        files["env.sh"] = UploadedFile(environment.shell_text(job.environment).encode(), 0o600)
    return files


def _options(job: PreparedSlurmJob) -> list[str]:
    return [f"--output={literal(job.log)}"]


def literal(path: str) -> str:
    """A file name in which Slurm shall replace nothing."""
    return path.replace("%", "%%")


def _path_map(plan: Plan, settings: SlurmSettings, folder: str) -> PathMap:
    """Where the cluster has the job folder, the tiny policy (made in the job, unless it lies here ready), and our configs."""
    pairs = [(str(plan.job), folder)]
    shares_cache = settings.tunnel == "local" and not settings.container_image
    if plan.prelude and not (shares_cache and plan.prelude.is_cached):
        pairs += [(str(plan.prelude.scratch), f"{folder}/tiny-sft.partial"), (str(plan.prelude.target), f"{folder}/tiny-sft")]
    if settings.workspace:
        pairs.append((str(manifest.configs_root()), os.path.join(settings.workspace, "configs")))
    return PathMap(tuple(pairs))
