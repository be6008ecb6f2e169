"""Run commands where the cluster's are: here, or on a login node through the system's ssh. Never without a timeout."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.follow import NoAnswer
from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

CALL_SECONDS = 30
_CONNECT_SECONDS = 15
# Long enough to type a password and a second factor.
_LOGIN_SECONDS = 90
_SSH_FAILED = 255


class Tunnel(Protocol):
    """A place to run commands. `pause_seconds`: between two questions about a job."""

    @property
    def pause_seconds(self) -> float: ...

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = CALL_SECONDS) -> subprocess.CompletedProcess[bytes]:
        """Run `argv` to its end. Raises NoAnswer where it does not end in time or cannot be reached."""
        ...

    def by_hand(self, argv: Sequence[str]) -> str:
        """The command line a person would type here."""
        ...


@contextlib.contextmanager
def open_tunnel(settings: SlurmSettings) -> Iterator[Tunnel]:
    """The tunnel that `settings` ask for; one connection serves all commands. Raises NoAnswer where there is no host."""
    if settings.tunnel == "local":
        yield LocalTunnel()
        return
    with tempfile.TemporaryDirectory(prefix="nemotron-ssh-") as folder:
        tunnel = SshTunnel(destination(settings), f"{folder}/s")
        with _connected(tunnel):
            yield tunnel


def destination(settings: SlurmSettings) -> tuple[str, ...]:
    """The words of ssh's command line that say where to, and as whom."""
    user = ("-l", settings.user) if settings.user else ()
    identity = ("-i", os.path.expanduser(settings.identity), "-o", "IdentitiesOnly=yes") if settings.identity else ()
    return (*user, *identity, "--", str(settings.host))


@dataclass(frozen=True)
class LocalTunnel:
    """This machine."""

    pause_seconds: float = 0.5

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = CALL_SECONDS) -> subprocess.CompletedProcess[bytes]:
        try:
            return _run(argv, stdin, seconds)
        except FileNotFoundError:
            raise UserError("no such program here", source=argv[0], remedy="run on the cluster, or set host") from None

    def by_hand(self, argv: Sequence[str]) -> str:
        return shlex.join(argv)


@dataclass(frozen=True)
class SshTunnel:
    """A login node, by ssh's control socket at `socket`; `target` ends in its name."""

    target: tuple[str, ...]
    socket: str
    pause_seconds: float = 1.0

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = CALL_SECONDS) -> subprocess.CompletedProcess[bytes]:
        done = _run(["ssh", "-S", self.socket, "-o", "BatchMode=yes", *self.target, shlex.join(argv)], stdin, seconds)
        if done.returncode == _SSH_FAILED:
            raise _unreachable(self.target[-1], done.stderr)
        return done

    def by_hand(self, argv: Sequence[str]) -> str:
        return shlex.join(["ssh", *(word for word in self.target if word != "--"), shlex.join(argv)])


@contextlib.contextmanager
def _connected(tunnel: SshTunnel) -> Iterator[None]:
    """Hold the connection that `tunnel` uses; a password is asked for where there is a terminal."""
    if shutil.which("ssh") is None:
        raise UserError("no such program here", source="ssh", remedy="install an OpenSSH client")
    asks = sys.stdin.isatty()
    options = ["-o", f"BatchMode={'no' if asks else 'yes'}", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    options += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
    # -f: once logged in, ssh leaves the terminal, so that Ctrl-C here does not end it
    argv = ["ssh", "-M", "-N", "-f", "-S", tunnel.socket, *options, *tunnel.target]
    with tempfile.TemporaryFile() as said:
        try:
            seconds = _LOGIN_SECONDS if asks else _CONNECT_SECONDS + 5
            stdin = None if asks else subprocess.DEVNULL
            status = subprocess.run(argv, stdin=stdin, stdout=said, stderr=said, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            raise NoAnswer("cannot be reached: nobody answered in time", source=tunnel.target[-1]) from None
        if status:
            said.seek(0)
            raise _unreachable(tunnel.target[-1], said.read())
    try:
        yield
    finally:
        subprocess.run(["ssh", "-S", tunnel.socket, "-O", "exit", *tunnel.target], capture_output=True, timeout=CALL_SECONDS)


def _unreachable(host: str, stderr: bytes) -> NoAnswer:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return NoAnswer(f"cannot be reached: {lines[-1].strip() if lines else 'no answer'}", source=host)


def _run(argv: Sequence[str], stdin: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    """`argv` in a session of its own, so that Ctrl-C here does not reach it, ended when its time is up."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout=seconds)
    except BaseException as stop:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(stop, subprocess.TimeoutExpired):
            raise NoAnswer(f"no answer within {seconds:g} s", source=_program(argv)) from None
        raise
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


def _program(argv: Sequence[str]) -> str:
    return f"{argv[0]} {argv[-1].split()[0]}" if argv[0] == "ssh" else argv[0]
