"""One odd input handed to what reads it."""

from __future__ import annotations

import functools
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.edits import Edits
from fuzz.inputs import ALL
from fuzz.target import Target
from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import as_user_error

SECONDS = 3.0  # of CPU for one input, on a machine that does other things too


@dataclass(frozen=True)
class Failure:
    """An input and what it came to; `kind` tells failures of one cause together."""

    kind: str
    content: bytes
    error: BaseException | None


@functools.cache
def _sound(name: str) -> list[Any]:
    return ALL[name].sound()


def content_of(target: Target, number: int) -> bytes:
    """The input with this number."""
    edits = Edits(number)
    return edits.content(edits.pick(_sound(target.name)), target.written)


def attempt(target: Target, number: int, folder: Path) -> Failure | None:
    """Read the input with this number in the empty `folder`; None where it ended as it should."""
    return judged(target, content_of(target, number), folder)


def _read(target: Target, content: bytes, folder: Path) -> None:
    try:
        target.read(folder, content)
    except OSError as error:  # as the programs do: a name may be too long for a file
        if error.errno is None:
            raise
        raise as_user_error(error) from None


def judged(target: Target, content: bytes, folder: Path) -> Failure | None:
    """Read `content`; what is wrong with how that ended. What took long is read again: the first one imports what it needs."""
    failure = _judged(target, content, folder)
    return _judged(target, content, folder) if failure is not None and failure.error is None else failure


def _judged(target: Target, content: bytes, folder: Path) -> Failure | None:
    began = time.process_time()
    try:
        _read(target, content, folder)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 4000:
            return Failure("a message of more than a line", content, error)
    except BaseException as error:  # a panic of Rust's is one
        if isinstance(error, KeyboardInterrupt):
            raise
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/libs/" in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        return Failure(f"{type(error).__name__} at {where}", content, error)
    took = time.process_time() - began
    return Failure(f"takes {took:.0f} s", content, None) if took > SECONDS else None
