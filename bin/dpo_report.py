#!/usr/bin/env python3
"""Write a report on runs of dpo-train: one page to look at, to compare runs by and to hand on.

\b
    dpo-report run -o report.html                       a run folder, or the folder of a job
    dpo-report run --terminal                           the same on the terminal, and no file
    dpo-report --compare run-a run-b -o compare.html    curves over each other, what differs, which is best
    dpo-report run -o report.md --format md             Markdown; png is a picture of the curves
    dpo-report run -o report.html --no-text             without the texts of pairs, to hand on

The page is one file without anything fetched: words first (did it learn, is it safe to ship, what next), then curves, the
pairs that changed most, speed, lineage and commands. It may be written while the run goes on, or of one that was interrupted.

Texts come from the streams that the run read, where these still lie; they are in the page as they are in the data. With
--scores, held-out pairs scored by the trained policy (ref-logprobs PAIRS -o SCORES --policy CHECKPOINT), each token of
a response is coloured by how much more or less probable training made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

from nemotron_dpo import cli, launcher

PROGRAM = "dpo-report"
_OTHER_FORMATS = {".pdf", ".svg", ".jpg", ".jpeg", ".json", ".txt", ".csv", ".docx"}
_FORMATS = ("html", "md", "png")


@click.command(help=__doc__)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=cli.PATH)
@click.option("-o", "--output", type=cli.PATH, metavar="FILE", help="File to write, or - for stdout.  [default: report.FORMAT]")
@click.option("--compare", is_flag=True, help="Compare the runs; several are compared in any case.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Format.  [default: by the end of FILE, else html]")
@click.option("--terminal", is_flag=True, help="Print it here, with curves of characters; a file only with -o.")
@click.option("--no-text", is_flag=True, help="Leave the texts of pairs out.")
@click.option("--scores", type=cli.PATH, metavar="FILE", help="Pairs scored by the trained policy, to colour tokens.")
def command(
    runs: tuple[str, ...],
    output: str | None,
    compare: bool,
    form: str | None,
    terminal: bool,
    no_text: bool,
    scores: str | None,
) -> None:
    launcher.refuse_job()
    if compare and len(runs) < 2:
        raise click.UsageError("--compare needs two runs or more")
    if scores and len(runs) > 1:
        raise click.UsageError("--scores is of one run")
    if scores and no_text:
        raise click.UsageError("--scores colours the texts that --no-text leaves out")
    again = next((run for n, run in enumerate(runs) if Path(run).absolute() in map(Path.absolute, map(Path, runs[:n]))), None)
    if again is not None:
        raise click.UsageError(f"{again} is given twice: a run cannot be compared to itself")
    form = form or _format_of(output)
    target = output or (None if terminal else f"report.{form}")
    from nemotron_dpo.report import writing

    page = writing.page(runs, scores=Path(scores) if scores else None, with_text=not no_text)
    if terminal:
        click.echo(writing.terminal(page))
    if target is not None:
        writing.write(page, target, form)
        cli.say(PROGRAM, f"{', '.join(runs)} -> {target} ({form})")


def _format_of(output: str | None) -> str:
    """The format that the name of the file says; a name that says another one is refused: PDF is what a browser prints."""
    end = Path(output or "").suffix.lower()
    if end in _OTHER_FORMATS:
        raise click.UsageError(f"{output}: no report is written as {end}: name a .html, .md or .png, or give --format")
    return {".md": "md", ".markdown": "md", ".png": "png"}.get(end, "html")


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
