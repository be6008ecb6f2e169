"""A tracker's process as a fork of a Python that has imported the tracker's library, which takes three CPU seconds."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TextIO

import pytest

from nemotron_dpo.training.tracking import feed
from support import forks


def fork_hosts(monkeypatch: pytest.MonkeyPatch, python: forks.Python) -> None:
    """Let the trackers' processes be forks of `python`, where forking can be had."""

    def popen(argv: Sequence[str], **options: Any) -> subprocess.Popen[str] | ForkedHost:
        if forks.can_fork(os.environ, python):
            return ForkedHost(argv, python, **options)
        return subprocess.Popen(argv, **options)

    names = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    monkeypatch.setattr(feed, "subprocess", SimpleNamespace(Popen=popen, **names))


class ForkedHost:
    """What feed.py needs of the subprocess.Popen that it asks for."""

    def __init__(self, argv: Sequence[str], python: forks.Python, *, stderr: TextIO, **options: Any) -> None:
        assert options == {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        self.returncode: int | None = None
        (stdin, feed_it), (hear_it, stdout) = os.pipe(), os.pipe()
        self._fork = forks.start(argv, stdin, stdout, stderr.fileno(), leads=True, python=python)
        for descriptor in (stdin, stdout):
            os.close(descriptor)
        self.pid, self.stdin, self.stdout = self._fork.pid, open(feed_it, "w"), open(hear_it)  # noqa: SIM115 - closed by feed.py, and with this
        self._reaper = threading.Thread(target=self._reap, daemon=True)
        self._reaper.start()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._reaper.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._fork.argv, timeout or 0)
        return self.returncode

    def _reap(self) -> None:
        self.returncode = self._fork.wait(600)
