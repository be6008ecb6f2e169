"""The audit as a person reads it at the end of the tokenization: some lines, with the first input lines of what is odd."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nemotron_dpo.preferences.audit.facts import SIDES, FactTable
from nemotron_dpo.preferences.audit.figures import length_bias, truncation
from nemotron_dpo.preferences.audit.findings import OddPairs
from nemotron_dpo.wording import counted

_FIRST = 4
_SHOWN = (5, 50, 95, 100)
_WORDS = {
    "empty": "an empty response",
    "whitespace": "responses that differ in white space alone",
    "inverted": "a higher reward for the rejected response",
    "tied": "the same reward for both responses",
    "both-ways": "both ways round (A over B here, B over A there)",
    "duplicates": "repeat an earlier pair",
}
_LEAST_SUSPECT = 4  # pairs with rewards, before most of them say anything about the columns


def audit_lines(table: FactTable, found: dict[str, OddPairs], without: frozenset[str]) -> Iterator[str]:
    """The lines. `without` are the names of what is left out, by --drop."""
    facts = table.all()
    yield f"audit of {counted(len(facts), 'pair')}, in tokens before truncation:"
    yield from _lengths(facts)
    bias = length_bias(facts)
    yield (
        f"  longer: the chosen response in {bias['chosen_longer']:.1%} of pairs, the rejected one in "
        f"{bias['rejected_longer']:.1%}; on average they have {facts['whole_chosen'].mean():.0f} and "
        f"{facts['whole_rejected'].mean():.0f} tokens"
    )
    odd = [name for name in _WORDS if len(found[name].rows)]
    for name in odd:
        acts = "left out" if name in without else f"--drop {name}"
        yield f"  {_WORDS[name]}: {counted(len(found[name].rows), 'pair')}, {_places(table, found[name])} ({acts})"
    if not odd:
        yield "  no repeats, no contradictions, no empty responses"


def _lengths(facts: np.ndarray) -> Iterator[str]:
    cut, total = truncation(facts["cut"]), len(facts)
    yield "  " + "".join(f"{word:>9}" for word in ("", *(f"p{p}" for p in _SHOWN[:-1]), "most", "cut"))
    for side in SIDES:
        values = np.percentile(facts[f"whole_{side}"], _SHOWN)
        numbers = "".join(f"{value:>9.0f}" for value in values)
        share = f" ({cut[side] / total:.1%})" if cut[side] else ""
        yield f"  {side:>9}{numbers}{cut[side]:>9}{share}"


def _places(table: FactTable, finding: OddPairs) -> str:
    """The first places: lines where there is one file, else FILE:LINE."""

    def named(row: int) -> str:
        return str(table.all()["line"][row]) if table.num_files == 1 else table.place(row)

    others = finding.others if finding.others is not None else [None] * len(finding.rows)
    first = list(zip(finding.rows[:_FIRST], others[:_FIRST], strict=True))
    words = ", ".join(named(row) + (f" (of {named(other)})" if other is not None else "") for row, other in first)
    rest = len(finding.rows) - len(first)
    lines = ("line " if len(finding.rows) == 1 else "lines ") if table.num_files == 1 else ""
    return f"{lines}{words}{f' and {rest} more' if rest else ''}"


def doubt(stand: dict[str, int], columns: str, *, swapped: bool) -> str | None:
    """That the responses look exchanged, where most rewards contradict the choice; `swapped` is what --swap says.

    `stand` is what figures.rewards counts.
    """
    if stand["pairs"] < _LEAST_SUSPECT or stand["contradict"] <= stand["agree"]:
        return None
    what = f"in {stand['contradict']} of {stand['pairs']} pairs with rewards{columns} the rejected response has the higher one"
    remedy = "leave out --swap" if swapped else "--swap exchanges them (data.train.chosen_key and rejected_key in a config)"
    return f"{what}: are chosen and rejected swapped? {remedy}"
