"""One stage under faults: it is run, struck, looked at, and run again. What is wrong is text; "" where it holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired

from faults import stages
from faults.stages import Stage
from support import faulty, forks
from support.programs import command, free_port

SECONDS = 300  # after which a program counts as hanging
_LIGHT = {"preference_tokenize": ("nemotron_dpo.preferences.tokenize_files",)}  # by program: all that it needs
_GONE = 15  # in which processes end whose parent, or whose peer, is gone


@dataclass(frozen=True)
class Ended:
    """How a program, or the first rank that failed, ended, and what all of them said."""

    status: int
    said: str


@dataclass(frozen=True)
class Trial:
    """A stage with its inputs; `whole` is what it writes below `out` where nothing disturbs it."""

    name: str
    stage: Stage
    inputs: Path
    out: Path
    whole: Mapping[str, str]

    def run(self, **faults: object) -> Ended:
        """Run the stage, with the faults FAULT_<NAME>=value in its operations below `out`."""
        return self.run_as(self.stage.processes, **faults)

    def run_as(self, number: int, /, **faults: object) -> Ended:
        """The same as that many processes."""
        argv = command(*map(str, self.stage.argv(self.inputs, self.out)))
        jobs = _ranks(number) if number > 1 else [{}]
        told = {f"FAULT_{name.upper()}": str(value) for name, value in faults.items()}
        told.setdefault("FAULT_PREFIX", f"{self.out}/")
        preload = {"LD_PRELOAD": str(faulty.library()), "OMP_NUM_THREADS": "1"}
        python = forks.Python(first=_LIGHT.get(Path(argv[1]).stem, ()))
        with ThreadPoolExecutor(number) as pool:
            ends = list(pool.map(lambda rank: _fork(argv, self.out, {**os.environ, **preload, **rank, **told}, python), jobs))
        status = next((end.status for end in ends if end.status not in (0, -9)), next((e.status for e in ends if e.status), 0))
        return Ended(status, "".join(end.said for end in ends))

    def anew(self) -> None:
        """Begin again with OUT as the stage finds it."""
        stages.begin(self.stage, self.inputs, self.out)

    def absent_or_whole(self) -> str:
        """Every output that is there has the bytes of an undisturbed run."""
        wrong = [name for name, digest in stages.outputs(self.stage, self.out).items() if self.whole.get(name) != digest]
        return f"half written: {wrong}" if wrong else ""

    def ends_equal(self) -> str:
        """Run again: it ends well, with the outputs of an undisturbed run and nothing left over, or they are there already."""
        again = self.run()
        if "exists already" in again.said and not self.differs():
            return ""  # an export that was whole, and struck as it cleared away
        if again.status:
            return f"run again: status {again.status}: {again.said[-1500:]}"
        left = stages.left_over(self.stage, self.out)
        problem = first(self.differs(), f"left over: {left}" if left else "")
        return f"run again: {problem}" if problem else ""

    def differs(self) -> str:
        """The outputs that are not those of an undisturbed run."""
        found = stages.outputs(self.stage, self.out)
        differ = sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
        return f"differ: {differ}" if differ else ""

    def processes_left(self) -> str:
        """Processes that work in OUT, after a while in which they may end."""
        deadline = time.monotonic() + _GONE
        while found := _working_in(self.out):
            if time.monotonic() > deadline:
                return f"processes left: {found}"
            time.sleep(0.1)
        return ""


@dataclass(frozen=True)
class Point:
    """One fault: a name that stays the same from run to run, and what tries it: how it came out, "" where the stage held."""

    name: str
    strike: Callable[[Trial], str]


Points = Callable[[Trial, Path], Sequence[Point]]


def trial_of(name: str, inputs: Path, out: Path) -> Trial:
    """The stage of that name; it is run once without faults."""
    trial = Trial(name, stages.STAGES[name], inputs, out, {})
    trial.anew()
    ended = trial.run()
    assert ended.status == 0, ended.said
    return Trial(name, trial.stage, inputs, out, stages.outputs(trial.stage, out))


def first(*problems: str) -> str:
    """The first that is not empty."""
    return next((problem for problem in problems if problem), "")


def _ranks(number: int) -> list[dict[str, str]]:
    job = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def _fork(argv: Sequence[str], folder: Path, environment: Mapping[str, str], python: forks.Python) -> Ended:
    try:
        done = forks.run(argv, cwd=folder, env=environment, leads=True, timeout=SECONDS, python=python)
    except TimeoutExpired:
        return Ended(124, f"hangs: killed after {SECONDS} s\n")
    return Ended(done.returncode, done.stderr.decode(errors="replace"))


def _working_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = os.readlink(process / "cwd").removesuffix(" (deleted)")
        except OSError:
            continue
        if place == str(folder) or place.startswith(f"{folder}/"):
            found.append(int(process.name))
    return found
