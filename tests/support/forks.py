"""Programs as forks of a process that has imported all they need (`fork_server.py`), one such process a test worker.

Programs with a library to preload are forks of one that has preloaded it, and those of another Python forks of that.

Where forking cannot be had (no Linux, or a GPU, whose driver does not survive it) `can_fork` says so.
"""

from __future__ import annotations

import contextlib
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

import psutil

from support import fork_server
from support.forkable import can_be_honoured


@dataclass(frozen=True)
class Python:
    """An interpreter, variables that it is started with, and packages that every program of it imports for itself.

    Where there are modules to import `first`, it has these, and neither torch nor all of ours.
    """

    path: str = sys.executable
    variables: tuple[tuple[str, str], ...] = ()
    anew: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


OURS = Python()


@dataclass(frozen=True)
class Fork:
    """A program that runs; `pid` is its process, which is a child of the server's."""

    argv: Sequence[str]
    pid: int
    _reply: socket.socket

    def wait(self, timeout: float) -> int:
        """Its status, negative where a signal ended it, as subprocess has it. Raises TimeoutExpired, and it is killed.

        What it has started is killed too: that may have the ends of pipes whose other ends wait for it.
        """
        self._reply.settimeout(timeout)
        try:
            with self._reply:
                (status,) = fork_server.WORD.unpack(self._reply.recv(fork_server.WORD.size))
        except TimeoutError:
            kill_tree(self.pid)
            raise subprocess.TimeoutExpired(self.argv, timeout) from None
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it; call before `wait` has returned."""
        os.kill(self.pid, number)


def kill_tree(pid: int) -> None:
    """Kill a process and all that come of it; those that are gone are no matter."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in (*first.children(recursive=True), first):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    requests: socket.socket


def can_fork(environment: Mapping[str, str], python: Python = OURS) -> bool:
    """Whether a fork can be what a program started with `environment` is."""
    same = can_be_honoured(environment, {**os.environ, **dict(python.variables)})
    return same and hasattr(os, "pidfd_open") and not Path("/dev/nvidiactl").exists()


def start(
    argv: Sequence[str], stdin: int, stdout: int, stderr: int, *, cwd: object = None, env: Mapping[str, str] | None = None,
    leads: bool = False, python: Python = OURS, namespaces: Sequence[int] = (),
) -> Fork:  # fmt: skip
    """Start `argv`, a Python file of ours and its arguments, on those descriptors; one that `leads` in a process group.

    `namespaces` are those of fork_server.NAMESPACES that it is to be in.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ if env is None else env)
    request = {"argv": list(argv), "env": environment, "cwd": str(cwd or Path.cwd()), "leads": leads}
    with theirs:
        with _ONE_STARTS_IT:
            server = _server(environment.get("LD_PRELOAD", ""), python)
        socket.send_fds(server.requests, [json.dumps(request).encode()], [stdin, stdout, stderr, theirs.fileno(), *namespaces])
    (pid,) = fork_server.WORD.unpack(ours.recv(fork_server.WORD.size))
    return Fork(argv, pid, ours)


def run(
    argv: Sequence[str], *, input: bytes | None = None, timeout: float = 300, cwd: object = None,
    env: Mapping[str, str] | None = None, leads: bool = False, python: Python = OURS,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """What subprocess.run with capture_output gives: `input` through a pipe, and what comes out of two others."""
    pipes = [os.pipe() for _ in range(3)]
    (stdin, feed), (out, stdout), (err, stderr) = pipes
    try:
        program = start(argv, 0 if input is None else stdin, stdout, stderr, cwd=cwd, env=env, leads=leads, python=python)
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    with ThreadPoolExecutor(3) as pool:
        said = [pool.submit(_read, descriptor) for descriptor in (out, err)]
        pool.submit(_write, feed, input or b"")
        status = program.wait(timeout)
    return subprocess.CompletedProcess(argv, status, *(one.result() for one in said))


def stop() -> None:
    """End the servers that there are, and wait for them."""
    while _SERVERS:
        _, server = _SERVERS.popitem()
        server.requests.close()
        server.process.wait(30)


_ONE_STARTS_IT = threading.Lock()  # the ranks of a job are started from threads at once
_SERVERS: dict[tuple[str, Python], _Server] = {}  # by what they have preloaded, and of which Python


def _server(preload: str, python: Python) -> _Server:
    if (preload, python) not in _SERVERS:
        _SERVERS[preload, python] = _started(preload, python)
    return _SERVERS[preload, python]


def _started(preload: str, python: Python) -> _Server:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, fork_server.LARGEST_REQUEST)
    argv = [python.path, fork_server.__file__, str(theirs.fileno()), ",".join(python.first), *python.anew]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LD_PRELOAD")}
    preloads = {"LD_PRELOAD": preload} if preload else {}
    with theirs:
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], env={**environment, **dict(python.variables), **preloads})
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
