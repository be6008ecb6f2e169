"""Programs as forks of a process that has imported all they need (`fork_server.py`), one such process a test worker.

Where forking cannot be had (no Linux, or a GPU, whose driver does not survive it) `can_fork` says so.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from support import fork_server


@dataclass(frozen=True)
class Fork:
    """A program that runs; `pid` is its process, which is a child of the server's."""

    argv: Sequence[str]
    pid: int
    _reply: socket.socket

    def wait(self, timeout: float) -> int:
        """Its status, negative where a signal ended it, as subprocess has it. Raises TimeoutExpired, and it is killed."""
        self._reply.settimeout(timeout)
        try:
            with self._reply:
                (status,) = fork_server.WORD.unpack(self._reply.recv(fork_server.WORD.size))
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.argv, timeout) from None
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it; call before `wait` has returned."""
        os.kill(self.pid, number)


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    requests: socket.socket


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a fork can be what a program started with `environment` is."""
    return hasattr(os, "pidfd_open") and not Path("/dev/nvidiactl").exists() and fork_server.can_be_honoured(environment)


def start(
    argv: Sequence[str], stdin: int, stdout: int, stderr: int, *, cwd: object = None, env: Mapping[str, str] | None = None
) -> Fork:
    """Start `argv`, a Python file of ours and its arguments, on those descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = {"argv": list(argv), "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
    with theirs:
        with _ONE_STARTS_IT:
            server = _server()
        socket.send_fds(server.requests, [json.dumps(request).encode()], [stdin, stdout, stderr, theirs.fileno()])
    (pid,) = fork_server.WORD.unpack(ours.recv(fork_server.WORD.size))
    return Fork(argv, pid, ours)


def run(
    argv: Sequence[str], *, input: bytes | None = None, timeout: float = 300, cwd: object = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """What subprocess.run with capture_output gives: `input` through a pipe, and what comes out of two others."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, feed), (out, stdout), (err, stderr) = pipes
    try:
        program = start(argv, 0 if input is None else stdin, stdout, stderr, cwd=cwd, env=env)
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    with ThreadPoolExecutor(3) as pool:
        said = [pool.submit(_read, descriptor) for descriptor in (out, err)]
        pool.submit(_write, feed, input or b"")
        status = program.wait(timeout)
    return subprocess.CompletedProcess(argv, status, *(one.result() for one in said))


def stop() -> None:
    """End the server, if there is one, and wait for it."""
    if _server.cache_info().currsize:
        server = _server()
        server.requests.close()
        server.process.wait(30)
        _server.cache_clear()


_ONE_STARTS_IT = threading.Lock()  # the ranks of a job are started from threads at once


@functools.cache
def _server() -> _Server:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, fork_server.LARGEST_REQUEST)
    argv = [sys.executable, fork_server.__file__, str(theirs.fileno())]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with theirs:
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], env=environment)
    return _Server(process, ours)


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as pipe:
        return pipe.read()


def _write(descriptor: int, content: bytes) -> None:
    try:
        with open(descriptor, "wb", buffering=0) as pipe:
            pipe.write(content)
    except BrokenPipeError:
        pass  # it does not read to the end: what it says of that is looked at
