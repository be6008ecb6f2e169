"""Several runs as arrays of Slurm's: task N runs the script of run N, in that run's own folder.

Each part of the runs is an array, whose task N waits for task N of the part before. Before them, where the runs share what is
scored, one run that scores; after them, one job that compares what came of them.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron_dpo.steps.executors.shared.attend import Say, attend
from nemotron_dpo.steps.executors.shared.follow import Follower
from nemotron_dpo.steps.executors.slurm.asked import directives, stage_directives, without_gpus
from nemotron_dpo.steps.executors.slurm.client import SlurmClient, SlurmJob, UploadedFile
from nemotron_dpo.steps.executors.slurm.launch import (
    after_ok,
    all_or_none,
    fitting,
    literal,
    submit_squash,
    unread_secrets_removed,
)
from nemotron_dpo.steps.executors.slurm.parts import AFTER, BEFORE, MAIN, JobPart
from nemotron_dpo.steps.executors.slurm.prepared import PreparedSlurmJob
from nemotron_dpo.steps.executors.slurm.script import variables
from nemotron_dpo.steps.executors.slurm.tunnel import open_tunnel
from nemotron_dpo.wording import counted

_HERE = Path(__file__).parent
_SCORES = "SCORES"
# label -> what is done there, for so many runs
_MEANING = {
    f"{_SCORES}_BEFORE": "what comes before scoring",
    _SCORES: "scores for all of them",
    "BEFORE_ARRAY": "what comes before, an array of {}",
    "ARRAY": "the runs, an array of {}",
    "AFTER_ARRAY": "what comes after, an array of {}",
    "COMPARE": "compares them",
}


@dataclass(frozen=True)
class JobArray:
    """Runs of one profile, alike in what they ask of Slurm, that are called `name` together.

    folder: where on the cluster their own files lie. scores: the run that scores for all of them. at_once: how many run at a
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
    def parts(self) -> list[JobPart]:
        """The parts that there are an array of: those that any run has."""
        every = {part.name: part for job in self.jobs for part in job.parts}
        return [every[name] for name in (BEFORE, MAIN, AFTER) if name in every]

    def script(self, part: JobPart) -> str:
        """The script of each task: it becomes that of its run, where that has such a part."""
        settings = self.jobs[0].settings
        limit = f"%{self.at_once}" if self.at_once else ""
        lines = ["#!/bin/bash", *stage_directives(settings, part.called(self.name), part.asked)]
        lines += [f"#SBATCH --array=1-{len(self.jobs)}{limit}", self._folders, "job=${jobs[SLURM_ARRAY_TASK_ID - 1]}"]
        lines += [f"[[ -e $job/{part.script} ]] || exit 0"] if len(self.parts) > 1 else []
        return "\n".join([*lines, f'exec bash "$job/{part.script}" >>"$job/log.txt" 2>&1']) + "\n"

    @property
    def compare_script(self) -> str:
        """The script that comes last, whatever became of the others: it says how each ended, and writes the page."""
        first = self.jobs[0]
        settings, asked = first.settings, without_gpus(first.settings)
        facts = replace(first.facts, folder=self.folder, environment_names=())
        head = directives(settings, f"{self.name}-compare", asked)
        lines = ["#!/bin/bash", *head, "{ set +x; } 2>/dev/null", *variables(settings, facts, asked), self._folders]
        return "\n".join([*lines, (_HERE / "compare.sh").read_text(encoding="utf-8")])

    def files(self) -> dict[str, UploadedFile]:
        """What is written into the folder on the cluster."""
        texts = {script_of(part): self.script(part) for part in self.parts}
        texts |= {"compare.sh": self.compare_script, "compare.txt": ""}
        return {name: UploadedFile(text.encode()) for name, text in texts.items()}

    @property
    def _folders(self) -> str:
        return f"jobs=({shlex.join(job.facts.folder for job in self.jobs)})"


def script_of(part: JobPart) -> str:
    """The name of the script of the array of `part`."""
    return "array.sh" if part.name == MAIN else f"{part.name}-array.sh"


def dry_lines(array: JobArray) -> list[tuple[str, str]]:
    """(what, text) of the scripts and how they are submitted, words in capitals for the ids of jobs."""
    ids: dict[str, str] = {}
    shown, files = [], array.files()
    for label, options, script in _order(array, ids, []):
        name = script.removeprefix(f"{array.folder}/")
        if name in files:
            shown.append((name, files[name].content.decode()))
        what = "submitted by" if name in files else "scored first, once, by"
        shown.append((what, shlex.join(["sbatch", "--parsable", *options, script])))
        ids[label] = label
    return shown


def submit(
    array: JobArray, *, attached: bool, force_squash: bool, say: Say, show: Callable[[bytes], object], is_shared: bool
) -> int:
    """Submit all; where `attached`, stay until the comparison is written, and return its exit status."""
    with contextlib.ExitStack() as held:
        client = SlurmClient(held.enter_context(open_tunnel(array.jobs[0].settings)))
        ids = _queue(client, array, force_squash=force_squash, say=say, is_shared=is_shared)
        by_hand = client.tunnel.by_hand
        follow, cancel = by_hand(["tail", "-F", array.log]), by_hand(["scancel", *ids])
        if not attached:
            print(f"{ids[-1]}\nfollow it: {follow}\ncancel it: {cancel}", flush=True)
            return 0
        say(f"{counted(len(array.jobs), 'run')} submitted; cancel: {cancel}")
        watched = SlurmJob(client, ids[-1], array.log, waiting=tuple(ids[:-1]))
        with unread_secrets_removed(client, [path for job in _all(array) for path in job.secrets]):
            return attend(Follower(watched, ids[-1], array.log, show, say), say)


def _queue(client: SlurmClient, array: JobArray, *, force_squash: bool, say: Say, is_shared: bool) -> list[str]:
    """The ids of all that is queued, the job that compares last. All is cancelled where some of it cannot be queued."""
    for job in _all(array):
        client.upload(job.facts.folder, job.files(force_squash=force_squash), exists=is_shared)
    client.upload(array.folder, array.files(), exists=is_shared)
    ids: dict[str, str] = {}
    queued: list[str] = []
    with all_or_none(client, queued):
        first = submit_squash(client, array.jobs[0], force=force_squash, say=say)
        fewer = next((fitting(client, part.asked, say) for part in array.parts if part.name == MAIN), [])
        for label, options, script in _order(array, ids, first):
            ids[label] = client.submit([*(fewer if label in ("ARRAY", _SCORES) else []), *options], script)
            queued.append(ids[label])
            say(f"job {ids[label]}: {_MEANING[label].format(len(array.jobs))}")
    return queued


def _order(array: JobArray, ids: Mapping[str, str], first: Sequence[str]) -> Iterator[tuple[str, list[str], str]]:
    """(label, options, script) of all that is submitted; `ids` has those of the labels before, `first` waits for the image."""
    scored = None
    for part in array.scores.parts if array.scores else ():
        assert array.scores is not None
        waits = after_ok(ids[scored]) if scored else first
        scored = _SCORES if part.is_last else f"{_SCORES}_{part.name.upper()}"
        yield scored, [*waits, f"--output={literal(array.scores.log)}"], f"{array.scores.facts.folder}/{part.script}"
    arrays: list[str] = []
    for part in array.parts:
        waits = [f"afterok:{ids[scored]}"] if scored and part.name == MAIN else []
        waits += [f"aftercorr:{ids[arrays[-1]]}"] if arrays else []
        options = [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else first
        arrays.append("ARRAY" if part.name == MAIN else f"{part.name.upper()}_ARRAY")
        script = f"{array.folder}/{script_of(part)}"
        yield arrays[-1], [*options, f"--output={literal(script.removesuffix('.sh'))}-%a.txt"], script
    ended = ":".join(ids[label] for label in arrays)
    yield "COMPARE", [f"--dependency=afterany:{ended}", f"--output={literal(array.log)}"], f"{array.folder}/compare.sh"


def _all(array: JobArray) -> list[PreparedSlurmJob]:
    return [*array.jobs, *([array.scores] if array.scores else [])]
