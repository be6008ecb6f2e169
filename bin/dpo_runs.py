#!/usr/bin/env python3
"""Look after the jobs that nemotron-steps left: list, compare and remove them. `nemotron-steps runs` is the same.

\b
    dpo-runs                                  every job: status, settings, best validation, size on disk
    dpo-runs --sort accuracy --reverse        the best first; --sort policy.optimizer.lr goes by a setting
    dpo-runs --failed                         those that failed or were killed
    dpo-runs --json                           all that is known, as JSON
    dpo-runs diff beta-0.1 beta-0.3           settings, inputs and figures that differ
    dpo-runs rm beta-0.1                      remove a job
    dpo-runs prune --keep 5 --older-than 7d   remove all others, but what one of those that stay needs

A job is named by its folder, what it was called (--name of nemotron-steps run), or a part of either; before it removes what
only a part names, rm asks. Jobs lie in .nemotron/jobs, or where --jobs says. A job from which another was trained, or whose
files another reads, is not removed, nor is one that may still be worked at. A stage that is up to date by what a removed job
has stays so where another job has the same.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nemotron_dpo import cli, launcher
from nemotron_dpo.errors import UserError
from nemotron_dpo.terminal_text import escaped_json, one_line

if TYPE_CHECKING:
    from nemotron_dpo.jobs.job import Job

PROGRAM = "dpo-runs"
SAY = functools.partial(cli.say, PROGRAM)
_JOBS = click.option(
    "--jobs", "root", type=cli.PATH, default=".nemotron/jobs", show_default=True, metavar="DIR", help="Where the jobs lie."
)
_YES = click.option("-y", "--yes", is_flag=True, help="Remove without asking.")


@click.group(help=__doc__, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    launcher.refuse_job()
    if context.invoked_subcommand is None:
        context.invoke(ls)


@command.command(help="List the jobs, the newest last.")
@_JOBS
@click.option("--sort", "key", metavar="KEY", default="created", help="created, name, status, size, loss, accuracy, ...")
@click.option("--reverse", is_flag=True, help="The greatest first.")
@click.option("--failed", is_flag=True, help="Only those that failed or were killed.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def ls(root: str, key: str, reverse: bool, failed: bool, as_json: bool) -> None:
    from nemotron_dpo.jobs import job, listing

    found = [one for one in job.jobs_in(Path(root)) if not failed or one.status in job.FAILED]
    shown = listing.in_order(found, key, reverse=reverse)
    if as_json:
        _print_json([listing.as_data(one) for one in shown])
    else:
        click.echo(listing.listed(shown) if shown else "no jobs")
    _say_leftovers(Path(root))


@command.command(help="Show what two jobs differ in.")
@click.argument("first")
@click.argument("second")
@_JOBS
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def diff(first: str, second: str, root: str, as_json: bool) -> None:
    from nemotron_dpo.jobs import differing
    from nemotron_dpo.jobs.job import find, jobs_in

    jobs = jobs_in(Path(root))
    both = find(first, jobs), find(second, jobs)
    if as_json:
        _print_json(differing.difference(*both))
    else:
        click.echo(differing.shown(*both))


@command.command(help="Remove jobs with all that they hold.")
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@_JOBS
@click.option("--force", is_flag=True, help="Also what another job needs, or what may still be worked at.")
@_YES
def rm(names: tuple[str, ...], root: str, force: bool, yes: bool) -> None:
    from nemotron_dpo.jobs import listing
    from nemotron_dpo.jobs.job import find, is_whole_name, jobs_in
    from nemotron_dpo.jobs.removing import check_removable

    jobs = jobs_in(Path(root))
    named = {name: find(name, jobs) for name in names}
    chosen = list({job.id: job for job in named.values()}.values())
    if not force:
        check_removable(chosen, jobs)
    if not yes and not all(is_whole_name(name, job) for name, job in named.items()):
        click.echo(listing.listed(chosen))
        if not _wants(_question(chosen)):
            SAY("nothing is removed")
            return
    _remove(chosen, jobs, Path(root))


@command.command(help="Remove all jobs but those that are new, or that one of these needs.")
@_JOBS
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Keep the newest N.")
@click.option("--older-than", metavar="AGE", help="Keep what is younger, such as 7d, 12h or 30m.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go.")
@_YES
def prune(root: str, keep: int | None, older_than: str | None, dry_run: bool, yes: bool) -> None:
    from nemotron_dpo.ages import seconds_of
    from nemotron_dpo.jobs import listing, removing
    from nemotron_dpo.jobs.job import jobs_in

    if keep is None and older_than is None:
        raise UserError(
            "does not say what to keep", source="prune", remedy="give --keep N, --older-than AGE or both", usage=True
        )
    jobs = jobs_in(Path(root))
    found = removing.prunable(jobs, keep, None if older_than is None else seconds_of(older_than))
    for name, why in found.kept.items():
        SAY(one_line(f"{name} stays: {why}"))
    if not found.jobs:
        SAY("nothing to remove")
        if not dry_run:
            _clear_leftovers(Path(root))
        return
    click.echo(listing.listed(found.jobs))
    if dry_run or not (yes or _wants(_question(found.jobs))):
        SAY("nothing is removed")
        return
    _remove(found.jobs, jobs, Path(root))


def _remove(chosen: Sequence[Job], jobs: Sequence[Job], root: Path) -> None:
    from nemotron_dpo.jobs.listing import size
    from nemotron_dpo.jobs.removing import remove

    _clear_leftovers(root)
    left = list(jobs)
    freed = 0
    for job in chosen:
        freed += job.num_bytes
        left = [one for one in left if one.id != job.id]
        try:
            remove(job, left)
        except (KeyboardInterrupt, cli.Terminated):
            _say_leftovers(root)
            raise
        SAY(one_line(f"removed {job.id}"))
    SAY(f"{len(chosen)} job{'s' * (len(chosen) != 1)} removed, {size(freed)}")


def _say_leftovers(root: Path) -> None:
    """Name what earlier removals left, which no list of jobs has."""
    from nemotron_dpo.jobs.job import bytes_in
    from nemotron_dpo.jobs.leftovers import leftovers
    from nemotron_dpo.jobs.listing import size

    for path in leftovers(root):
        what = f"is left of a removed job, {size(bytes_in(path))}: dpo-runs rm or prune goes on with it"
        SAY(one_line(f"{path.absolute()} {what}"))


def _clear_leftovers(root: Path) -> None:
    """Go on with earlier removals; one that is still refused does not stop others."""
    from nemotron_dpo.jobs.leftovers import clear, leftovers

    for path in leftovers(root):
        try:
            clear(path)
            SAY(one_line(f"removed {path.absolute()}, which was left of a removed job"))
        except UserError as error:
            SAY(f"warning: {error}")


def _print_json(value: object) -> None:
    import orjson

    click.echo(escaped_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()))


def _question(jobs: Sequence[Job]) -> str:
    return f"Remove {'it' if len(jobs) == 1 else 'them'}, with the checkpoints inside?"


def _wants(question: str) -> bool:
    """Ask the person at the terminal. Raises UserError where there is none."""
    if not sys.stdin.isatty():
        raise UserError("nothing is removed: there is nobody to ask", remedy="give --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def main() -> NoReturn:
    """Entry point. Options alone are those of ls."""
    if sys.argv[1:2] and sys.argv[1].startswith("-") and sys.argv[1] not in ("--help", "-h"):
        sys.argv.insert(1, "ls")
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
