"""A config of theirs as it is read, and what is made of it: values by TRL's names, and what came of each key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from nemotron_dpo.config.redact import redact
from nemotron_dpo.config.theirs.tables import COUNTS, DEFAULTS, TITLES
from nemotron_dpo.config.theirs.value_kinds import NUMBERS, unfit
from nemotron_dpo.errors import UserError

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Written:
    """One key of ours with its value, and where that comes from."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Refusal:
    """Why the config cannot be written as it is: `key` is theirs, as they spell it."""

    key: str
    message: str
    remedy: str | None = None


@dataclass
class Given:
    """What a config of `program` says, by TRL's names; `spelled` has the name that it uses for each.

    `texts` has what to show where a value was computed of another key.
    """

    program: str
    values: dict[str, Any]
    spelled: dict[str, str]
    ignored: Collection[str] = ()
    written: list[Written] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    differs: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def says(self, key: str) -> bool:
        """Whether the config itself gives `key`."""
        return self.values.get(key) is not None

    def get(self, key: str) -> Any:
        """The value of `key`, a number where one is due; where the config leaves it out, the program's own default."""
        default = DEFAULTS[self.program].get(key, COUNTS[key][0] if key in COUNTS else None)
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(COUNTS.get(key, (None,))[0], bool):
            return _WORDS.get(value.lower(), value) if isinstance(value, str) else value
        return _number(key, value) if key in NUMBERS else value

    def fitting(self, values: dict[str, Any]) -> dict[str, Any]:
        """Those of `values` that are of their key's kind; the others are refused. None says nothing, and is kept."""
        wrong = {key: why for key, value in values.items() if value is not None and (why := unfit(key, value))}
        for key, why in wrong.items():
            self.refuse(key, why)
        return {key: value for key, value in values.items() if key not in wrong}

    def name(self, key: str) -> str:
        """`key` as the config spells it."""
        return self.spelled.get(key, key)

    def write(self, ours: str, value: Any, *theirs: str, note: str = "") -> None:
        """Set a key of ours, which comes from those of `theirs`."""
        said = [
            self.texts.get(key) or f"{self.name(key)}: {_shown(redact(self.values[key], key))}"
            for key in theirs
            if self.says(key)
        ]
        unsaid = [key for key in theirs if not self.says(key) and COUNTS[key][0] is not None]
        why = "; ".join([*said, *([f"{TITLES[self.program]}'s default of {', '.join(unsaid)}"] if unsaid and not said else [])])
        self.written.append(Written(ours, value, "; ".join(filter(None, (why, note)))))

    def refuse(self, key: str, message: str, remedy: str | None = None) -> None:
        """Say that `key` would change the result, unless the user wants it ignored."""
        if self.name(key) not in self.ignored and key not in self.ignored:
            refusal = Refusal(self.name(key), message, remedy)
            self.refusals += [refusal] if refusal not in self.refusals else []

    def differ(self, key: str, text: str) -> None:
        """Say what is not the same here although `key` counts."""
        self.differs[self.name(key)] = text


def _number(key: str, value: Any) -> Any:
    """`value` as a number: YAML reads 5e-7 as text, and their programs do not."""
    number = float(value)
    return int(number) if number == int(number) and not isinstance(COUNTS[key][0], float) else number


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def checked_text(value: Any) -> Any:
    """`value`, a part of our config. Raises UserError for text that OmegaConf would take for an interpolation."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            checked_text(part)
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{value!r} would be filled in by our loader", remedy="write the value itself")
    return value
