#!/usr/bin/env python3
"""Run a program as several processes, as torchrun does, and say in one line why they ended.

\b
    dpo-torchrun --nproc-per-node 4 --no-python dpo-train scored.arrow --policy sft --run-dir run
    dpo-torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT --no-python dpo-train ...

ARGUMENTS are torchrun's, all of them ('torchrun --help' lists them), and it is torchrun that starts the processes. Besides:
SIGTERM, SIGHUP and Ctrl-C go on to the processes, which may take their time to save; the exit status is that of the process
that failed first, not always 1; a process that was killed is named, with its host; no traceback of torchrun's is shown; the
processes share a machine's cores evenly, unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

from typing import NoReturn

import click

from nemotron_dpo import cli, progress

PROGRAM = "dpo-torchrun"


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    from nemotron_dpo import torchrun

    ended = torchrun.run(arguments)
    if ended.why:
        progress.write_line(f"{PROGRAM}: error: {ended.why}")
    return ended.status


def main() -> NoReturn:
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
