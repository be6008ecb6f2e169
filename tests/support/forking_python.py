"""Programs for shell scripts that are forks too: executables that give their command to the tests' fork server.

As a program, `python -IS forking_python.py SOCKET ARGV...` is what these executables run: it sends ARGV, its environment,
folder, standard streams and namespaces (it may be on a test host) over SOCKET, hands on what signals it gets, and ends with
the status that comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

NAMESPACES = ("net", "uts", "mnt")
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LARGEST = 1 << 20
WORD = struct.Struct("q")
ASK = """exec "{python}" -IS "{here}" "{socket}" "{program}" "$@\""""
PYTHON = """case $1 in
*{cold}) ;;
*.py) {ask} ;;
-m) case $2 in nemotron_dpo.*) {ask} ;; esac ;;
esac
exec "{python}" "$@\""""


@contextlib.contextmanager
def forks_first(folder: Path) -> Iterator[str]:
    """A shell command by which a job finds our programs as executables in `folder` first, where forking can be had."""
    from support import forks

    folder.mkdir()
    with forking_programs(folder) if forks.can_fork(os.environ) else contextlib.nullcontext():
        yield f'export PATH="{folder}:$PATH"'


@contextlib.contextmanager
def forking_programs(folder: Path, cold: str = "/cold.py") -> Iterator[Path]:
    """`folder`, with our programs as executables, and `python`, which forks the Python files and modules of ours it is given.

    What is neither `python` starts as Python does, and so a file whose path ends in `cold`.
    """
    from support.fork_server import PROGRAMS

    place, python = folder / "forks.socket", sys.executable
    known = {"python": python, "here": __file__, "socket": place}
    scripts = {name: ASK.format(**known, program=Path(python).with_name(name)) for name in PROGRAMS}
    scripts["python"] = PYTHON.format(python=python, cold=cold, ask=ASK.format(**known, program=python))
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place))
        listener.listen()
        server = threading.Thread(target=_serve, args=(listener,))
        server.start()
        try:
            yield folder
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


def _serve(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is shut down
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_fork, args=(connection,)).start()


def _fork(connection: socket.socket) -> None:
    """Start what is asked for, and tell its status."""
    from support import forks

    with connection:
        message, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 3 + len(NAMESPACES))
        asked, streams, namespaces = json.loads(message), descriptors[:3], descriptors[3:]
        try:
            fork = forks.start(asked["argv"], *streams, cwd=asked["cwd"], env=asked["env"], namespaces=namespaces)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(WORD.pack(fork.pid))
        connection.send(WORD.pack(fork.wait(300)))


def main(place: str, *argv: str) -> int:
    """Ask for `argv`; a status as a shell has it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # until it is known to whom they go
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        connection.connect(place)
        asked = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}
        namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES]
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2, *namespaces])
        (program,) = WORD.unpack(connection.recv(WORD.size))
        for number in HANDED_ON:
            signal.signal(number, lambda number, _: os.kill(program, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
        (status,) = WORD.unpack(connection.recv(WORD.size))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
