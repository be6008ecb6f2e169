"""From folders to a file: one run or a comparison, in whichever format is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nemotron_dpo.report import comparison, single
from nemotron_dpo.report.document import Page
from nemotron_dpo.report.html import html
from nemotron_dpo.report.markdown import markdown
from nemotron_dpo.report.poster import poster
from nemotron_dpo.report.run_report import read_run
from nemotron_dpo.report.terminal import terminal
from nemotron_dpo.streams import published_file

__all__ = ["page", "terminal", "write"]


def page(folders: Sequence[str], *, scores: Path | None = None, with_text: bool = True) -> Page:
    """The report on the run in the one of `folders`, or the comparison of several. Raises UserError for what is no run."""
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 1:
        return single.page(runs[0], scores=scores, with_text=with_text)
    return comparison.page(runs)


def write(page: Page, target: str, form: str) -> None:
    """Write `page` to `target`, whole or not at all; "-" is stdout."""
    made = poster(page) if form == "png" else (markdown(page) if form == "md" else html(page)).encode()
    if target == "-":
        sys.stdout.buffer.write(made)
        sys.stdout.buffer.flush()
        return
    with published_file(target) as file:
        file.write(made)
