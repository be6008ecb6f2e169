"""Compile what was installed, on all processors: pip does so on one, which is a quarter of the time that set-up takes.

Left to whoever first imports a module, it would be done again and again by users who may not write here.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TextIO

import pip_run

MOST_PROCESSES = 16


def compile_packages(venv: Path, log: TextIO, progress: pip_run.Progress, keep_open: tuple[int, ...]) -> None:
    """Compile the modules in `venv`; descriptors of `keep_open` live as long as that takes.

    A file that is for another Python, as some packages have, stays as it is.
    """
    files = [os.fsencode(path) for folder in venv.glob("lib/python*/site-packages") for path in sorted(folder.rglob("*.py"))]
    progress.doing = f"compiling {len(files)} modules"
    argv = [str(venv / "bin" / "python"), "-I", "-m", "compileall", "-q", "-i", "-"]
    print("$", *argv, file=log, flush=True)
    number, compilers = min(_processors(), MOST_PROCESSES), []
    with progress.shown():
        try:
            for first in range(number):
                compiler = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=keep_open)
                compilers.append(compiler)
                assert compiler.stdin is not None
                with compiler.stdin as wanted:
                    wanted.write(b"\n".join(files[first::number]))
            for compiler in compilers:
                compiler.wait()
        except BaseException:
            for compiler in compilers:
                compiler.terminate()
            raise


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
