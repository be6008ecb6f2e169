"""A tracker's process as the run sees it: records go into a bounded queue, and nothing that happens there is waited for."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo.training.record import Record

QUEUE_RECORDS = 10_000  # about 10 MB
_PATIENCE_SECONDS = 3.0  # of a wait that is not worth a word
_HOST = "nemotron_dpo.training.tracking.host"


class Feed:
    """Starts the process of the tracker `name` and feeds it.

    told: what its host reads first. log: takes what its library prints. say: hears that it failed, once, and that records are
    dropped, once. remember: keeps what it calls its run.
    """

    def __init__(
        self,
        name: str,
        told: Mapping[str, Any],
        log: Path,
        *,
        say: Callable[[str], object],
        remember: Callable[[Mapping[str, Any]], object],
    ) -> None:
        self.name, self._log, self._say, self._remember = name, log, say, remember
        self._records: queue.Queue[str] = queue.Queue(QUEUE_RECORDS)
        self._dropped = 0
        self._failure: str | None = None
        self._is_killed = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _HOST, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,  # Ctrl-C is for the run, which ends its trackers itself
            )
        self._records.put(json.dumps(told, default=str))  # a date in YAML, say
        self._listener = threading.Thread(target=self._listen, daemon=True)
        for thread in (threading.Thread(target=self._send, daemon=True), self._listener):
            thread.start()

    def write(self, record: Record) -> None:
        """Put `record` into the queue; it is dropped where the queue is full, and where the tracker has failed."""
        if self._failure is None:
            self._put(json.dumps({"step": record.step, "split": record.split, "values": dict(record.values)}))

    def end(self, *, failed: bool) -> None:
        """Tell the tracker how the run ended; nothing is waited for."""
        if self._failure is None:
            threading.Thread(target=self._records.put, args=(json.dumps({"failed": failed}),), daemon=True).start()

    def wait(self, deadline: float) -> None:
        """Wait until the process has ended, no longer than to the monotonic time `deadline`, and say where it has not."""
        if not self._ended(min(_PATIENCE_SECONDS, deadline - time.monotonic())) and deadline > time.monotonic():
            self._say(f"waiting for {self.name}, {deadline - time.monotonic():.0f} s at most")
            self._ended(deadline - time.monotonic())
        if self._process.poll() is None:
            self._fail("did not take everything in time and was stopped")
        self.kill()
        self._listener.join(1.0)  # what it said last
        if self._dropped:
            self._say(f"warning: {self.name}: {self._dropped} records were dropped in all; metrics.jsonl has them")

    def kill(self) -> None:
        """End the process, if it has not ended, and those that its library started."""
        if not self._is_killed:
            self._is_killed = True  # once: the number may be another's later
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _ended(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        return self._process.poll() is not None

    def _put(self, message: str) -> None:
        try:
            self._records.put_nowait(message)
        except queue.Full:
            if not self._dropped:
                self._say(f"warning: {self.name}: {QUEUE_RECORDS} records wait to be taken: further ones are dropped meanwhile")
            self._dropped += 1

    def _send(self) -> None:
        """Work of a thread: write what is in the queue to the process, until it has been told how the run ended."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # the process has ended, and `_listen` says why
            while True:
                message = self._records.get()
                pipe.write(f"{message}\n")
                pipe.flush()
                if message.startswith('{"failed"'):
                    break
        with contextlib.suppress(BrokenPipeError):
            pipe.close()

    def _listen(self) -> None:
        """Work of a thread: say and remember what the process answers, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # else it died in the middle of it
                self._take(json.loads(line))
        if self._process.wait() != 0:
            self._fail(f"ended with status {self._process.returncode}")

    def _take(self, answer: Mapping[str, Any]) -> None:
        if "say" in answer:
            self._say(f"{self.name}: {answer['say']}")
        if "failed" in answer:
            self._fail(f"failed: {answer['failed']}")
        if "remember" in answer:
            try:
                self._remember(answer["remember"])
            except OSError as error:
                self._say(f"warning: {self.name}: a resumed run will begin a new one there, this one cannot be noted: {error}")

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = why
            self._say(f"warning: {self.name} {why}: see {self._log}; metrics.jsonl has every metric")
