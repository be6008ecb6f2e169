"""Programs for shell scripts that are forks too: executables that give their command to the tests' fork server.

What they run is `forked_for_me.py`.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from support import forked_for_me
from support.forked_for_me import LARGEST, NAMESPACES, WORD

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
    from support.forkable import PROGRAMS

    place, python = folder / "forks.socket", sys.executable
    known = {"python": python, "here": forked_for_me.__file__, "socket": place}
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
        asked, streams, namespaces = marshal.loads(message), descriptors[:3], descriptors[3:]
        try:
            fork = forks.start(asked["argv"], *streams, cwd=asked["cwd"], env=asked["env"], namespaces=namespaces)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(WORD.pack(fork.pid))
        connection.send(WORD.pack(fork.wait(300)))
