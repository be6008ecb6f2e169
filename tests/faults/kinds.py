"""The kinds of faults: for each which points of a stage are struck, and how one is tried."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import damage, stages
from faults.results import NOT_STRUCK
from faults.trial import Ended, Point, Points, Trial, first
from nemotron_dpo.published import _PLACE
from support import faulty, programs

ERRORS = (
    errno.EIO,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ENOMEM,
    errno.EMFILE,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EDQUOT,
)
READ_ERRORS = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.EACCES)
HOW = ("before", "half", "after")
WHOM = ("self", "group", "leader")
KILLS, DISKS, PAIRS = 50, 10, 10


def kills(trial: Trial, scratch: Path) -> list[Point]:
    """SIGKILL at file operations from the first to the last: before, half way through and after; of a pipeline whom in turn.

    What is on the disk changes at file operations alone, so that a kill between two is as one at the next. Where there are few
    of them, each is struck in each way.
    """
    total = _operations(trial, scratch)
    places = [1 + int(place * (total - 1) / (KILLS - 1)) for place in range(KILLS)]
    if total * len(HOW) < KILLS:
        places = [place for place in range(1, total + 1) for _ in HOW]
    whom = itertools.cycle(WHOM if trial.stage.holds_jobs else WHOM[:1])
    struck = enumerate(zip(places, itertools.cycle(HOW), whom, strict=False))
    return _mixed([Point(f"{n:02} {how} {who}", _kill(place, how, who, scratch)) for n, (place, how, who) in struck])


def kills_then_alone(trial: Trial, scratch: Path) -> list[Point]:
    """The same of one rank, and the run goes on as a single process: another layout, with the losses of the first."""
    total = _operations(trial, scratch)
    losses = programs.losses(trial.out / "run")
    places = [1 + int(place * (total - 1) / (KILLS - 1)) for place in range(KILLS)]
    struck = enumerate(zip(places, itertools.cycle(HOW), strict=False))
    return _mixed(
        [Point(f"{n:02} {how}, then 1 rank", _kill(place, how, "self", scratch, losses)) for n, (place, how) in struck]
    )


def _operations(trial: Trial, scratch: Path) -> int:
    log = scratch / "operations"
    log.unlink(missing_ok=True)
    trial.anew()
    ended = trial.run(log=log, counter=_counter(scratch))
    assert ended.status == 0, ended.said
    return max(operation.number for operation in faulty.logged(log))


def _mixed(points: Sequence[Point]) -> list[Point]:
    """The same in an order in which every part of them is spread over all."""
    step = 7 if len(points) % 7 else 1
    return [points[place * step % len(points)] for place in range(len(points))]


def _counter(scratch: Path) -> Path:
    file = scratch / "counter"
    file.write_bytes(bytes(8))
    return file


def _kill(at: int, how: str, whom: str, scratch: Path, alone: Sequence[float] = ()) -> Callable[[Trial], str]:
    def strike(trial: Trial) -> str:
        trial.anew()
        ended = trial.run(at=at, kill=how, whom=whom, counter=_counter(scratch))
        if ended.status == 0:
            return first(trial.absent_or_whole(), NOT_STRUCK)
        problem = first(_said_well(ended), trial.processes_left(), trial.absent_or_whole())
        return problem or (_goes_on_alone(trial, alone) if alone else trial.ends_equal())

    return strike


def _said_well(ended: Ended) -> str:
    """Those that live on say no traceback, and do not hang."""
    return f"status {ended.status}: {ended.said[-1500:]}" if "Traceback" in ended.said or ended.status == 124 else ""


def _goes_on_alone(trial: Trial, losses: Sequence[float]) -> str:
    """One process ends what two began, with their losses to rounding: sums of two ranks have another order."""
    again = trial.run_as(1)
    if again.status:
        return f"run again: status {again.status}: {again.said[-1500:]}"
    found, left = programs.losses(trial.out / "run"), stages.left_over(trial.stage, trial.out)
    if len(found) != len(losses) or any(abs(one - other) > 1e-5 for one, other in zip(found, losses, strict=True)):
        return f"run again: losses {found}, not {losses}"
    return f"run again: left over: {left}" if left else ""


def errors(trial: Trial, scratch: Path) -> list[Point]:
    """Every operation that is told apart by kind and path fails with every error of the machine, first with one in turn."""
    found = list(enumerate(_told_apart(trial, scratch)))
    turns = range(len(ERRORS))
    return [_failing(one, ERRORS[(place + turn) % len(ERRORS)], scratch) for turn in turns for place, one in found]


def errors_in_turn(trial: Trial, scratch: Path) -> list[Point]:
    """Every such operation fails with one of the errors, in turn: a sample, for stages with many operations."""
    pairs = zip(_told_apart(trial, scratch), itertools.cycle(ERRORS), strict=False)
    return [_failing(operation, number, scratch) for operation, number in pairs]


def errors_of_reading(trial: Trial, scratch: Path) -> list[Point]:
    """Every opening for reading, and the first read, of each input fails."""
    place = {"prefix": f"{trial.inputs}/", "ops": ",look,read,"}
    found = _told_apart(trial, scratch, **place)
    return [_failing(operation, number, scratch, trial.inputs, **place) for number in READ_ERRORS for operation in found]


def _told_apart(trial: Trial, scratch: Path, **place: object) -> list[faulty.Operation]:
    log = scratch / "operations"
    log.unlink(missing_ok=True)
    trial.anew()
    ended = trial.run(log=log, counter=_counter(scratch), **place)
    assert ended.status == 0, ended.said
    return faulty.told_apart(log, trial.inputs if place else trial.out)


def _failing(operation: faulty.Operation, number: int, scratch: Path, of: Path | None = None, **place: object) -> Point:
    def strike(trial: Trial) -> str:
        trial.anew()
        ended = trial.run(at=operation.number, errno=number, counter=_counter(scratch), **place)
        if ended.status == 0:
            return trial.differs()
        return first(_one_line(trial, ended, number, of or trial.out), trial.absent_or_whole(), trial.ends_equal())

    return Point(f"{errno.errorcode[number]} {operation.kind} {operation.path}", strike)


def _one_line(trial: Trial, ended: Ended, number: int, place: Path) -> str:
    """Status 1 and a last line with the program, a place that the user named below `place`, and the system's words."""
    program = str(trial.stage.argv(trial.inputs, trial.out)[0])
    lines = ended.said.splitlines() or [""]
    errors = [line for line in lines if ": error: " in line]
    line = errors[0] if errors else ""
    what = f"status {ended.status}: {ended.said[-1500:]}"
    if "Traceback" in ended.said or ended.status != 1 or not line:
        return what
    named = f"{program}: error: {place}" in line or (trial.stage.holds_jobs and "error: " in line)
    words = os.strerror(number).lower() in line or "torch does not say why" in line
    temporary = any(_PLACE.fullmatch(part) for part in Path(line.split(": ")[2]).parts)
    return "" if named and words and not temporary else what


def disks(trial: Trial, scratch: Path) -> list[Point]:
    """OUT is a file system that is full from the first file on, or later; then there is room."""
    size = sum(path.stat().st_blocks * 512 for path in trial.out.rglob("*")) // 1024
    sizes = [4 + size * place // DISKS for place in range(DISKS)]
    return [Point(f"{number:02} of {DISKS}", _fill(kib)) for number, kib in enumerate(sizes)]


def _fill(kib: int) -> Callable[[Trial], str]:
    def strike(trial: Trial) -> str:
        trial.anew()
        with _small_disk(trial.out, kib):
            ended = trial.run()
            if ended.status == 0:
                return first(trial.differs(), NOT_STRUCK)
            problem = first(_one_line(trial, ended, errno.ENOSPC, trial.out), trial.absent_or_whole())
            subprocess.run(["mount", "-o", "remount,size=200m", trial.out], check=True)
            return problem or trial.ends_equal()

    return strike


@contextlib.contextmanager
def _small_disk(place: Path, kib: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def two_at_once(trial: Trial, scratch: Path) -> list[Point]:
    """The same command twice, the second a little later."""
    return [Point(f"{number / 10} s apart", _twice(number / 10)) for number in range(PAIRS)]


def _twice(apart: float) -> Callable[[Trial], str]:
    import time

    def later(trial: Trial) -> Ended:
        time.sleep(apart)
        return trial.run()

    def strike(trial: Trial) -> str:
        trial.anew()
        with ThreadPoolExecutor(2) as pool:
            ends = [one.result() for one in (pool.submit(trial.run), pool.submit(later, trial))]
        if all(end.status for end in ends):
            return f"neither ends well: {ends}"
        loser = next((end for end in ends if end.status), None)
        refused = loser is None or ("Traceback" not in loser.said and loser.status in (1, 2) and ": error: " in loser.said)
        left = stages.left_over(trial.stage, trial.out)
        return first("" if refused else f"{loser}", trial.differs(), f"left over: {left}" if left else "")

    return strike


KINDS: Mapping[str, Points] = {
    "kill": kills,
    "kill, then alone": kills_then_alone,
    "errno": errors,
    "errno in turn": errors_in_turn,
    "errno of reading": errors_of_reading,
    "full disk": disks,
    "two at once": two_at_once,
    **{f"damage of {what}": damage.points(paths) for what, (_, paths) in damage.READERS.items()},
}
_WRITES = ("preference-tokenize", "ref-logprobs", "ckpt-export --to megatron", "ckpt-export --to hf", "ckpt-export --to peft")
_TRAINS = ("dpo-train", "dpo-train, LoRA")
_EVERY = tuple(name for name in stages.STAGES if name not in ("ref-logprobs by a store", "ref-logprobs of an export"))
# the cells of the matrix: the stages at which a kind is tried
CELLS: Mapping[str, Sequence[str]] = {
    "kill": _EVERY,
    "kill, then alone": ("dpo-train, 2 ranks",),
    "errno": (*_WRITES, "LoRA, ckpt-export --to hf", "dpo-report"),
    "errno in turn": (*_TRAINS, "nemotron-steps"),
    "errno of reading": (*_WRITES, "dpo-train", "dpo-report"),
    "full disk": (*_WRITES, *_TRAINS, "dpo-report", "nemotron-steps"),
    "two at once": (*_WRITES, "dpo-train", "nemotron-steps"),
    **{f"damage of {what}": (stage,) for what, (stage, _) in damage.READERS.items()},
}
