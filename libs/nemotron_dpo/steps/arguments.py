"""Sort what follows STEP on the command line: dotlist overrides, and tokens that pass through or come to nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Arguments:
    """`overrides` in the order given; `ignored` are the tokens that name no top-level field of the config."""

    overrides: tuple[str, ...]
    ignored: tuple[str, ...]


def sort_arguments(tokens: Sequence[str], fields: Collection[str]) -> Arguments:
    """Split `tokens`: KEY=VALUE is an override; `--name VALUE` or `--name=VALUE` is one too where `name` is in `fields`."""
    overrides: list[str] = []
    ignored: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if "=" in token and not token.startswith("-"):
            overrides.append(token)
            continue
        name, equals, value = token.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if token.startswith("-") and name in fields and (equals or _is_value(rest)):
            overrides.append(f"{name}={value if equals else rest.pop(0)}")
        else:
            ignored.append(token)
    return Arguments(tuple(overrides), tuple(ignored))


def _is_value(rest: Sequence[str]) -> bool:
    return bool(rest) and not rest[0].startswith("-") and "=" not in rest[0]
