"""Finds where the prompt ends and the response begins and ends, in the text that the chat template renders.

The prompt is the text that an inference server would feed to the model. A response is the text that the model would then
have to generate, up to and including the end-of-turn token.

Most templates keep the rendered prompt as a prefix of the rendered conversation. The response is then the text after that
prefix. Some templates rewrite the prompt once an answer follows. For these, a second rendering has a marker in place of the
response and so shows where the response begins. The text before the marker must end with the same header as the prompt.
Otherwise there is no exact split, and the row is an error. Text that a template writes after the end of the turn, such as
a newline, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.preferences.chat_template import Render
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.row_formats import Message

_MARKER = "@@RESPONSE-7f3a9c51@@"


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """A rendered pair: the prompt that a server would feed, and the two responses that the model would write after it.

    `rewritten`: whether the template rewrote the prompt once a response followed.
    `changed`: what the template changed in the texts of the row, in words for a person.
    """

    prompt: str
    chosen: str
    rejected: str
    rewritten: bool = False
    changed: frozenset[str] = frozenset()


@dataclass
class Splitter:
    """Renders conversations with one chat template and splits them into prompt and response.

    `added_tokens` matches the tokens among which the end-of-turn token is looked for. `closing` is the text that the
    template last wrote after an assistant's content. It is remembered because it is the same for most rows.
    """

    render: Render
    added_tokens: re.Pattern[str]
    closing: str | None = None

    def split(self, prompt: list[Message], responses: Iterable[Message], tools: Any, kwargs: dict[str, Any]) -> RenderedPair:
        """The texts of `prompt` and of its two responses, each of which is one assistant message.

        If `prompt` ends with an assistant's message, the responses continue that message. `tools` and `kwargs` are passed
        on to the template. Raises RowProblem where the template fails or there is no exact split.
        """
        prefilled = prompt[-1]["role"] == "assistant"
        history = prompt[:-1] if prefilled else prompt
        prefix = self._prefill(prompt, tools, kwargs) if prefilled else self.render(prompt, True, tools, **kwargs)
        parts = []
        for response in responses:
            message = _joined(prompt[-1], response) if prefilled else response
            parts.append(self._response(prefix, history, message, tools, kwargs))
        (chosen, moved), (rejected, moved_too) = parts
        return RenderedPair(prefix, chosen, rejected, moved or moved_too)

    def end_of_turn(self) -> str | None:
        """The token with which this template ends an assistant's turn; None where it writes no such token.

        The conversation that is rendered to find it has one user's turn and one assistant's turn.
        """
        try:
            self.closing = self._around_marker([{"role": "user", "content": "a"}], None, {})[1]
        except RowProblem:
            return None
        end = self.added_tokens.search(self.closing)
        return end.group() if end else None

    def _response(
        self, prefix: str, history: list[Message], message: Message, tools: Any, kwargs: dict[str, Any]
    ) -> tuple[str, bool]:
        """The text that the model has to write after `prefix`, and whether the template rewrote that prefix."""
        whole = self.render([*history, message], False, tools, **kwargs)
        if whole.startswith(prefix):
            rest, rewritten = whole[len(prefix) :], False
        else:
            rest, rewritten = self._after_rewrite(prefix, whole, history, message, tools, kwargs), True
        return self._end_of_turn(rest, history, message, tools, kwargs), rewritten

    def _after_rewrite(
        self, prefix: str, whole: str, history: list[Message], message: Message, tools: Any, kwargs: dict[str, Any]
    ) -> str:
        before, _ = self._around_marker(history, tools, kwargs)
        plain = self.render(history, False, tools, **kwargs)
        header = prefix[len(plain) :] if prefix.startswith(plain) else ""
        content = message.get("content")
        exact = header and before.endswith(header) and whole.startswith(before)
        if not (exact and isinstance(content, str) and whole[len(before) :].lstrip().startswith(content.strip())):
            raise RowProblem("no exact split", "the chat template does not keep the prompt in front of the response")
        return whole[len(before) :]

    def _end_of_turn(self, rest: str, history: list[Message], message: Message, tools: Any, kwargs: dict[str, Any]) -> str:
        """`rest` up to and including the token that ends the assistant's turn."""
        closing = self.closing
        if closing is None or not _closes(rest, closing, message):
            self.closing = closing = self._around_marker(history, tools, kwargs)[1]
        if rest.endswith(closing) and (end := self.added_tokens.search(closing)):
            return rest[: len(rest) - len(closing) + end.end()]
        ends = [match.end() for match in self.added_tokens.finditer(rest)]
        if message.get("tool_calls") and ends and not rest[ends[-1] :].strip():
            return rest[: ends[-1]]
        raise RowProblem("no exact split", "the chat template ends the assistant's turn without an end-of-turn token")

    def _around_marker(self, history: list[Message], tools: Any, kwargs: dict[str, Any]) -> tuple[str, str]:
        """What the template writes before and after the content of an assistant's last message."""
        whole = self.render([*history, {"role": "assistant", "content": _MARKER}], False, tools, **kwargs)
        before, marker, after = whole.partition(_MARKER)
        if not marker or _MARKER in after:
            raise RowProblem("no exact split", "the chat template does not write an assistant's message once, as it is")
        return before, after

    def _prefill(self, prompt: list[Message], tools: Any, kwargs: dict[str, Any]) -> str:
        """The rendered prompt that ends inside an assistant's message, with neither a header nor an end of turn after it."""
        content = prompt[-1].get("content")
        if not isinstance(content, str):
            raise RowProblem("wrong type", "the assistant's message that the response continues has no text")
        marked = self.render([*prompt[:-1], {**prompt[-1], "content": content + _MARKER + " "}], False, tools, **kwargs)
        before, marker, after = marked.partition(_MARKER)
        if not marker or _MARKER in after:
            raise RowProblem("no exact split", "the chat template does not write the message to continue once, as it is")
        return before if after.startswith(" ") else before.rstrip()


def _closes(rest: str, closing: str, message: Message) -> bool:
    """True where `rest` ends with the message's own text and `closing`, so that the template added only `closing`."""
    content = message.get("content")
    return rest.endswith(closing) and (
        not isinstance(content, str) or rest[: len(rest) - len(closing)].rstrip().endswith(content.rstrip())
    )


def _joined(prefill: Message, response: Message) -> Message:
    content = response.get("content")
    if not isinstance(content, str):
        raise RowProblem("wrong type", "the response that continues an assistant's message has no text")
    return {**response, "content": prefill["content"] + content}
