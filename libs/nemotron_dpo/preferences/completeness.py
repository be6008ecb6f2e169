"""Checks that the chat template rendered every text of a row, in order: a template is code that may leave text out.

Text that is missing from the response, from tools or from any turn is an error. Some omissions are by design and are only
noted. Templates cut white space at the ends of a text. They leave out the reasoning of an assistant's past turns, or the
text beside its past calls of tools. A server feeds the model the same shortened text.

Most conversations are proved complete by one comparison with a frame. A frame is the text that the template writes around
the texts of turns with these roles; it is rendered once for each sequence of roles. Where the comparison does not settle it
(tools, variables, a template that looks at the texts), each text is searched for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from nemotron_dpo.preferences.chat_template import Render
from nemotron_dpo.preferences.messages import Message, carries_content
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.searching import (
    TRIMMED,
    call_texts,
    find_content,
    find_without_reasoning,
    first_missing,
    is_written,
    strings,
    tool_texts,
    without_open_thought,
)

NO_REASONING = "reasoning of past turns left out"
NO_TALK = "text beside past calls of tools left out"
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SPEECH = ("function_call", "refusal")  # fields of a turn, besides its content, that hold what it says
_KNOWN_FIELDS = frozenset({"role", "content", "tool_calls", "name", "tool_call_id", "id", *_REASONING})
_MAX_FRAMES = 1024
_PLAIN = {2}  # the number of fields of a message that has only role and content
_TELLING = 16  # characters; a shorter text may well occur in what the template itself writes
_MARK = re.compile("@@TEXT-([0-9]+)-7f3a9c51@@")


@dataclass
class Completeness:
    """Checks the conversations that one template rendered, and remembers what the template writes around their texts.

    `frames` maps the roles of the turns to their frame, or to None where the template refuses these roles. A frame is a
    list. Even indices have literal text; odd indices have the number, from 0, of the turn whose text stands there.
    `end` is the token that ended the last response, or empty.
    """

    render: Render
    kwargs: dict[str, Any]
    added_tokens: re.Pattern[str]
    frames: dict[tuple[str, ...], list[Any] | None] = field(default_factory=dict)
    end: str = ""

    def check_prompt(self, text: str, turns: list[Message], tools: Any, *, framed: bool) -> set[str]:
        """What the template changed in `turns` when it rendered them as `text`, in words for a person.

        `framed`: the template got nothing but the turns and `kwargs`, and was asked for the header of an answer. Raises
        RowProblem where text of the turns or of `tools` is missing.
        """
        proved = self._framed(text, turns) if framed and not tools and set(map(len, turns)) == _PLAIN else None
        if proved is not None:
            return proved
        try:
            changed = _check_turns(text, _without_open_end(turns), nearest=False)
        except RowProblem as problem:
            try:  # a text may have been taken for the like one of a later turn, so that the turns between found no place
                changed = _check_turns(text, _without_open_end(turns), nearest=True)
            except RowProblem:
                raise problem from None
        for name, texts in tool_texts(tools or []):
            if missing := next((t for t in texts if not is_written(text, t)), None):
                raise left_out(f'the tool "{name}"', missing)
        return changed

    def check_response(self, prompt: str, text: str, turn: Message) -> set[str]:
        """What the template changed in the response `turn` when it rendered it as `text`, in words for a person.

        `prompt` is the rendered text before `text`. `text` ends with an end-of-turn token, which is not in the row.
        Raises RowProblem where text of the turn is missing.
        """
        body = text[: self._body(text)]
        if len(turn) == 2 and "content" in turn and body.endswith(turn["content"]):
            return set()
        changed: set[str] = set()
        if isinstance(turn.get("content"), str):
            turn = {**turn, "content": without_open_thought(turn["content"], prompt)}
        _check_turn(body, turn, 0, "the response", changed, past=False)
        return changed

    def _body(self, text: str) -> int:
        end = self.end  # read once, because other threads may change it
        if not (end and text.endswith(end)):
            ends = list(self.added_tokens.finditer(text))
            self.end = end = ends[-1].group() if ends and ends[-1].end() == len(text) else ""
        return len(text) - len(end)

    def _framed(self, text: str, turns: list[Message]) -> set[str] | None:
        """What the template changed, if `text` is the frame of `turns` with their texts filled in; None if it is not.

        Raises RowProblem where the frame has no place for the text of a turn, unless `text` may have it all the same.
        """
        frame = self._frame(tuple([turn["role"] for turn in turns]))
        texts: list[str] = [turn["content"] for turn in turns if "content" in turn]
        if frame is None or len(texts) < len(turns):
            return None
        if _filled(frame, texts) == text:
            changed: set[str] | None = set()
        else:
            bare = [t.strip() for t in texts]
            changed = {TRIMMED} if bare != texts and _filled(frame, bare) == text else None
        absent = set(range(len(turns))).difference(frame[1::2])
        for number in sorted(absent):
            bare = texts[number].strip()
            if bare and (changed is not None or len(bare) < _TELLING or bare not in text):
                raise left_out(f"turn {number + 1} ({turns[number]['role']})", first_missing(text, bare, 0))
        return changed

    def _frame(self, roles: tuple[str, ...]) -> list[Any] | None:
        if roles in self.frames:
            return self.frames[roles]
        marked = [{"role": role, "content": f"@@TEXT-{i}-7f3a9c51@@"} for i, role in enumerate(roles)]
        try:
            parts: list[Any] | None = list(_MARK.split(self.render(marked, True, None, **self.kwargs)))
        except RowProblem:
            parts = None
        if parts is not None:
            parts[1::2] = map(int, parts[1::2])
        if len(self.frames) < _MAX_FRAMES:
            self.frames[roles] = parts
        return parts


def _without_open_end(turns: list[Message]) -> list[Message]:
    """`turns` without the white space at the end of a last assistant's message, which the response continues.

    The template may write this white space as part of the response.
    """
    last = turns[-1]
    if last["role"] != "assistant" or not isinstance(last.get("content"), str):
        return turns
    return [*turns[:-1], {**last, "content": last["content"].rstrip()}]


def left_out(where: str, words: str) -> RowProblem:
    """The problem that the template does not write `words` of `where`; the message shortens them to about 40 characters."""
    shown = " ".join(words.split())
    shown = shown if len(shown) <= 40 else shown[:40].rsplit(" ", 1)[0] + " ..."
    message = f'the chat template does not write all of {where}: "{shown}" is missing'
    return RowProblem("text left out", f"{message}: give one that does with --chat-template")


def _filled(frame: list[Any], texts: list[str]) -> str:
    filled = frame.copy()
    filled[1::2] = [texts[i] for i in frame[1::2]]
    return "".join(filled)


def _check_turns(text: str, turns: list[Message], *, nearest: bool) -> set[str]:
    """What the template changed in `turns`, all of whose texts are in `text`, each after those of the turns before it.

    With `nearest` every text is searched where it ends first: if the turns have places in order at all, that finds them, but
    it may take a text for left out or changed that stands further on as it is. Raises RowProblem where a text is missing.
    """
    changed: set[str] = set()
    start = before = 0
    for number, turn in enumerate(turns, 1):
        past = not (number == len(turns) and turn["role"] == "assistant")
        # Gemma 4 writes a tool's result in front of the text of the turn that called the tool
        place = before if turn["role"] == "tool" else start
        end = _check_turn(text, turn, place, f"turn {number} ({turn['role']})", changed, past=past, nearest=nearest)
        before = start if turn["role"] == "assistant" else before
        start = max(start, end)
    return changed


def _check_turn(
    text: str, turn: Message, start: int, where: str, changed: set[str], *, past: bool, nearest: bool = False
) -> int:
    """Search `text` from `start` on for all texts of `turn`, and return the index where the next turn can begin.

    `where` names the turn in error messages. What the template changed is added to `changed`. In a `past` turn some text may
    be missing by design. Raises RowProblem where other text is missing.
    """
    if len(turn) > 2 or "content" not in turn:
        _check_fields(text, turn, where, changed, past=past)
    role, content = turn["role"], turn.get("content") or ""
    found = find_content(text, content, 0 if role == "system" else start, role, nearest=nearest)
    if content and past and role == "assistant" and (found is None or nearest):
        if turn.get("tool_calls"):
            changed.add(NO_TALK)
            return start
        bare = find_without_reasoning(text, content, start, nearest=nearest)
        if bare and (found is None or bare.end < found.end):
            found = bare
            changed.add(NO_REASONING)
    if found is None:
        raise left_out(where, first_missing(text, content.strip(), start))
    if found.changed:
        changed.add(found.changed)
    return start if role == "system" else found.end  # Mistral's templates write the system text into the last user's turn


def _check_fields(text: str, turn: Message, where: str, changed: set[str], *, past: bool) -> None:
    for name in _REASONING:
        missing = next((t for t in strings(turn.get(name)) if not is_written(text, t)), None)
        if missing is not None and past:
            changed.add(NO_REASONING)
        elif missing is not None:
            raise left_out(f'"{name}" of {where}', missing)
    calls = turn.get("tool_calls")
    if missing := next((t for t in call_texts(calls) if not is_written(text, t)), None):
        raise left_out(f'"tool_calls" of {where}', missing)
    for name, value in turn.items():
        texts = strings(value) if name not in _KNOWN_FIELDS and carries_content(value) else []
        missing = next((t for t in texts if not is_written(text, t)), None)
        if missing is not None and name in _SPEECH and not past:
            raise left_out(f'"{name}" of {where}', missing)
        if missing is not None:
            changed.add(f'field "{name}" of messages not read')
