"""Limits for the code of a stranger's chat template: how long it may compute for one row, and how much text it may make.

Jinja's sandbox keeps a template from files and from Python; it lets it compute without end. What a single step can make too
large is looked at before it is done; what takes many steps is ended from another thread, by the time that this thread computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from nemotron_dpo.preferences.problems import RowProblem

SECONDS = 10.0  # of computing for one text; a row of a million tokens takes a tenth of it
MOST_LETTERS = 64_000_000
_MOST_BITS = 4096
_WIDE = re.compile(r"\d{7,}|\*")  # in a format, a width that is no page's
_PADDING = frozenset(("ljust", "rjust", "center", "zfill", "expandtabs", "indent"))


class TemplateTooLong(BaseException):
    """Raised within a template that computes too long. Nothing that a template calls may take it for an error of its own."""


def joined(pieces: Iterable[str]) -> str:
    """The text that a template makes piece by piece. Raises RowProblem where it has no end."""
    kept, letters = [], 0
    with watched("computes"):
        for piece in pieces:
            letters += len(piece)
            if letters > MOST_LETTERS:
                raise _too_large()
            kept.append(piece)
    return "".join(kept)


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Raise RowProblem where the result would be beyond all bounds."""
    if operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 1
        is_large = isinstance(right, int) and bits * right > _MOST_BITS
    elif operator == "*":
        is_large = _size(left) * _size(right) > MOST_LETTERS if _is_sized(left) or _is_sized(right) else False
        is_large |= isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MOST_BITS
    elif operator == "+":
        is_large = _is_sized(left) and _is_sized(right) and len(left) + len(right) > MOST_LETTERS
    else:
        is_large = isinstance(left, str) and _WIDE.search(left) is not None
    if is_large:
        raise _too_large()


def check_call(name: str, text: Any, arguments: Iterable[Any]) -> None:
    """As `check_operation`, of the method or filter `name` of `text`."""
    given = list(arguments)
    is_large = name in _PADDING and any(isinstance(value, int) and value > MOST_LETTERS for value in given)
    if isinstance(text, str) and name in ("format", "format_map"):
        is_large = _WIDE.search(text) is not None
    if isinstance(text, str) and name == "replace" and len(given) > 1 and isinstance(given[1], str):
        is_large = text.count(str(given[0])) * len(given[1]) > MOST_LETTERS
    if isinstance(text, str) and name == "join" and len(given) == 1 and _is_sized(given[0]):
        is_large = len(text) * len(given[0]) > MOST_LETTERS
    if is_large:
        raise _too_large()


def _too_large() -> RowProblem:
    return RowProblem("template error", f"the chat template makes a text of more than {MOST_LETTERS / 1e6:.0f} million letters")


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _size(value: Any) -> int:
    return len(value) if _is_sized(value) else value if isinstance(value, int) else 1


_computing: dict[int, float] = {}  # thread -> its own time by which it has to be done
_lock = threading.Lock()
_watchers: list[threading.Thread] = []


@contextlib.contextmanager
def watched(does: str) -> Iterator[None]:
    """In the block this thread may compute for SECONDS. Raises RowProblem where the template `does` that longer."""
    thread = threading.get_ident()
    try:
        _begin(thread)
        try:
            yield
        finally:
            with _lock:
                _computing.pop(thread, None)
    except TemplateTooLong:
        raise RowProblem("template error", f"the chat template {does} for more than {SECONDS:.0f} s") from None


def _begin(thread: int) -> None:
    _computing[thread] = time.thread_time() + SECONDS
    if not _watchers or not _watchers[0].is_alive():  # in a process that was forked it is not
        with _lock:
            _watchers[:] = [threading.Thread(target=_watch, daemon=True)]
            _watchers[0].start()


def _watch() -> None:
    while True:
        time.sleep(SECONDS / 10)
        with _lock:
            for thread, until in list(_computing.items()):
                if _own_time(thread) > until:
                    del _computing[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TemplateTooLong))


def _own_time(thread: int) -> float:
    """The time that a thread has computed; 0 where its end is a race with being asked."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except OSError:
        return 0.0
