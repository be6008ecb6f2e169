"""`python fork_server.py FD FIRST [MODULE...]`: import once what programs import, and fork a process for each of them.

Starting a program takes three CPU seconds of imports, and the tests start hundreds. What a forked process inherits and a
started one would not have (descriptors, signal handlers, random states, the number of threads) `_become` puts right; an
environment that is read while Python starts or torch is imported cannot be put right, so `programs` starts such a program
itself. Nothing here computes: threads of a parallel operation would not survive a fork. FIRST are modules with commas between
them: where there are some, they are imported instead of torch and all that is ours. Each MODULE is a package whose own modules
read the environment: what they import is here, and they themselves are imported anew.

Over the socket FD come requests, one message each: {"argv", "env", "cwd", "leads"} as JSON, and descriptors: stdin, stdout,
stderr, a socket that gets the process id and, when the process has ended, its status, and namespaces that it is to be in.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAMS = ("preference-tokenize", "ref-logprobs", "dpo-train", "dpo-torchrun", "ckpt-export", "nemotron-steps", "nemotron",
            "dpo-report", "dpo-runs", "dpo-sweep")  # fmt: skip
# what a program imports where it first needs it
LATER = (
    "encodings.idna",
    "jinja2",
    "omegaconf._impl",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.models.gpt.gpt_layer_specs",
    "multiprocessing.popen_fork",
    "multiprocessing.queues",
    "numpy.fft",
    "numpy.ma",
    "pyarrow.compute",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "torch.distributed.run",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
)
# of torchrun what starts our programs, and has a name of its own for Popen
STARTER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
NAMESPACES = ("net", "uts", "mnt")
LARGEST_REQUEST = 1 << 20
WORD = struct.Struct("q")
FILTERS: list[Any] = []  # of warnings, as libraries leave them that are imported


def main(requests: socket.socket, first: str, *anew: str) -> None:
    """Serve until the tests are gone."""
    one_v8 = importlib.import_module("one_v8")
    sys.path.pop(0)  # the folder of this file: programs shall not find our modules
    del sys.modules["one_v8"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then hang up
    if "LD_PRELOAD" not in os.environ:  # what is preloaded may look at what is synced
        wait_for_no_disk()
    ends: list[Callable[[], None]] = []
    if first:
        for module in first.split(","):
            importlib.import_module(module)
    else:
        with contextlib.suppress(ImportError):  # of the library
            ends.append(one_v8.start(but=requests))
        _import_everything()
    _start_own_programs_by_fork()
    _import_for(anew)
    # torchrun's agent looks at its stack again and again, and would look for these files among all modules each time
    inspect.modulesbyfile.update({__file__: "", "<frozen runpy>": ""})  # type: ignore[attr-defined] - a cache of inspect's own
    FILTERS.extend(warnings.filters)
    gc.freeze()  # nothing of this is garbage: a collection in a fork need not look at it, nor copy its pages
    request = _next_in_child(requests)
    if request is not None:
        os.chdir(request["cwd"])
        _become(request["argv"], request["env"])
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
    gc.disable()  # what is imported stays, and a quarter of the time would go into looking for what does not
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
    gc.enable()


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
                    one.detach()  # `_become` closes them
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
    """Let what a program starts with subprocess, where it is one of ours, be a fork too: a stage, a rank of torchrun's.

    And one that takes the place of a program, which is what that process then becomes.
    """
    start = subprocess.Popen

    def popen(args: Sequence[str], *positional: Any, **options: Any) -> subprocess.Popen:
        environment = options.get("env") or dict(os.environ)
        if _is_ours(args) and not positional and not options.get("preexec_fn") and can_be_honoured(environment):
            options["preexec_fn"] = lambda: _become([str(word) for word in args], environment)
        return start(args, *positional, **options)

    def execv(path: str, args: Sequence[str]) -> NoReturn:
        if _is_ours(args) and threading.active_count() == 1 and can_be_honoured(os.environ):
            _become(list(args), dict(os.environ))
        replace(path, list(args))

    replace = os.execv
    os.execv = execv  # type: ignore[assignment] - a stand-in of the same arguments
    subprocess.Popen = popen  # type: ignore[misc, assignment] - and another
    if STARTER in sys.modules:
        sys.modules[STARTER].Popen = popen  # type: ignore[attr-defined] - the same name


def can_be_honoured(environment: Mapping[str, str], here: Mapping[str, str] = os.environ) -> bool:
    """Whether a fork can have `environment`: what a Python, a C library or torch reads when it starts is the same `here`."""
    threads = environment.get("OMP_NUM_THREADS", "1")
    return threads.isdigit() and int(threads) > 0 and read_at_start(environment) == read_at_start(here)


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of `environment` that is read once, by an interpreter or a library that starts."""
    families = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_",
                "TORCH_", "PYTORCH_", "CUDA_", "NPY_", "NUMPY_")  # fmt: skip
    later = ("OMP_NUM_THREADS", "TORCH_NCCL_")  # torchrun sets one of NCCL's, which are read where groups of it are made
    return {name: value for name, value in environment.items() if name.startswith(families) and not name.startswith(later)}


def _is_ours(argv: Sequence[str]) -> bool:
    """Whether `argv` is one of our programs, or `python -m` with one of our modules."""
    module = _module(argv)
    return module.startswith("nemotron_dpo.") or module.replace("_", "-") in PROGRAMS or bool(_script(argv))


def _module(argv: Sequence[str]) -> str:
    """The module that `argv` lets Python find by its name; "" where it does not."""
    return str(argv[2]) if [str(word) for word in argv[:2]] == [sys.executable, "-m"] and len(argv) > 2 else ""


def _script(argv: Sequence[str]) -> str | None:
    """The Python file that `argv` runs, where it is one of our programs."""
    first = str(argv[0])
    if first == sys.executable and len(argv) > 1 and str(argv[1]).endswith(".py"):
        return str(argv[1])
    found = Path(shutil.which(first) or first)
    return str(found) if found.name in PROGRAMS and found.parent == Path(sys.executable).parent else None


def _become(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be `argv`, with that environment, as if this process had just been started, and end as a Python process does."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
    _forget_signals()
    _forget_the_forker()
    os.environ.clear()
    os.environ.update(environment)
    script, module = _script(argv) or "", _module(argv)
    sys.orig_argv = [sys.executable, *argv[argv[0] == sys.executable :]]
    sys.argv = ["-m", *argv[3:]] if module else [script, *argv[1 + (argv[0] == sys.executable) :]]
    packages = [place for place in environment.get("PYTHONPATH", "").split(":") if place and place not in sys.path]
    sys.path[:0] = [os.getcwd() if module else str(Path(script).parent), *packages]
    _open_streams()
    gc.enable()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
        if threads := environment.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
    _end(script, module)


def _forget_the_forker() -> None:
    """Leave alone what the process that forked this one will clean up, and be a main thread, whichever forked it."""
    weakref.finalize._registry.clear()  # type: ignore[attr-defined] - its temporary folders
    if pools := sys.modules.get("concurrent.futures.thread"):
        pools._threads_queues.clear()  # its pools, whose threads are not here
    warnings.resetwarnings()
    warnings.filters.extend(FILTERS)  # type: ignore[attr-defined] - a list, whatever the stub says
    if program := sys.modules.get("nemotron_dpo.cli.program"):
        atexit.unregister(program._skip_teardown)  # which ends it with its status
    if published := sys.modules.get("nemotron_dpo.published"):
        published._swept.clear()  # folders in which it, and not this process, looked for what dead processes left


def _forget_signals() -> None:
    """Handlers as in a new Python process; a signal that is ignored stays so, but Ctrl-C is heard."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """Standard streams over descriptors 0 to 2 that are what Python makes of a pipe, a file or a terminal."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        here: io.TextIOWrapper = getattr(sys, f"__{name}__")  # of the same locale and the same PYTHON* variables
        unbuffered = here.write_through
        binary = open(number, "wb" if number else "rb", 0 if unbuffered and number else -1, closefd=False)  # noqa: SIM115 - it stays open as the process's own stream
        getattr(binary, "raw", binary).name = f"<{name}>"  # type: ignore[attr-defined] - a FileIO, whose name may be set
        lines = not unbuffered and (binary.isatty() or name == "stderr")
        stream = io.TextIOWrapper(binary, here.encoding, here.errors, "\n", line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _end(script: str, module: str) -> NoReturn:
    """Run `module`, or else `script`, and end with the status that Python would end with."""
    status = 0
    try:
        if module:
            sys.modules.pop(module, None)  # as the main module it has not been imported
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined] - waits for threads, as the interpreter does before it ends
    atexit._run_exitfuncs()
    try:
        if not sys.stdout.closed:
            sys.stdout.flush()
    except OSError:
        status = 120
    os._exit(status)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:])
