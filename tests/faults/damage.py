"""Damage of what the stages read: a bit turned, the end cut off, a block of zeros, two blocks changed over, a file gone.

It is found before use and named, or does not matter: the outputs are those of an undisturbed run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from faults import stages
from faults.results import UNSEEN
from faults.trial import Point, Points, Trial

SEEDS, BLOCK = 10, 64
# what is damaged, the stage that reads it, and where it lies among the inputs; or in the run that the stage goes on with
READERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "pairs": ("ref-logprobs", ("pairs.arrow",)),
    "scores": ("dpo-train", ("scored.arrow",)),
    "the store": ("ref-logprobs by a store", ("store",)),
    "a policy of others": ("ref-logprobs", ("policy",)),
    "an export": ("ref-logprobs of an export", ("hf",)),
    "a checkpoint": ("ckpt-export --to hf", ("run/checkpoints/step_2",)),
    "adapters": ("ckpt-export --to peft", ("lora/checkpoints/step_2/policy",)),
    "a stopped run": ("dpo-train, resumed", ("begun",)),
    "a run": ("dpo-report", ("run/metrics.jsonl", "run/run.json", "run/pairs_log.arrow")),
}
Damage = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _zeros(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return (data[:place] + bytes(min(BLOCK, len(data) - place)) + data[place + BLOCK :])[: len(data)]


def _swap(data: bytes, draw: random.Random) -> bytes:
    size = min(BLOCK, len(data) // 2)
    first, second = sorted((draw.randrange(len(data) // 2 - size + 1), draw.randrange(len(data) // 2, len(data) - size + 1)))
    between = data[first + size : second]
    return data[:first] + data[second : second + size] + between + data[first : first + size] + data[second + size :]


WAYS: Mapping[str, Damage] = {"flip": _flip, "cut": _cut, "zeros": _zeros, "swap": _swap}


def points(paths: Sequence[str]) -> Points:
    """Every file of `paths` in every way, by seeds: all with the first seed, then all with the next."""

    def of(trial: Trial, scratch: Path) -> list[Point]:
        trial.anew()
        files = [file for path in paths for file in _files(trial.inputs / path)]
        names = [str(file.relative_to(trial.inputs)) for file in files]
        tried = [(name, way, seed) for seed in range(SEEDS) for name in names for way in WAYS]
        gone = [Point(f"{_steady(name)} missing", _damaged(name, None)) for name in names]
        return gone + [Point(f"{_steady(name)} {way} {seed}", _damaged(name, _by_seed(way, seed))) for name, way, seed in tried]

    return of


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)


def _steady(name: str) -> str:
    """The name without what is random in those of the store."""
    return stages.without_names(name)


def _by_seed(way: str, seed: int) -> Callable[[bytes], bytes]:
    def damaged(data: bytes) -> bytes:
        draw = random.Random(f"{way} {seed}")
        found = (WAYS[way](data, draw) for _ in range(100))
        return next((other for other in found if other != data), data)

    return damaged


def _damaged(name: str, how: Callable[[bytes], bytes] | None) -> Callable[[Trial], str]:
    def strike(trial: Trial) -> str:
        trial.anew()
        file = _read_there(trial, name)
        data = file.read_bytes()
        try:
            file.unlink()
            if how is not None:
                file.write_bytes(how(data))
            return _seen(trial, name)
        finally:
            file.write_bytes(data)

    return strike


def _read_there(trial: Trial, name: str) -> Path:
    begun = trial.stage.begun
    return trial.out / "run" / Path(name).relative_to(begun) if begun else trial.inputs / name


def _seen(trial: Trial, name: str) -> str:
    """What came of the damage of the file `name`."""
    ended = trial.run()
    what = f"status {ended.status}: {ended.said[-1500:]}"
    if "Traceback" in ended.said or ended.status not in (0, 1, 2):
        return what
    if ended.status == 0:
        return f"{UNSEEN}: {trial.differs()}" if trial.differs() else ""
    line = next((line for line in ended.said.splitlines() if ": error: " in line), "")
    root = trial.out / "run" if trial.stage.begun else trial.inputs / Path(name).parts[0]
    if str(root) not in line:
        return f"names not the place: {what}"
    return "" if trial.stage.begun else trial.absent_or_whole()
