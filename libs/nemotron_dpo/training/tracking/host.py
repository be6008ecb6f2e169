"""The program of a tracker's process: python -m nemotron_dpo.training.tracking.host NAME

Reads JSON lines from stdin (what the run is, then its records, then how it ended) and writes JSON lines to stdout (what is to
be said, what is to be remembered, why it failed). What the tracker's library prints goes to stderr, which is its log file.
The process ends without any exit hook of that library. Where its run was killed, it ends its tracker's run as failed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import TrackedRun, Tracking

CLOSE_SECONDS = 60.0  # what a tracker has to send the rest, once its run has ended


def main() -> NoReturn:
    """Entry point."""
    with contextlib.suppress(OSError):
        os.nice(10)  # the training's threads come first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # the library's own words must not come between the answers
    messages = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and its questions must not take the messages
    try:
        _serve(sys.argv[1], messages, answers)
    except Exception as error:
        import traceback

        traceback.print_exc()
        _answer(answers, failed=_one_line(error))
        _end(1)
    _end(0)


def _serve(name: str, messages: TextIO, answers: TextIO) -> None:
    """Open the tracker, hand it what comes, and close it."""
    told = json.loads(messages.readline())
    run = TrackedRun(
        Path(told.pop("folder")),
        **told,
        say=lambda line: _answer(answers, say=line),
        remember=lambda known: _answer(answers, remember=dict(known)),
    )
    tracking: Tracking = importlib.import_module(f"nemotron_dpo.training.sinks.{name}").start(run)
    failed = True  # unless it is said that it ended well
    for message in _each(messages):
        if "failed" in message:
            failed = message["failed"]
            break
        tracking.write(Record(**message))
    limit = threading.Timer(CLOSE_SECONDS, _end, [1])
    limit.daemon = True
    limit.start()
    tracking.close(failed=failed)


def _each(messages: TextIO) -> Iterator[dict[str, Any]]:
    for line in messages:
        if not line.endswith("\n"):  # torn by a kill
            return
        yield json.loads(line)


def _answer(answers: TextIO, **answer: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the run is gone; the tracker still ends its own
        answers.write(json.dumps(answer) + "\n")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _end(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
