"""What a program says while it works: lines of facts, warnings and progress on stderr, from the first rank of a job alone."""

from __future__ import annotations

import functools

from nemotron_dpo import launcher, progress, terminal_text, versions


def is_first_rank() -> bool:
    """True in a single process and on rank 0 of a job."""
    return launcher.is_first()


def say(program: str, text: str) -> None:
    """Write one line of facts to stderr, on rank 0 only."""
    if is_first_rank():
        progress.write_line(f"{program}: {terminal_text.escaped(text)}")


def warn_of_untried(program: str) -> None:
    """Warn of packages below the numbers whose installed version was not tried."""
    for line in versions.untried():
        say(program, f"warning: {line}")


def show_progress(program: str, work: progress.Work) -> progress.Progress:
    """How the work of `program` is shown: on rank 0 alone."""
    return progress.shown(work, functools.partial(say, program)) if is_first_rank() else progress.Silent()
