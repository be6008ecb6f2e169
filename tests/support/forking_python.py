"""A Python for shell scripts whose programs are forks too: an executable that gives its command to the tests' fork server.

As a program, `python -IS forking_python.py SOCKET ARGUMENT...` is what that executable runs: it sends its command, environment,
folder and standard streams over SOCKET, waits, and ends with the status that comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

LARGEST = 1 << 20
WORD = struct.Struct("q")
SCRIPT = """#!/bin/sh
case $1 in
*{cold}) ;;
*.py) exec "{python}" -IS "{here}" "{socket}" "$@" ;;
esac
exec "{python}" "$@"
"""


@contextlib.contextmanager
def forking_python(folder: Path, cold: str) -> Iterator[Path]:
    """The executable, in `folder`. What is no Python file it starts as Python does, and so a file whose name ends in `cold`."""
    place = folder / "forks.socket"
    program = folder / "python"
    program.write_text(SCRIPT.format(cold=cold, python=sys.executable, here=__file__, socket=place))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place))
        listener.listen()
        server = threading.Thread(target=_serve, args=(listener,))
        server.start()
        try:
            yield program
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
        message, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 3)
        asked = json.loads(message)
        try:
            fork = forks.start([sys.executable, *asked["argv"]], *descriptors, cwd=asked["cwd"], env=asked["env"])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(WORD.pack(fork.wait(300)))


def main(place: str, *argv: str) -> int:
    """Ask for `argv`; a status as a shell has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        connection.connect(place)
        asked = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        (status,) = WORD.unpack(connection.recv(WORD.size))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
