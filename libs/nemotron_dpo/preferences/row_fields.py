"""Read one field of a row as what it must be: a text, a number, or the messages of a conversation.

Each function raises RowProblem, whose field is the key, where the field is missing or something else.
"""

from __future__ import annotations

from typing import Any

from nemotron_dpo.preferences.messages import Message, normal_message
from nemotron_dpo.preferences.problems import RowProblem, Unreadable, missing, wrong_type

Text = str | list[Message]
Row = dict[str, Any]


def optional(row: Row, key: str) -> Any:
    """Whatever the field holds; None where the row has no such field."""
    found = row.get(key)
    if isinstance(found, Unreadable):
        raise RowProblem(found.reason, found.message, field=key)
    return found


def required(row: Row, key: str) -> Any:
    """Whatever the field holds, of a row that must have it."""
    if key not in row:
        raise missing(key, row)
    return optional(row, key)


def string(row: Row, key: str) -> str:
    """A text."""
    found = required(row, key)
    if not isinstance(found, str):
        raise wrong_type(key, "a string", found)
    return found


def number(row: Row, key: str) -> float:
    """A number, which true and false are not."""
    found = required(row, key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise wrong_type(key, "a number", found)
    return found


def text(row: Row, key: str) -> Text:
    """A text, or messages, of which a single one may stand without a list."""
    found = required(row, key)
    if isinstance(found, str):
        return found
    if isinstance(found, dict):
        found = [found]
    return _checked_messages(found, key, "a string or a list of messages")


def messages(row: Row, key: str) -> list[Message]:
    """Messages, at least one."""
    return _checked_messages(required(row, key), key, "a list of messages")


def _checked_messages(found: object, key: str, due: str) -> list[Message]:
    if not isinstance(found, list) or not all(isinstance(m, dict) for m in found):
        raise wrong_type(key, due, found)
    if not found:
        raise RowProblem("missing field", "holds no message", field=key)
    return [_checked_message(m, key) for m in found]


def _checked_message(message: Message, key: str) -> Message:
    kept = {name: value for name, value in message.items() if value is not None}
    kept = normal_message(kept, key)
    content = kept.get("content")
    if not isinstance(content, str) and not (content is None and "tool_calls" in kept):
        raise wrong_type(key, 'a text "content" in each message', content)
    return kept
