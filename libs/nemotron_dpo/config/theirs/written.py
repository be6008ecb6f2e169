"""A converted config as YAML text: sections nested, and beside each key what it came from."""

from __future__ import annotations

from typing import Any

from nemotron_dpo.config.theirs.convert import Converted
from nemotron_dpo.config.theirs.given import Written, checked_text
from nemotron_dpo.config.theirs.tables import TITLES


def as_yaml(made: Converted, source: str) -> str:
    """The text of a config that our loader reads; `source` names theirs."""
    tree: dict[str, Any] = {}
    for item in made.written:
        *sections, name = item.key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = item
    return "".join([*_head(made, source), *_lines(tree, 0)])


def _head(made: Converted, source: str) -> list[str]:
    lines = [f"From {source}, a config of {TITLES[made.program]}: beside each key stands what it came from."]
    lines += [f"Not the same here: {key}: {text}" for key, text in made.differs.items()]
    lines += [f"Without counterpart: {key} {reason}" for key, reason in made.idle.items()]
    lines += [f"UNKNOWN, and without effect here: {key}" for key in made.unknown]
    lines += [f"Left out on request: {key}" for key in made.ignored]
    return [f"# {' '.join(line.split())}\n" for line in lines]


def _lines(tree: dict[str, Any], depth: int) -> list[str]:
    indent, lines = "  " * depth, []
    for name, item in tree.items():
        if isinstance(item, Written):
            why = " ".join(item.why.split())
            lines.append(f"{indent}{name}: {_plain(item.value)}{f' # {why}' if why else ''}\n")
        else:
            lines += [f"{indent}{name}:\n", *_lines(item, depth + 1)]
    return lines


def _plain(value: Any) -> str:
    from yaml import safe_dump

    text = safe_dump(checked_text(value), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
