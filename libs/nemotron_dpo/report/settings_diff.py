"""Which settings of several runs differ: the others are left out, and so are those that only say where files lie."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_dpo.report.document import Grid
from nemotron_dpo.report.origin_section import flat
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.visible import shortened, visible

# Where things are written, and who is told: it changes no number.
_PLACES = ("checkpointing.checkpoint_dir", "logger.", "run.")


def differing(runs: Sequence[Run], names: Sequence[str]) -> Grid | None:
    """A row for each setting that is not the same in all, a column for each run; None where none differs."""
    settings = [dict(flat(run.given.settings)) for run in runs]
    keys = sorted({key for one in settings for key in one if not key.startswith(_PLACES)})
    rows = [(key, *(_shown(one, key) for one in settings)) for key in keys if len({_shown(one, key) for one in settings}) > 1]
    return Grid(("setting", *names), tuple((visible(key), *values) for key, *values in rows)) if rows else None


def keys_that_differ(runs: Sequence[Run]) -> set[str]:
    """The names of these settings."""
    grid = differing(runs, [""] * len(runs))
    return {row[0] for row in grid.rows} if grid else set()


def _shown(settings: dict[str, object], key: str) -> str:
    return "-" if settings.get(key) is None else shortened(visible(settings[key]), 80)
