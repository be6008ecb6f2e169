"""Sort what follows STEP on the command line: overrides of the config, and tokens that pass through.

The documented command line passes on what it does not know: `--name` sets the section of the config that has this name, and is
without effect where there is none. What can only be a slip of the keyboard is refused instead: a word without "=", the dotted
key of a config behind dashes, an option of ours misspelt.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nemotron_dpo.config import redact_override
from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """`overrides` in the order given; `remarks` name each token that passes through without effect."""

    overrides: tuple[str, ...]
    remarks: tuple[str, ...]


def sort_arguments(tokens: Sequence[str], sections: Collection[str], options: Collection[str] = ()) -> Arguments:
    """Split `tokens`: KEY=VALUE is an override; `--name VALUE` and `--name=VALUE` are one too where `name` is in `sections`.

    `options` are those of the command itself. Raises UserError (usage) for a token that cannot be meant as it stands; the
    message has the form that can.
    """
    overrides: list[str] = []
    remarks: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-"):
            overrides.append(_override(token, rest))
            continue
        name, equals, value = token.lstrip("-").partition("=")
        value = value if equals else rest.pop(0) if _is_value(rest) else None
        _refuse_slip(token, name, value, sections, options)
        if (section := name.replace("-", "_")) not in sections:
            shown = token if equals or value is None else f"{token} {value}"
            remarks.append(f"{redact_override(shown)}: names no section of the config and is ignored")
        elif value is None:
            raise _slip(token, "has no value", f"give {token}=VALUE, or {section}.KEY=VALUE")
        else:
            overrides.append(f"{section}={value}")
    return Arguments(tuple(overrides), tuple(remarks))


def _override(token: str, rest: Sequence[str]) -> str:
    if "=" in token:
        return token
    guess = f"did you mean {redact_override(f'{token}={rest[0]}')}?" if "." in token and _is_value(rest) else None
    raise _slip(token, "is no KEY.PATH=VALUE", guess or f"write {token}=VALUE" if "." in token else None)


def _refuse_slip(token: str, name: str, value: str | None, sections: Collection[str], options: Collection[str]) -> None:
    if name.partition(".")[0].replace("-", "_") in sections and "." in name:
        meant = redact_override(f"{name}={value or 'VALUE'}")
        raise _slip(token, "is a key of the config behind dashes", f"write {meant}")
    typed = token.partition("=")[0]
    if typed == "--objective":
        remedy = "run the stages with --to ref-logprobs, then dpo-train by hand as --dry-run prints it, with --objective"
        raise _slip(token, "is dpo-train's: a job runs on other machines too, which have no such file", remedy)
    close = difflib.get_close_matches(typed, options, n=1, cutoff=0.75) if typed.startswith("--") else []
    if close and name.replace("-", "_") not in sections:
        raise _slip(token, "is no option", f"did you mean {close[0]}?")


def _slip(token: str, message: str, remedy: str | None) -> UserError:
    return UserError(message, source=redact_override(token), remedy=remedy, usage=True)


def _is_value(rest: Sequence[str]) -> bool:
    return bool(rest) and not rest[0].startswith("-") and "=" not in rest[0]
