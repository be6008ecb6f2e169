"""One V8 for all forks of a fork server: a process beside it, which draws with the library what they ask for, each once.

V8 has threads, so a process that has started it cannot be forked. Starting it takes half a CPU second, and so does each page
until its code is warm. A fork that cannot reach that process, as on a host of its own, or whose drawing fails there, draws
itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client, Listener
from typing import Any

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def start(but: socket.socket) -> Callable[[], None]:
    """Start that process, which starts V8 when it is first asked, and let forks of this one ask it; it leaves `but` alone.

    What comes back ends it.
    """
    import vl_convert

    draw = vl_convert.vegalite_to_svg
    place = f"\0one-v8-{os.getpid()}-{os.urandom(8).hex()}"

    def ask(*arguments: Any, **options: Any) -> str:
        with contextlib.suppress(OSError, EOFError), Client(place, "AF_UNIX") as drawer:
            drawer.send((arguments, options))
            if picture := drawer.recv():
                return picture
        return draw(*arguments, **options)

    parent = os.getpid()
    with Listener(place, "AF_UNIX", backlog=64) as listener:
        if (drawing := os.fork()) == 0:
            but.close()
            drawn: dict[bytes, str | None] = {}
            ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
            while os.getppid() == parent:
                with contextlib.suppress(OSError, EOFError), listener.accept() as asked:
                    wanted = asked.recv_bytes()
                    if wanted not in drawn:
                        drawn[wanted] = _drawn(draw, *pickle.loads(wanted))
                    asked.send(drawn[wanted])
            os._exit(0)
    vl_convert.vegalite_to_svg = ask

    def end() -> None:
        os.kill(drawing, signal.SIGKILL)
        os.waitpid(drawing, 0)

    return end


def _drawn(draw: Callable[..., str], arguments: Sequence[Any], options: Mapping[str, Any]) -> str | None:
    """What is asked for, or None where that fails."""
    try:
        return draw(*arguments, **options)
    except BaseException:  # a panic of Rust is one
        return None
