"""Read a log that a server streams from its start, in a thread, over as many connections as it takes."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from nemotron_dpo.steps.executors.shared.follow import JobState

_PAUSE_SECONDS = 1.0
_ENDING = re.compile(rb"^nemotron-steps: job \S+ ends with exit status (\d+)$", re.M)
_LONGEST_ENDING = 200
# How long the last lines of a job that has ended may take to arrive.
_LAST_SECONDS = 5.0
_MANY_FAILURES = 20


def pieces(response: Any) -> Iterator[bytes]:
    """The body of a response of `requests`, each piece as soon as it is there, until all is said or the server is silent."""
    from requests import ConnectionError

    # without chunks a larger size than 1 would be waited for
    with contextlib.suppress(ConnectionError):
        yield from response.iter_content(chunk_size=None if response.raw.chunked else 1)


class StreamedLog:
    """What the connections that `connect` makes have brought so far. One that fails is made again."""

    def __init__(self, connect: Callable[[], Iterator[bytes]], say: Callable[[str], object]) -> None:
        self._connect = connect
        self._say = say
        self._arrived = bytearray()
        self._dropped = 0
        self._lock = threading.Lock()
        self._tail = b""
        self._failures = 0
        self.exit_status: int | None = None
        self._thread = threading.Thread(target=self._pump, daemon=True)

    def read(self, offset: int) -> bytes:
        """What arrived from `offset` on; what lies before it is forgotten."""
        self._start()
        with self._lock:
            del self._arrived[: max(0, offset - self._dropped)]
            self._dropped = max(self._dropped, offset)
            return bytes(self._arrived)

    def ending_of(self, name: str, word: str) -> JobState:
        """A job's state `name`, `word` to its platform; once it has ended, with the exit status that the log tells.

        That counts more than the platform's word, which may be that of a program around the job.
        """
        state = JobState(name, "None" if word == "Pending" else word, 0, 0)
        if not state.has_ended or name == "CANCELLED":
            return state
        status = self._wait_for_ending(_LAST_SECONDS)
        if name == "COMPLETED":
            return JobState("FAILED", word, status, 0) if status else state
        if status is None:  # a name that nobody gives: its log did not tell why
            return JobState("failed", "its log does not tell why", 1, 0)
        return JobState("FAILED", word, status or 1, 0)

    def _wait_for_ending(self, seconds: float) -> int | None:
        """The exit status that the job's last line tells, if that arrives in time."""
        self._start()
        until = time.monotonic() + seconds
        while self.exit_status is None and time.monotonic() < until:
            time.sleep(0.05)
        return self.exit_status

    def _start(self) -> None:
        if not self._thread.is_alive() and self.exit_status is None:
            self._thread.start()

    def _pump(self) -> None:
        while self.exit_status is None:
            try:
                self._receive(self._connect())
                self._failures = 0
            except Exception as error:  # whatever it is that fails, the next connection may not
                self._failures += 1
                if self._failures == _MANY_FAILURES:
                    self._say(f"warning: the log cannot be read ({type(error).__name__}: {error}): still trying")
            time.sleep(_PAUSE_SECONDS)

    def _receive(self, chunks: Iterator[bytes]) -> None:
        """Add what earlier connections have not brought."""
        position = 0
        for chunk in chunks:
            known = self._dropped + len(self._arrived)
            new = chunk[max(0, known - position) :]
            position += len(chunk)
            with self._lock:
                self._arrived += new
            self._tail = (self._tail + new)[-_LONGEST_ENDING:]
            if new and (ending := _ENDING.search(self._tail)):
                self.exit_status = int(ending[1])
