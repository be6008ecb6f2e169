"""The keys of a profile, checked: each of the type it must be, none that nobody knows. One line for what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from nemotron_dpo.config import redact
from nemotron_dpo.steps.compile.profile import KEYS, Profile, nearest_key

_WORD = re.compile(r"[A-Za-z0-9_.,:=+@/*%-]+")


class Table:
    """The keys of a profile, each of the type it must be."""

    def __init__(self, profile: Profile, kinds: Mapping[str, str]) -> None:
        """`kinds` says what the keys of this executor hold."""
        self._profile = profile
        self._values = profile.settings
        self._kinds = kinds

    def check(self) -> None:
        """Refuse a key that no executor knows, and a value of another type than this executor's keys have."""
        for key in self._values:
            if key in self._kinds:
                self.get(key)
            elif key not in KEYS:
                self.refuse(key, "is no known key", nearest_key(key))

    def idle(self, *more: str) -> tuple[str, ...]:
        """The keys that are set and that this executor has no use for, `more` among them."""
        return tuple(sorted(key for key in self._values if key not in self._kinds or key in more))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, checked; `default` where it is not set or empty."""
        value = self._values.get(key)
        return default if value in (None, "", [], {}) else getattr(self, f"_{self._kinds[key]}")(key, value)

    def need(self, key: str, remedy: str) -> Any:
        """The value of `key`, which must be there."""
        value = self.get(key)
        return self.refuse(key, "is missing", remedy) if value is None else value

    def choice(self, key: str, choices: Sequence[str], default: str) -> Any:
        """One of `choices`."""
        value = self.get(key, default)
        if value not in choices:
            self.refuse(key, f"is {value!r} where {' or '.join(choices)} is due")
        return value

    def refuse(self, key: str, message: str, remedy: str | None = None) -> NoReturn:
        """Raise UserError about `key`."""
        raise self._profile.refusal(key, message, remedy)

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f]", value):
            self.refuse(key, f"is {value!r} where one line of text is due")
        return value

    def _word(self, key: str, value: Any) -> str:
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            self.refuse(key, f"is {value!r} where a name or a number as Slurm takes it is due")
        return value

    def _path(self, key: str, value: Any) -> str:
        if not PurePosixPath(self._text(key, value)).is_absolute():
            self.refuse(key, f"is {value!r} where an absolute path is due")
        return str(PurePosixPath(value))

    def _plain_path(self, key: str, value: Any) -> str:
        """One that a shell reads as it is: NeMo-Run quotes none."""
        path = self._path(key, value)
        if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9_.+-]+)+", path):
            self.refuse(key, f"is {value!r} where a path of letters, digits and _ . + - / is due")
        return path

    def _url(self, key: str, value: Any) -> str:
        if not re.fullmatch(r"https?://[^\s@]+", self._text(key, value)):
            self.refuse(key, f"is {redact(value)!r} where an address that starts with https:// is due")
        return value.rstrip("/")

    def _secret(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            self.refuse(key, "is not one line of text")
        return value

    def _number(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(key, f"is {value!r} where a number of 1 or more is due")
        return value

    def _count(self, key: str, value: Any) -> int:
        return 0 if value == 0 and not isinstance(value, bool) else self._number(key, value)

    def _flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.refuse(key, f"is {value!r} where true or false is due")
        return value

    def _exclusive(self, key: str, value: Any) -> str | None:
        return {True: "exclusive", False: None}[value] if isinstance(value, bool) else f"exclusive={self._word(key, value)}"

    def _list(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.refuse(key, f"is {value!r} where a list is due")
        return tuple(self._text(key, item) for item in value)

    def _tables(self, key: str, value: Any) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.refuse(key, f"is {value!r} where a list of tables is due")
        return tuple(value)

    def _command(self, key: str, value: Any) -> str:
        if "{script}" not in self._text(key, value):
            self.refuse(key, "lacks {script}", "that is where the stage's command goes, such as nice {script}")
        return value

    def _lines(self, key: str, value: Any) -> tuple[str, ...]:
        lines = [value] if isinstance(value, str) else value
        if not isinstance(lines, list) or not all(isinstance(line, str) and "\0" not in line for line in lines):
            self.refuse(key, f"is {value!r} where shell commands are due")
        return tuple(lines)

    def _table(self, key: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.refuse(key, f"is {value!r} where a table is due")
        return value
