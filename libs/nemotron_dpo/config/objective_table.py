"""The objectives that dpo.preference_loss may name, as tables for configs/README.md, and in short for `nemotron-steps show`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from nemotron_dpo.config.dpo import DpoConfig
from nemotron_dpo.config.objective import Part
from nemotron_dpo.objective.modified import Modifier, modifiers
from nemotron_dpo.objective.protocol import Objective
from nemotron_dpo.objective.registry import Entry, entries

_HEAD = ("`dpo.preference_loss`", "loss of a pair", "take it where", "settings (default)", "reads first", "needs", "from")
_LEGEND = """\
l_c and l_r are log pi(y|x) of the chosen and of the rejected response, n_c and n_r the numbers of their tokens, r_c and r_r the
log-ratios log pi(y|x) - log pi_ref(y|x), d = r_c - r_r, G the difference of the rewards that a row brings along, eps
`label_smoothing`, beta `reference_policy_kl_penalty`. "Reads first" is what a pair's loss is as long as the policy is the
reference, which the first step is checked against; "-" where that depends on the data. "Whole batch" is a forward pass of the
global batch before the one that trains, since the loss of a pair depends on the other pairs: a third more work, and numbers
that do not depend on how the batch is cut.
"""


def objective_tables() -> str:
    """Markdown: the objectives, what goes across them, and every setting with its meaning."""
    parts = [
        _LEGEND,
        _table(_HEAD, map(_row, entries().values())),
        "These change what an objective reads, or how much a pair counts. Each goes with the objectives that have it among\n"
        "their settings:\n",
        _table(("setting", "does", "from"), (_modifier_row(one) for one in modifiers().values())),
        "The settings, all below `dpo`. One that no objective of a run has is refused, unless it has its default:\n",
        _table(("key", "default", "is"), _setting_rows()),
    ]
    return "\n".join(parts)


def objectives_in_short() -> list[tuple[str, str, str]]:
    """(name, what it needs, when it is the one to take) of each objective, for a person at a terminal."""
    return [(entry.name, _needs(_made(entry)), entry.use) for entry in entries().values()]


def _row(entry: Entry) -> tuple[str, ...]:
    objective = _made(entry)
    aliases = f" ({', '.join(f'`{alias}`' for alias in entry.aliases)})" if entry.aliases else ""
    own = [f"`{key}`{_shown(item.default)}" for key, item in Part(entry).settings.items()]
    settings = " ".join([*own, *(f"`{name}`" for name in entry.modifiers)])
    readings = [first.formula if first is not None else "-" for first in objective.terms.values()]
    return (
        f"`{entry.name}`{aliases}",
        f"`{_cell(entry.formula)}`",
        _cell(entry.use),
        settings,
        _cell(", ".join(readings)),
        _needs(objective),
        entry.source,
    )


def _made(entry: Entry) -> Objective:
    """The objective with its defaults, and the config's where it has none."""
    given = {
        item.name: getattr(DpoConfig, key) for key, item in Part(entry).settings.items() if item.default is dataclasses.MISSING
    }
    return entry.make(**given)


def _needs(objective: Objective) -> str:
    needs = objective.needs
    said = {
        "reference": needs.reference,
        "rewards of rows": needs.row_rewards,
        "whole batch": needs.whole_batch,
    }
    return ", ".join(name for name, is_so in said.items() if is_so) or "no reference"


def _modifier_row(one: Modifier) -> tuple[str, ...]:
    return " ".join(f"`{name}`" for name in one.settings), f"`{_cell(one.formula)}`", one.source


def settings_of_objectives() -> dict[str, tuple[str, str]]:
    """Of each key, its default and what it is; where objectives differ in its default, all their defaults."""
    found: dict[str, dict[str, str]] = {}
    about: dict[str, str] = {}
    fields = [(key, item) for entry in entries().values() for key, item in Part(entry).settings.items()]
    fields += [(item.name, item) for one in modifiers().values() for item in dataclasses.fields(one.make)]  # type: ignore[arg-type] - a dataclass
    for key, item in fields:
        default = getattr(DpoConfig, key, None) if item.default is dataclasses.MISSING else item.default
        found.setdefault(key, {})[_spelled(default)] = ""
        about.setdefault(key, str(item.metadata["about"]))
    return {key: (" or ".join(defaults), about[key]) for key, defaults in found.items()}


def _setting_rows() -> Iterator[tuple[str, ...]]:
    for key, (defaults, about) in settings_of_objectives().items():
        yield f"`{key}`", defaults, _cell(about)


def _shown(default: Any) -> str:
    return "" if default is dataclasses.MISSING else f" ({_spelled(default)})"


def _spelled(value: Any) -> str:
    return {None: "none", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, float) else f"{value:g}"


def _cell(text: str) -> str:
    """`text` as a cell of a table has it."""
    return text.replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)
