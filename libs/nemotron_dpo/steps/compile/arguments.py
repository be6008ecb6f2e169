"""Sort what follows STEP on the command line: dotlist overrides, and tokens that pass through or come to nothing."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nemotron_dpo.config import redact_override


@dataclass(frozen=True)
class Arguments:
    """`overrides` in the order given; `remarks` name each token that comes to nothing, and why."""

    overrides: tuple[str, ...]
    remarks: tuple[str, ...]


def sort_arguments(tokens: Sequence[str], fields: Collection[str], options: Collection[str] = ()) -> Arguments:
    """Split `tokens`: KEY=VALUE is an override; `--name VALUE` or `--name=VALUE` is one too where `name` is in `fields`.

    `options` are those of the command itself: what looks like one of them misspelled is said to.
    """
    overrides: list[str] = []
    remarks: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if "=" in token and not token.startswith("-"):
            overrides.append(token)
            continue
        name, equals, value = token.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not token.startswith("-") or name not in fields:
            remarks.append(f"{redact_override(token)}: names no section of the config and is ignored{_guess(token, options)}")
        elif equals or _is_value(rest):
            overrides.append(f"{name}={value if equals else rest.pop(0)}")
        else:
            remarks.append(f"{token}: has no value and is ignored: give {token}=VALUE, or {name}.KEY=VALUE")
    return Arguments(tuple(overrides), tuple(remarks))


def _is_value(rest: Sequence[str]) -> bool:
    return bool(rest) and not rest[0].startswith("-") and "=" not in rest[0]


def _guess(token: str, options: Collection[str]) -> str:
    name = token.partition("=")[0]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.75) if name.startswith("--") else []
    return f": did you mean {close[0]}?" if close else ""
