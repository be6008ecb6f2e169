"""`python fork_server.py FD FIRST [MODULE...]`: import once what programs import, and fork a process for each of them.

Starting a program takes three CPU seconds of imports, and the tests start hundreds. What a forked process inherits and a
started one would not have (descriptors, signal handlers, random states, the number of threads) `becoming` puts right; an
environment that is read while Python starts or torch is imported cannot be put right, so `programs` starts such a program
itself. Nothing here computes: threads of a parallel operation would not survive a fork. FIRST are modules with commas between
them: where there are some, they are imported instead of torch and all that is ours. Each MODULE is a package whose own modules
read the environment: what they import is here, and they themselves are imported anew.

Over the socket FD come requests, one message each: {"argv", "env", "cwd", "leads"} as JSON, and descriptors: stdin, stdout,
stderr, a socket that gets the process id and, when the process has ended, its status, and namespaces that it is to be in.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # and not this folder

from support import becoming, one_v8
from support.becoming import become
from support.forkable import can_be_honoured, is_ours

# what a program imports where it first needs it
LATER = (
    "encodings.idna",
    "encodings.unicode_escape",
    "jinja2.ext",
    "jinja2.sandbox",
    "omegaconf._impl",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.models.gpt.gpt_layer_specs",
    "multiprocessing.popen_fork",
    "multiprocessing.queues",
    "numpy.fft",
    "numpy.ma",
    "numpy.random",
    "pyarrow.compute",
    "pyarrow.parquet",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "torch.distributed.run",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
)
NAMESPACES = ("net", "uts", "mnt")
LARGEST_REQUEST = 1 << 20
WORD = struct.Struct("q")
_LARGE_PAGE = 1 << 21
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1


def main(requests: socket.socket, first: str, *anew: str) -> None:
    """Serve until the tests are gone."""
    sys.path.pop(0)  # the tests' folder: programs shall not find our modules
    for name in [name for name in sys.modules if name.partition(".")[0] == "support"]:
        del sys.modules[name]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then hang up
    if "LD_PRELOAD" not in os.environ:  # what is preloaded may look at what is synced
        wait_for_no_disk()
    ends: list[Callable[[], None]] = []
    gc.disable()  # what is imported stays, and a quarter of the time would go into looking for what does not
    if first:
        for module in first.split(","):
            importlib.import_module(module)
    else:
        with contextlib.suppress(ImportError):  # of the library
            ends.append(one_v8.start(but=requests))
        _import_everything()
        _compile_what_stays()
    _start_own_programs_by_fork()
    _import_for(anew)
    gc.enable()
    # torchrun's agent looks at its stack again and again, and would look for these files among all modules each time
    inspect.modulesbyfile.update({__file__: "", becoming.__file__: "", "<frozen runpy>": ""})  # type: ignore[attr-defined] - a cache of inspect's own
    becoming.FILTERS.extend(warnings.filters)
    gc.freeze()  # nothing of this is garbage: a collection in a fork need not look at it, nor copy its pages
    _gather_in_large_pages()
    request = _next_in_child(requests)
    if request is not None:
        os.chdir(request["cwd"])
        become(request["argv"], request["env"])
    for end in ends:
        end()


def wait_for_no_disk() -> None:
    """Let fsync return at once: tests cut no power, and those of tests/faults that think of it preload what looks at it.

    A checkpoint or a step's line waits 10 ms for each, and the tests write thousands.
    """

    def fsync(file: Any) -> None:
        os.fstat(file if isinstance(file, int) else file.fileno())

    os.fsync = fsync


def _import_everything() -> None:
    """Import torch, megatron-core and all of ours, as a program does it; what this machine lacks is left to who wants it."""
    from nemotron_dpo import policy
    from nemotron_dpo.policy.device import redirect

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        redirect()
        package = Path(policy.__path__[0]).parent
        ours = [module.name for module in pkgutil.walk_packages([str(package)], "nemotron_dpo.")]
        for name in (*ours, *LATER):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _gather_in_large_pages() -> None:
    """Ask Linux to put what has no file into pages of 2 MB, of which a fork copies few entries: it takes half the time.

    Where a kernel will not, all is as it was.
    """
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, _, _, inode, *name = line.split(maxsplit=5)
        first, end = (int(address, 16) // _LARGE_PAGE for address in place.split("-"))
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and end > first + 1:
            libc.madvise((first + 1) * _LARGE_PAGE, (end - first - 1) * _LARGE_PAGE, _COLLAPSE)


def _compile_what_stays() -> None:
    """The programs' own files, and patterns that libraries keep: every program would compile them anew."""
    import datetime

    from omegaconf import OmegaConf

    from nemotron_dpo.preferences.chat_template import compile_template

    OmegaConf.create("a: 1")
    compile_template("{{ messages }}", "t", {}, datetime.datetime.now())
    read: Callable[..., Any] = runpy._get_code_from_file  # type: ignore[attr-defined] - of (name, file), in later Pythons of the file
    files = [str(file) for file in (Path(__file__).parents[2] / "bin").glob("*.py")]
    asked = [(*["__main__"][: len(inspect.signature(read).parameters) - 1], file) for file in files]
    kept = {words: read(*words) for words in asked}
    runpy._get_code_from_file = lambda *words: kept.get(words) or read(*words)  # type: ignore[attr-defined] - the same


def _import_for(packages: Sequence[str]) -> None:
    """Import what these packages import, and forget themselves."""
    for package in packages:
        importlib.import_module(package)
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def _next_in_child(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for every request and return it in the child; None when the tests have hung up."""
    ends: dict[int, tuple[int, socket.socket]] = {}  # of each running program, by its pidfd: (process id, where to report)
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in ends:
                poll.unregister(ready)
                pid, reply = ends.pop(ready)
                os.close(ready)
                with contextlib.suppress(OSError), reply:
                    reply.send(WORD.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4 + len(NAMESPACES))
            if not message:
                for pid, _ in ends.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            pid = os.fork()
            reply = socket.socket(fileno=descriptors.pop(3))
            if pid == 0:
                for target, source in enumerate(descriptors[:3]):
                    os.dup2(source, target)
                _enter(descriptors[3:])
                asked = json.loads(message)
                if asked["leads"]:
                    os.setpgid(0, 0)
                for one in (requests, reply, *(other for _, other in ends.values())):
                    one.detach()  # `become` closes them
                return asked
            for source in descriptors:
                os.close(source)
            reply.send(WORD.pack(pid))
            end = os.pidfd_open(pid)
            ends[end] = pid, reply
            poll.register(end, select.POLLIN)


def _enter(namespaces: Sequence[int]) -> None:
    """Move to these, of NAMESPACES each, where they are others: a test host is made of them."""
    for kind, namespace in zip(NAMESPACES, namespaces, strict=False):
        elsewhere = os.fstat(namespace).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
        if elsewhere and ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter another {kind}")


def _start_own_programs_by_fork() -> None:
    """Let what a program starts with subprocess, where it is one of ours, be a fork too.

    And one that takes the place of a program, which is what that process then becomes.
    """

    class Popen(subprocess.Popen):
        def __init__(self, args: Sequence[str], *positional: Any, **options: Any) -> None:
            environment = options.get("env") or dict(os.environ)
            if is_ours(args) and not positional and not options.get("preexec_fn") and can_be_honoured(environment):
                options["preexec_fn"] = lambda: become([str(word) for word in args], environment)
            super().__init__(args, *positional, **options)

    def execv(path: str, args: Sequence[str]) -> NoReturn:
        if is_ours(args) and threading.active_count() == 1 and can_be_honoured(os.environ):
            become(list(args), dict(os.environ))
        replace(path, list(args))

    replace = os.execv
    os.execv = execv  # type: ignore[assignment] - a stand-in of the same arguments
    subprocess.Popen = Popen  # type: ignore[misc] - and another


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:])
