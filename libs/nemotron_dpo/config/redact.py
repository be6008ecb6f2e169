"""Keep secrets off the screen and out of files: by the end of a key's name, and by the look of a value."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
_SECRET_LETTERS = 8
_SECRET_KEY = re.compile(
    r"(^|[_.\-])(token|secret|password|passwd|passphrase|credentials?|(api|access|secret|private)[_\-]?key|auth)$",
    re.I,
)
# Names of variables, which others choose: PGPASSWORD, HF_TOKEN_2, GITHUB_PAT.
_SECRET_VARIABLE = re.compile(
    r"(token|secret|password|passwd|passphrase|credentials?|(api|access|secret|private)_?key|(^|_)(auth|pat|pwd)|webhook(_url)?)"
    r"(_?\d+)?$",
    re.I,
)
_FOLDERS = ("PWD", "OLDPWD")
_SECRET_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|nvapi-[\w\-]{30,}|sk-[\w\-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w\-]{20,}"
    r"|xox[abp]-[\w\-]{10,}|AKIA[A-Z0-9]{16}|eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]+)"
    r"|^[0-9a-f]{40}$|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)

_VARIABLE = re.compile(r"run\.env(\.env_vars|$)")


def redact(value: Any, key: str = "") -> Any:
    """`value` with secrets replaced by `***`, through mappings and lists; `key` is the name it goes by."""
    if isinstance(value, dict):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if value is not None and not isinstance(value, bool) and _names_secret(key):
        return HIDDEN
    if not isinstance(value, str):
        return value
    for secret in secrets_of(os.environ).values():
        value = value.replace(secret, HIDDEN)
    return _SECRET_VALUE.sub(HIDDEN, value)


def secrets_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables whose names say that they hold a secret; a value of a few letters is none."""
    return _secrets(tuple(environ.items()))


@functools.lru_cache(maxsize=4)
def _secrets(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: value for name, value in variables if _is_secret_variable(name) and len(value) >= _SECRET_LETTERS}


def _is_secret_variable(name: str) -> bool:
    return _SECRET_VARIABLE.search(name) is not None and name not in _FOLDERS


def _names_secret(key: str) -> bool:
    """Whether a value under `key`, which may be a variable's name in capitals, is a secret."""
    name = key.rpartition(".")[2]
    return _SECRET_KEY.search(key) is not None or (name.isupper() and _is_secret_variable(name))


def secret_within(value: Any, secrets: Mapping[str, str], key: str = "") -> tuple[str, str] | None:
    """(key, variable) where one of `secrets` lies in `value` under a key that does not say so; None where none does.

    Variables for a job are where secrets belong, and so are keys that name one.
    """
    if isinstance(value, dict | list | tuple) and secrets:
        items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        parts = ((item, ".".join(filter(None, (key, name and str(name))))) for name, item in items)
        return next(filter(None, (secret_within(item, secrets, name) for item, name in parts)), None)
    if not isinstance(value, str) or "env_vars" in key.split(".") or _names_secret(key):
        return None
    return next(((key, name) for name, secret in secrets.items() if secret in value), None)


def redact_override(text: str) -> str:
    """`key=value` (or any other argument) with a secret value hidden; of a variable for a job nobody can tell."""
    key, equals, value = text.partition("=")
    if equals and _VARIABLE.match(key):
        return f"{key}={HIDDEN}"
    return f"{key}={redact(value, key)}" if equals else redact(text)


def hide_secrets(message: str, key: str) -> str:
    """What is wrong with the value of `key`, which may quote it, without a secret; with no key, what to do about it."""
    if _names_secret(key):
        return "has a value that cannot be used"
    return re.sub(r"[^\s'\",=]+", lambda word: redact(word[0]), redact(message))


def redact_argv(words: Sequence[str]) -> list[str]:
    """A command line, the values of options that name a secret (`--hf-token VALUE`) hidden too."""
    shown: list[str] = []
    follows = False
    for word in words:
        shown.append(HIDDEN if follows and not word.startswith("-") else redact_override(word))
        follows = word.startswith("--") and "=" not in word and _names_secret(word.lstrip("-"))
    return shown
