"""Ranks of torchrun's agent as forks that are made before the agent has threads.

A fork has the locks that other threads held in that moment, for ever. Those of an agent that serves a store look up who
connects to it, under a lock of the C library's resolver, while later ranks are being started: of a thousand jobs two hung.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.forkable import can_be_honoured, is_ours

# of torchrun what starts our programs, and has a name of its own for Popen
_STARTER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
_AGENT = "dpo-torchrun"
_LARGEST_ORDER = 1 << 20
_SPARES: list[tuple[int, socket.socket]] = []  # process ids, and where each waits for its order
_COLD = subprocess.Popen


def close_all(but: Collection[int]) -> None:
    """Close all descriptors but the three streams and these."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in but:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def keep_spares(script: str, argv: Sequence[str], become: Callable[[Sequence[str], Mapping[str, str]], object]) -> None:
    """Where `script` is the agent, fork as many processes as `argv` says it starts; each waits, and then is a rank."""
    if Path(script).stem.replace("_", "-") != _AGENT or _STARTER not in sys.modules:
        return
    for _ in range(_processes(argv)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST_ORDER)
        _SPARES.append((os.fork(), ours))
        if _SPARES[-1][0] == 0:
            become(*_order(theirs))
        theirs.close()
    sys.modules[_STARTER].Popen = _started  # type: ignore[attr-defined] - the same name


def _order(waits: socket.socket) -> tuple[Sequence[str], Mapping[str, str]]:
    """Wait for argv and environment of the rank that this spare is to be, as the leader of a session, and take its streams."""
    while _SPARES:
        _SPARES.pop()[1].detach()
    close_all(but=[waits.fileno()])
    os.setsid()  # signals to the agent's group are not for a rank, nor for what is none yet
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the agent's end it without a word
    order, streams, _, _ = socket.recv_fds(waits, _LARGEST_ORDER, 2)
    if not order:  # the agent has ended
        os._exit(0)
    waits.detach()  # `become` closes it
    for target, source in enumerate(streams, start=1):
        os.dup2(source, target)
    argv, environment = json.loads(order)
    return argv, environment


def _processes(argv: Sequence[str]) -> int:
    """How many ranks the agent's arguments ask for; what is no number is left to cold starts."""
    words = [part for word in argv for part in word.replace("_", "-").split("=", 1)]
    follows = dict(itertools.pairwise(words))
    number = follows.get("--nproc-per-node", "")
    return int(number) if number.isdigit() else 0


def _started(args: Sequence[str], env: Mapping[str, str], stdout: Any, stderr: Any, **options: Any) -> subprocess.Popen:
    """What Popen returns, of a spare that has its order, or else of a Python that starts."""
    if not (_SPARES and options == {"start_new_session": True} and is_ours(args) and can_be_honoured(env)):
        return _COLD(args, env=env, stdout=stdout, stderr=stderr, **options)
    pid, waits = _SPARES.pop(0)
    streams = [default if given is None else given.fileno() for given, default in ((stdout, 1), (stderr, 2))]
    with waits, contextlib.suppress(BrokenPipeError):  # a signal has ended it: so its status will say
        socket.send_fds(waits, [json.dumps([[str(word) for word in args], dict(env)]).encode()], streams)
    process = _COLD.__new__(_COLD)
    process.args, process.pid, process.returncode = args, pid, None
    process.stdin = process.stdout = process.stderr = None
    process._child_created, process._waitpid_lock = True, threading.Lock()  # type: ignore[attr-defined] - what poll looks at
    return process
