"""The kinds of values that keys of a profile hold: each reads a value as TOML or YAML has it, or says what is due instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nemotron_dpo.config import redact


class UnfitValue(Exception):
    """A value that is not of its key's kind: what it is, and what to write instead where that is known.

    Of a table, `entry` is the key that has the value.
    """

    def __init__(self, message: str, remedy: str | None = None, entry: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.entry = entry


@dataclass(frozen=True)
class Kind:
    """`read` makes a checked value of what a file holds, or raises UnfitValue.

    Digits from an environment variable may stand for a number (`is_number`). A time (`is_time`) must be quoted in YAML, which
    reads 10:00:00 as 36000.
    """

    name: str
    read: Callable[[Any], Any]
    is_number: bool = False
    is_time: bool = False


def text(value: Any) -> str:
    """One line."""
    if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f]", value):
        raise UnfitValue(f"is {value!r} where one line of text is due")
    return value


def path(value: Any) -> str:
    """An absolute path."""
    if not PurePosixPath(text(value)).is_absolute():
        raise UnfitValue(f"is {value!r} where an absolute path is due")
    return str(PurePosixPath(value))


def number(value: Any) -> int:
    """1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnfitValue(f"is {value!r} where a number of 1 or more is due")
    return value


def count(value: Any) -> int:
    """0 or more."""
    return 0 if value == 0 and not isinstance(value, bool) else number(value)


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise UnfitValue(f"is {value!r} where true or false is due")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of lines."""
    if not isinstance(value, list):
        raise UnfitValue(f"is {value!r} where a list is due")
    return tuple(text(item) for item in value)


def table(value: Any) -> Mapping[str, Any]:
    """A table of TOML."""
    if not isinstance(value, dict):
        raise UnfitValue(f"is {value!r} where a table is due")
    return value


def variables(value: Any) -> Mapping[str, Any]:
    """Environment variables by name. A value is never quoted: it may be a secret."""
    for name, one in table(value).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UnfitValue("is no name of a variable", "letters, digits and _ make one, no digit first", str(name))
        if isinstance(one, str) and "\0" in one:
            raise UnfitValue("has a zero byte, which no variable holds", entry=name)
        if not (one is None or isinstance(one, str | int | float)):
            what = "a table" if isinstance(one, dict) else "a list" if isinstance(one, list) else f"a {type(one).__name__}"
            raise UnfitValue(f"is {what} where one value is due", "quote it, if the program reads such text", name)
    return value


def tables(value: Any) -> tuple[Mapping[str, Any], ...]:
    """A list of tables."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnfitValue(f"is {value!r} where a list of tables is due")
    return tuple(value)


def shell_lines(value: Any) -> tuple[str, ...]:
    """One line of shell, or a list of them."""
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) and "\0" not in line for line in lines):
        raise UnfitValue(f"is {value!r} where shell commands are due")
    return tuple(lines)


def command(value: Any) -> str:
    """A command line around {script}."""
    if "{script}" not in text(value):
        raise UnfitValue("lacks {script}", "that is where the stage's command goes, such as nice {script}")
    return value


def url(value: Any) -> str:
    """An address, without its last slash."""
    if not re.fullmatch(r"https?://[^\s@]+", text(value)):
        raise UnfitValue(f"is {redact(value)!r} where an address that starts with https:// is due")
    return value.rstrip("/")


def secret(value: Any) -> str:
    """Text that is never quoted in an error."""
    if not isinstance(value, str):
        raise UnfitValue("is not one line of text")
    return value


TEXT, PATH, FLAG, URL = Kind("text", text), Kind("absolute path", path), Kind("true or false", flag), Kind("address", url)
NUMBER = Kind("number of 1 or more", number, is_number=True)
COUNT = Kind("number of 0 or more", count, is_number=True)
VARIABLES = Kind("table of names and values", variables)
TEXTS, TABLE, TABLES = Kind("list of text", texts), Kind("table", table), Kind("list of tables", tables)
SHELL_LINES, COMMAND = Kind("shell commands", shell_lines), Kind("command line around {script}", command)
SECRET = Kind("secret", secret)
