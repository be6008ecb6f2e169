"""The one line in which a program says why it failed, and by which process of a job it is said."""

from __future__ import annotations

import os
import sys
import time

import click

from nemotron_dpo import launcher, progress, terminal_text
from nemotron_dpo.cli.signals import Terminated

_ENDED_FROM_OUTSIDE = (129, 130, 143)
_FIRST_RANK_SECONDS = 10


def complain(program: str, line: str, status: int) -> int:
    """Write `line` on the first rank of a node. Another rank writes it if it is still there after a while.

    A mistake of the user's is met by every rank, and the first of them to exit has the others ended by torchrun. If that were
    not the first rank, nobody would have spoken. So the other ranks give it time; what only they have met they say themselves.
    """
    if not launcher.is_first_of_node():
        if status in _ENDED_FROM_OUTSIDE:
            return status
        try:
            time.sleep(_FIRST_RANK_SECONDS)
        except (KeyboardInterrupt, Terminated):
            return status
        line = f"rank {os.environ.get('RANK')}: {line}"
    progress.write_line(f"{program}: error: {terminal_text.one_line(line)}")
    return status


def lost_another_process(error: RuntimeError) -> bool:
    """Whether `error` is torch's way to say that another process of the job is gone, or does not answer."""
    names = {kind.__name__ for kind in type(error).__mro__}  # of torch.distributed, which this module does not import
    is_of_gloo = "gloo/transport" in str(error) or "Connection closed by peer" in str(error)
    return launcher.job_size() > 1 and ("DistError" in names or is_of_gloo)


def complain_of_another(program: str, message: str) -> int:
    """Say that another process is gone, where nobody ends this one meanwhile: who watches all of them knows which it was."""
    try:
        time.sleep(_FIRST_RANK_SECONDS)
    except (KeyboardInterrupt, Terminated):
        return 1
    what = " ".join(message.split()).removesuffix("GLHF! \N{BEACH WITH UMBRELLA}\N{VARIATION SELECTOR-16}").strip()
    progress.write_line(
        f"{program}: error: rank {launcher.rank()}: another process of the job is gone: {terminal_text.one_line(what)}"
    )
    return 1


def complain_of_call(program: str, called: str, error: click.ClickException) -> int:
    """What click finds wrong with the arguments; without any where some are needed, the help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return 2
    if not isinstance(error, click.UsageError):
        return complain(program, error.format_message(), 1)
    path = error.ctx.command_path if error.ctx else called
    message = error.format_message().replace("\n\t", " ")  # click lists choices in lines of their own
    return complain(program, f"{message.rstrip('.')}: see '{path} --help'", 2)
