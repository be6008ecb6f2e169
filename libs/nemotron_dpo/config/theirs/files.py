"""Read a YAML file of theirs, and name its lines in what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo import documents
from nemotron_dpo.config.layer import ConfigLayer, origin
from nemotron_dpo.config.redact import hide_secrets
from nemotron_dpo.config.theirs.given import Refusal
from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class TheirFile:
    """A config of theirs as YAML gives it, with its text."""

    path: Path
    text: str
    tree: dict[str, Any]

    def refusal(self, refusals: Sequence[Refusal]) -> UserError:
        """The error about all of `refusals`, which names the line of the first."""
        first, *others = refusals
        line = origin(first.key, [ConfigLayer(str(self.path), self.text, self.tree, is_file=True)])[1]
        message = hide_secrets(first.message, first.key)
        if others:
            more = "; ".join(f"{other.key} {hide_secrets(other.message, other.key)}" for other in others)
            message = f"{message} (and {len(others)} more: {more})"
        ignore = f"ignore=[{','.join(refusal.key for refusal in refusals)}] where that does not matter"
        remedy = f"{first.remedy}; or {ignore}" if first.remedy else ignore
        return UserError(message, source=self.path, line=line, field=first.key, remedy=remedy)


def read_theirs(path: Path) -> TheirFile:
    """The config in `path`. Raises UserError where it is no YAML mapping of plain values."""
    from yaml import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        tree = documents.read_yaml(path)
    except FileNotFoundError:
        raise UserError("no such config file", source=path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot be read ({error})", source=path) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise UserError(f"is not YAML ({error.problem or error.context})", source=path, line=line) from None
    except YAMLError as error:
        raise UserError(f"is not YAML ({str(error).splitlines()[0]})", source=path) from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError("is no mapping of their keys", source=path)
    return TheirFile(path, text, tree)
