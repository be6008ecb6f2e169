"""Several jobs as one array of Slurm's: each of its tasks runs the script of one job, in that job's own folder.

Before it, where the jobs share what is scored, one job that scores; after it, one that compares what came of them.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.attend import Say, attend
from nemotron_dpo.steps.executors.shared.follow import Follower
from nemotron_dpo.steps.executors.slurm.client import SlurmClient, SlurmJob, UploadedFile
from nemotron_dpo.steps.executors.slurm.launch import PreparedSlurmJob, files_of, literal, submit_squash
from nemotron_dpo.steps.executors.slurm.script import directives, job_directives, variables
from nemotron_dpo.steps.executors.slurm.tunnel import open_tunnel

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class JobArray:
    """Jobs of one profile, alike in what they ask of Slurm, that are called `name` together.

    folder: where on the cluster their own files lie. scores: the job that scores for all of them. at_once: how many run at a
    time, None as many as Slurm lets.
    """

    name: str
    folder: str
    jobs: Sequence[PreparedSlurmJob]
    scores: PreparedSlurmJob | None = None
    at_once: int | None = None

    @property
    def log(self) -> str:
        """What the job at the end says."""
        return f"{self.folder}/compare.txt"

    @property
    def script(self) -> str:
        """The script of each task: it becomes that of its job."""
        first = self.jobs[0]
        asked = job_directives(first.settings, replace(first.facts, name=self.name))
        limit = f"%{self.at_once}" if self.at_once else ""
        lines = ["#!/bin/bash", *asked, f"#SBATCH --array=1-{len(self.jobs)}{limit}", self._folders]
        lines += ["job=${jobs[SLURM_ARRAY_TASK_ID - 1]}", 'exec bash "$job/job.sh" >>"$job/log.txt" 2>&1']
        return "\n".join(lines) + "\n"

    @property
    def compare_script(self) -> str:
        """The script that comes last, whatever became of the others: it says how each ended, and writes the page."""
        first = self.jobs[0]
        settings, facts = first.settings, replace(first.facts, folder=self.folder, num_nodes=1, environment_names=())
        asked = directives(settings, f"{self.name}-compare", nodes=1, gpus=None)
        asked += [f"#SBATCH --partition={settings.partition}"] if settings.partition else []
        asked += [f"#SBATCH --time={settings.time}"] if settings.time else []
        lines = ["#!/bin/bash", *asked, "{ set +x; } 2>/dev/null", *variables(settings, facts), self._folders]
        return "\n".join([*lines, (_HERE / "compare.sh").read_text(encoding="utf-8")])

    @property
    def _folders(self) -> str:
        return f"jobs=({shlex.join(job.facts.folder for job in self.jobs)})"


def dry_lines(array: JobArray) -> list[tuple[str, str]]:
    """(what, text) of the scripts and how they are submitted."""
    ask = "sbatch --parsable"
    first = [("scored first, once, by", f"{ask} {array.scores.facts.folder}/job.sh")] if array.scores else []
    after = " --dependency=afterok:SCORES" if array.scores else ""
    return [
        *first,
        ("array.sh", array.script),
        ("submitted by", f"{ask}{after} {array.folder}/array.sh"),
        ("compare.sh", array.compare_script),
        ("submitted by", f"{ask} --dependency=afterany:ARRAY {array.folder}/compare.sh"),
    ]


def submit(
    array: JobArray, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object], is_shared: bool
) -> int:
    """Submit all; where `attached`, stay until the comparison is written, and return its exit status."""
    with contextlib.ExitStack() as held:
        client = SlurmClient(held.enter_context(open_tunnel(array.jobs[0].settings)))
        array_id, last = _queue(client, array, force_squash=force_squash, say=say, is_shared=is_shared)
        by_hand = client.tunnel.by_hand
        follow, cancel = by_hand(["tail", "-F", array.log]), by_hand(["scancel", array_id, last])
        if not attached:
            print(f"{array_id}\nfollow it: {follow}\ncancel it: {cancel}", flush=True)
            return 0
        say(f"array {array_id} of {len(array.jobs)} jobs is submitted; cancel it: {cancel}")
        return attend(Follower(SlurmJob(client, last, array.log), last, array.log, show, say), say)


def _queue(client: SlurmClient, array: JobArray, *, force_squash: bool, say: Say, is_shared: bool) -> tuple[str, str]:
    """The ids of the array and of the job that compares. What was queued is cancelled where the rest cannot be."""
    queued: list[str] = []
    try:
        for job in (*array.jobs, *([array.scores] if array.scores else [])):
            client.upload(job.facts.folder, files_of(job, force_squash=force_squash), exists=is_shared)
        own = {"array.sh": array.script, "compare.sh": array.compare_script, "compare.txt": ""}
        client.upload(array.folder, {name: UploadedFile(text.encode()) for name, text in own.items()}, exists=is_shared)
        first = submit_squash(client, array.jobs[0], force=force_squash, say=say)
        if array.scores is not None:
            output = f"--output={literal(array.scores.log)}"
            queued.append(client.submit([*first, output], f"{array.scores.facts.folder}/job.sh"))
            first = [f"--dependency=afterok:{queued[-1]}", "--kill-on-invalid-dep=yes"]
            say(f"job {queued[-1]} scores for all of them; its log is {array.scores.log}")
        queued.append(client.submit([*first, f"--output={literal(array.folder)}/array-%a.txt"], f"{array.folder}/array.sh"))
        after = [f"--dependency=afterany:{queued[-1]}", f"--output={literal(array.log)}"]
        return queued[-1], client.submit(after, f"{array.folder}/compare.sh")
    except UserError:
        for job_id in queued:
            with contextlib.suppress(UserError):
                client.cancel(job_id)
        raise
