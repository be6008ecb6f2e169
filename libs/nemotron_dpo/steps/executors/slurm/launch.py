"""A run on Slurm, from its prepared jobs to the exit status: submit them, follow them, cancel them."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared import environment
from nemotron_dpo.steps.executors.shared.attend import Say, Unsure, attend, nothing_left_behind
from nemotron_dpo.steps.executors.shared.follow import Follower, NoAnswer
from nemotron_dpo.steps.executors.slurm.asked import Asked
from nemotron_dpo.steps.executors.slurm.client import SlurmClient, SlurmJob
from nemotron_dpo.steps.executors.slurm.prepared import PreparedSlurmJob, prepare
from nemotron_dpo.steps.executors.slurm.tunnel import open_tunnel

__all__ = ["PreparedSlurmJob", "dry_lines", "launch", "prepare"]  # what a Place has


def dry_lines(job: PreparedSlurmJob, *, force_squash: bool) -> list[tuple[str, str]]:
    """(what, text) of every file and command, secrets hidden."""
    lines: list[tuple[str, str]] = []
    if job.squash and job.squash.source:
        unless = "" if force_squash else f", unless {job.squash.file} exists"
        lines.append((f"image.sh, submitted first{unless}", job.squash_script(force=force_squash)))
    if job.environment:
        secret = environment.shell_text(environment.shown(job.environment))
        names = " and ".join(part.secrets for part in job.parts)
        lines.append((f"{names}, for the owner's eyes, removed when the job starts", secret))
    lines += [("task.sh", job.task), *((part.script, job.script(part)) for part in job.parts)]
    names = [part.name.upper() for part in job.parts]
    commands = [shlex.join(["sbatch", "--parsable", *options, script]) for options, script in _chain(job, names, [])]
    return [*lines, ("submitted by", "\n".join(commands))]


def launch(job: PreparedSlurmJob, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object]) -> int:
    """Submit `job`; where `attached`, follow it and return its exit status. The log goes to `show`, remarks to `say`."""
    with contextlib.ExitStack() as held:
        with nothing_left_behind(job.plan.job):
            client = SlurmClient(held.enter_context(open_tunnel(job.settings)))
            ids = _submit(client, job, force_squash=force_squash, say=say)
        by_hand = client.tunnel.by_hand
        follow, cancel = by_hand(["tail", "-F", job.log]), by_hand(["scancel", *ids])
        if not attached:
            print(f"{ids[-1]}\nfollow it: {follow}\ncancel it: {cancel}", flush=True)
            return 0
        say(f"job {ids[-1]} is submitted; cancel it: {cancel}")
        status = _attended(client, job, ids, say, show)
        if status == 0:
            _fetch_results(client, job)
        return status


def _attended(client: SlurmClient, job: PreparedSlurmJob, ids: Sequence[str], say: Say, show: Callable[[bytes], object]) -> int:
    """Follow one job after the other; the exit status of the first that fails."""
    offset = 0
    with unread_secrets_removed(client, job.secrets):
        for number, job_id in enumerate(ids):
            watched = SlurmJob(client, job_id, job.log, waiting=tuple(ids[number + 1 :]))
            follower = Follower(watched, job_id, job.log, show, say, offset=offset)
            if status := attend(follower, say):
                client.remove(*job.secrets)
                return status
            offset = follower.offset
        return 0


@contextlib.contextmanager
def unread_secrets_removed(client: SlurmClient, paths: Sequence[str]) -> Iterator[None]:
    """Remove the files where a person or a signal ends the block: jobs that were cancelled in the queue have not read them."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        with contextlib.suppress(UserError):
            client.remove(*paths)
        raise


def _submit(client: SlurmClient, job: PreparedSlurmJob, *, force_squash: bool, say: Say) -> list[str]:
    """The ids of the jobs. Where Slurm refuses one, the others are cancelled and the folder is removed again."""
    folder, settings = job.facts.folder, job.settings
    client.upload(folder, job.files(force_squash=force_squash), exists=settings.is_shared)
    ids: list[str] = []
    try:
        with all_or_none(client, ids):
            fewer = {part.script: fitting(client, part.asked, say) for part in job.parts}
            for options, script in _chain(job, ids, submit_squash(client, job, force=force_squash, say=say)):
                ids.append(client.submit([*fewer[script.rpartition("/")[2]], *options], script))
    except NoAnswer as error:
        remedy = f"it may be queued all the same: squeue --name {job.facts.name}"
        raise Unsure(error.message, source=error.source, remedy=remedy) from None
    except UserError as error:
        client.remove(folder)
        raise UserError(error.message, source=error.source or f"profile {settings.name}", remedy=error.remedy) from None
    if len(ids) > 1:
        for job_id, part in zip(ids, job.parts, strict=True):
            where = f" in partition {part.asked.partition}" if part.asked.partition else ""
            say(f"job {job_id}{where}: {', '.join(stage.name for _, stage in part.stages)}")
    return ids


def fitting(client: SlurmClient, asked: Asked, say: Say) -> list[str]:
    """The option that asks for fewer CPUs where we guessed those of the script and no node has them: it would wait forever."""
    there = client.cpus_of_node(asked.partition) if asked.guessed and asked.cpus else None
    if there is None or asked.cpus is None or there >= asked.cpus:
        return []
    where = f"partition {asked.partition}" if asked.partition else "the partition"
    say(f"a node of {where} has {there} CPUs: {there} are asked for, and not {asked.cpus}; cpus_per_task says it otherwise")
    return [f"--cpus-per-task={there}"]


@contextlib.contextmanager
def all_or_none(client: SlurmClient, ids: Sequence[str]) -> Iterator[None]:
    """Cancel the jobs `ids` where the block fails that queues them."""
    try:
        yield
    except UserError:
        for job_id in ids:
            with contextlib.suppress(UserError):
                client.cancel(job_id)
        raise


def _chain(job: PreparedSlurmJob, ids: Sequence[str], first: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """sbatch's options and the script of each part, asked for once `ids` has the job before it; `first` are the first one's."""
    for number, part in enumerate(job.parts):
        waits = after_ok(ids[number - 1]) if number else first
        yield [*waits, f"--output={literal(job.log)}"], f"{job.facts.folder}/{part.script}"


def after_ok(job_id: str) -> list[str]:
    """The options of a job that waits for another to succeed, and is cancelled where it cannot any more."""
    return [f"--dependency=afterok:{job_id}", "--kill-on-invalid-dep=yes"]


def submit_squash(client: SlurmClient, job: PreparedSlurmJob, *, force: bool, say: Say) -> list[str]:
    """The option that makes the job wait for its image, where that is not there or made anew."""
    if job.squash is None or job.squash.source is None or (client.exists(job.squash.file) and not force):
        return []
    log = f"{job.squash.file}.log"
    squash_id = client.submit([f"--output={literal(log)}"], f"{job.facts.folder}/image.sh")
    say(f"job {squash_id} imports {job.settings.container_image} to {job.squash.file}; its log is {log}")
    return after_ok(squash_id)


def _fetch_results(client: SlurmClient, job: PreparedSlurmJob) -> None:
    """Bring what the report of the run reads, where the job folder is not ours."""
    small = [path for path in job.plan.artifacts.values() if path.suffix == ".json"]
    for path in [] if job.settings.is_shared else [job.plan.run_dir / "metrics.jsonl", *small]:
        if content := client.read(job.paths.of(str(path))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def literal(path: str) -> str:
    """A file name in which Slurm shall replace nothing."""
    return path.replace("%", "%%")
