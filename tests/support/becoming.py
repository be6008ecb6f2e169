"""A forked process becomes a program: as if it had just been started, and ended as a Python process is."""

from __future__ import annotations

import atexit
import gc
import io
import os
import runpy
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from support import ranks
from support.forkable import module_of, script_of

FILTERS: list[Any] = []  # of warnings, as libraries leave them that are imported
LEFT_ALONE: list[Any] = []  # what to free would take time


def become(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be `argv`, with that environment, as if this process had just been started, and end as a Python process does."""
    ranks.close_all(but=())
    _forget_signals()
    _forget_the_forker()
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, *argv[argv[0] == sys.executable :]]
    is_safe = argv[1:2] == ["-P"]
    argv = [*argv[:1], *argv[1 + is_safe :]]
    script, module = script_of(argv) or "", module_of(argv)
    sys.argv = ["-m", *argv[3:]] if module else [script, *argv[1 + (argv[0] == sys.executable) :]]
    packages = [place for place in environment.get("PYTHONPATH", "").split(":") if place and place not in sys.path]
    sys.path[:0] = [*([] if is_safe else [os.getcwd() if module else str(Path(script).parent)]), *packages]
    _open_streams()
    gc.enable()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
        if threads := environment.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
    ranks.keep_spares(script, sys.argv, become)
    _end(script, module)


def _forget_the_forker() -> None:
    """Leave alone what the process that forked this one will clean up, and be a main thread, whichever forked it."""
    LEFT_ALONE.append(weakref.finalize._registry)  # type: ignore[attr-defined] - its temporary folders
    weakref.finalize._registry = {}  # type: ignore[attr-defined] - the same
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
