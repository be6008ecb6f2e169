"""The local executor: run the stages of a plan one after the other on this machine, and leave no process behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nemotron_dpo import launcher, locks, machine_errors, parent
from nemotron_dpo.errors import DIVERGED, UserError
from nemotron_dpo.steps.compile import beginnings, stage_cache
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.job_state import JobStateFile
from nemotron_dpo.steps.compile.stage_choice import StageChoice, StageDecision, decide
from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.compile.tiny_sft import Prelude
from nemotron_dpo.steps.executors.local.logs import tee_stderr

# torchrun gives its workers 30 s to end before it kills them.
GRACE_SECONDS = 35


class StageFailed(Exception):
    """A stage ended badly; it has said why itself, also in `log`. `status` is what a shell would call its exit status."""

    def __init__(self, stage: str, status: int, log: Path | None = None) -> None:
        super().__init__(stage)
        self.stage = stage
        self.status = status
        self.log = log

    def __str__(self) -> str:
        where = f" and in {self.log}" if self.log else ""
        if (self.stage, self.status) == ("dpo-train", DIVERGED):
            return f"{self.stage} was stopped because it diverges (exit {self.status}); it said why above{where}"
        if self.status <= 128:
            return f"{self.stage} failed (exit {self.status}); it said why above{where}"
        name = signal.Signals(self.status - 128).name if self.status - 128 in set(signal.Signals) else self.status - 128
        hint = ": out of memory?" if self.status == 137 else ""
        said = f"; its last words are above{where}" if self.log else ""
        return f"{self.stage} was killed by {name} (exit {self.status}){hint}{said}"


def run_plan(
    plan: Plan,
    env: Mapping[str, str],
    choices: Sequence[StageChoice],
    say: Callable[[str], object],
    state: JobStateFile,
    before: Callable[[Stage], object] = lambda stage: None,
) -> None:
    """Run what the cache lacks and then those of `choices` that are not up to date, with `env` added to the environment.

    What is taken from the cache is told to `say`, where the job is to `state`, and a stage that is going to run to `before`.
    Raises StageFailed at the first that fails.
    """
    if plan.prelude is not None:
        _run_prelude(plan.prelude, plan.job, env, say)
    digests = Digests(stage_cache.DIGESTS)
    num_run = 0
    for decision in decide(plan, choices, digests, env):
        stage = decision.stage
        if decision.entry is not None:
            _take(decision.entry, stage, log_file(plan.job, stage), say)
            _note_length(decision)
            state.made(stage, decision.key)
            continue
        digests.save()
        num_run += 1
        state.enter(stage)
        _go_on(decision, say)
        before(stage)
        run_stage(stage, env, log_file(plan.job, stage))
        if decision.key is not None and not stage.may_stop_early:
            _keep(decision.key, stage, say)
            state.made(stage, decision.key)
    digests.save()
    if not num_run:
        say("nothing to do: everything is up to date; --force runs it again")


def _take(entry: stage_cache.CacheEntry, stage: Stage, log: Path, say: Callable[[str], object]) -> None:
    line = f"{stage.name}: up to date, taken from {entry.places[0]}"
    say(line)
    stage_cache.bring(entry, stage.name, stage.outputs)
    log.parent.mkdir(parents=True, exist_ok=True)
    with machine_errors.named(log):
        log.write_text(f"{line}\n")


def _keep(key: str, stage: Stage, say: Callable[[str], object]) -> None:
    """Keep what `stage` made for later runs; where that cannot be, as on a full disk, this run has it all the same."""
    try:
        stage_cache.record(key, stage.name, stage.outputs)
    except OSError as error:
        say(f"warning: {stage.name}: what it made cannot be kept for later runs ({str(error.strerror).lower()})")


def _go_on(decision: StageDecision, say: Callable[[str], object]) -> None:
    """Give the stage what an interrupted or a shorter run of it left, unless it starts anew, and note where this one works."""
    stage, shorter = decision.stage, decision.beginning
    if decision.key is None:
        return
    left = None
    if shorter is not None:
        left = Path(shorter.folder) if shorter.can_go_on else None
        say(f"{stage.name}: {decision.how_it_goes_on}")
    elif stage.resumes and not decision.is_forced:
        left = stage_cache.interrupted(decision.key)
        if left is not None:
            say(f"{stage.name}: goes on from {left}")
    if left is not None:
        stage_cache.copy_folder(left, stage.outputs[0])
    if stage.resumes:
        stage_cache.note_start(decision.key, stage.outputs[0])
    _note_length(decision)


def _note_length(decision: StageDecision) -> None:
    """Note how long this training is, for longer ones."""
    if decision.family is not None and decision.key is not None:
        beginnings.note(decision.family, decision.key, decision.stage)


SCORES = "NEMOTRON_DPO_CACHE"  # where ref-logprobs keeps the scores of single pairs, unless the user has another place


def log_file(job: Path, stage: Stage) -> Path:
    """Where what `stage` says is kept."""
    return job / "logs" / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', stage.name)}.log"


def run_stage(stage: Stage, env: Mapping[str, str], log: Path | None = None) -> None:
    """Run one stage to its end, with a copy of what it says in `log`.

    An interrupt or SIGTERM reaches it and everything it started before it is raised here. Where this process is killed, the
    stage gets SIGTERM (Linux).
    """
    with tee_stderr(log) if log else contextlib.nullcontext() as stderr:
        environment = {SCORES: str(stage_cache.CACHE), **os.environ, **env, **stage.env}
        launcher.remove_job(environment)
        environment |= parent.followed()
        try:
            process = subprocess.Popen(stage.argv, stdin=subprocess.DEVNULL, stderr=stderr, env=environment, process_group=0)
        except FileNotFoundError:
            remedy = "is nemotron-dpo installed in this Python?"
            raise UserError(f"{stage.name}: no such program", source=stage.argv[0], remedy=remedy) from None
        try:
            status = process.wait()
        except BaseException as stop:
            _end(process, signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
            raise
    if status != 0:
        raise StageFailed(stage.name, status if status > 0 else 128 - status, log)


def _run_prelude(prelude: Prelude, job: Path, env: Mapping[str, str], say: Callable[[str], object]) -> None:
    with _only_one(prelude.target, say):
        if prelude.is_cached:
            return
        say(f"fine-tuning a random policy of a million parameters on the sample pairs, once: {prelude.target}")
        shutil.rmtree(prelude.scratch, ignore_errors=True)
        prelude.scratch.mkdir(parents=True)
        for name, argv in prelude.commands:
            stage = Stage(f"tiny-sft: {name}", argv)
            run_stage(stage, env, log_file(job, stage))


def detach(log: Path) -> int:
    """Go on in a background process that writes to `log`: its id in the first process, 0 in the background one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, descriptor), (2, descriptor)):
        os.dup2(source, target)
    return 0


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Pass the signal on to the stage's group, wait for its tree to end, kill what does not."""
    import psutil

    family = [process.pid, *_descendants(process.pid)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        family += _descendants(process.pid)
    for pid in family:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


@contextlib.contextmanager
def _only_one(target: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock beside `target`: a second run, here or on another host, waits for the first one's result."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:
        try:
            has_locks = locks.lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{target}: another run is making it: waits for it")
            has_locks = locks.lock(file.fileno(), fcntl.LOCK_EX)
        if not has_locks:
            say(f"warning: {target.parent}: its file system has no locks: no other run may make {target.name}")
        yield
