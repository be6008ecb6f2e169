"""Programs whose file operations fail, or that are killed at one: by tests/faults/fault.c, preloaded."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "faults" / "fault.c"
# what is random or counted in a path, so that operations of one kind are told by their text
_RANDOM = [
    (r"\.[0-9a-f]{8}-[0-9a-f]{16}\.tmp", ".PLACE"),
    (r"\d{20}-[^/]*", "SCORES"),
    (r"(step|iter)_\d+", r"\1_N"),
    (r"__0_\d", "__0_N"),
    (r"\d{8}-\d{6}-rl-nemo_rl-dpo(-\d+)?", "JOB"),
    (r"[0-9a-f]{32}", "KEY"),
]


@dataclass(frozen=True)
class Operation:
    """The `number`th operation of a program, its kind (as fault.c has them) and the path."""

    number: int
    kind: str
    path: str


@functools.cache
def library() -> Path:
    """fault.c, compiled; the test is skipped where there is no compiler."""
    made = Path(tempfile.mkdtemp(prefix="faults-")) / "fault.so"
    compiler = os.environ.get("CC", "").split() or ["cc"]
    try:
        subprocess.run([*compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"fault.c needs a C compiler ({error})")
    return made


def logged(log: Path) -> list[Operation]:
    """The operations that `log` has, in their order; of the number 0 is one that says what is renamed by the next."""
    fields = (line.split(" ", 3) for line in log.read_text().splitlines())
    return [Operation(int(number), kind, path) for number, _, kind, path in fields]


def told_apart(log: Path, folder: Path) -> list[Operation]:
    """The first of each kind and path below `folder`, the path without what is random in it."""
    found: dict[tuple[str, str], Operation] = {}
    for one in logged(log):
        path = functools.reduce(lambda text, rule: re.sub(*rule, text), _RANDOM, os.path.relpath(one.path, folder))
        if one.number:
            found.setdefault((one.kind, path), Operation(one.number, one.kind, path))
    return list(found.values())
