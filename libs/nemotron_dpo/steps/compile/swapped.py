"""Whether chosen and rejected look swapped: by the names of their columns, and by the rewards of the first rows."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_dpo.config import DatasetConfig, RunConfig, redact
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.column_names import Columns, doubt
from nemotron_dpo.steps.compile.row_rewards import first_gaps

_LEAST = 4  # rows with rewards, before most of them say anything


def swapped(run: RunConfig) -> list[str]:
    """A warning for each data set whose chosen and rejected responses look swapped. Raises UserError for a name given twice."""
    sets = (("data.train", run.data.train), *((f"data.validation.{name}", rows) for name, rows in run.data.validation))
    parts = [(place, part) for place, rows in sets for part in rows.parts or (rows,)]
    return [f"warning: {place}: {what}" for place, part in parts for what in _doubts(place, part)]


def _doubts(place: str, rows: DatasetConfig) -> Iterator[str]:
    default = Columns()
    columns = Columns(
        rows.prompt_key or default.prompt, rows.chosen_key or default.chosen, rows.rejected_key or default.rejected
    )
    try:
        by_name = doubt(columns)
    except UserError as error:
        raise UserError(error.message, field=place, remedy="name two columns") from None
    if by_name:
        yield by_name
    if rows.path is None:
        return
    gaps = first_gaps(rows.path, rows.chosen_reward_key, rows.rejected_reward_key)
    contradict, agree = sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    if len(gaps) >= _LEAST and contradict > agree:
        what = (
            f"in {contradict} of the first {len(gaps)} rows of {redact(rows.path)} with rewards the rejected response has the"
        )
        yield f"{what} higher one: are chosen_key and rejected_key swapped?"
