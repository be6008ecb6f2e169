"""From a preference to the three texts that are tokenized: through the chat template, or as plain text without one.

Plain text (a tokenizer with no chat template): the prompt and the responses are taken as they are and the end-of-sequence
token follows each response. Through a template, a prompt that is a string becomes one user message and a response that is
a string one assistant message.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.boundary import Splitter, Texts
from nemotron_dpo.preferences.chat_template import compile_template
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.shapes import Message, Preference, Text
from nemotron_dpo.preferences.skeletons import remember
from nemotron_dpo.preferences.tokenizer_folder import TokenizerFolder


@dataclass(frozen=True)
class Renderer:
    """Makes texts of preferences. `control` finds the tokens that no text of the data may contain: they begin a
    sequence or end a turn, and a server would take them for that."""

    splitter: Splitter | None
    tool_splitter: Splitter | None
    control: re.Pattern[str] | None
    eos_token: str | None
    system_prompt: str | None
    template_kwargs: dict[str, Any]

    def render(self, preference: Preference) -> Texts:
        """The texts of `preference`. Raises RowProblem where there is no exact split or a text holds a control token."""
        if self.splitter is None:
            return self._plain(preference)
        prompt = self._with_system(_turns(preference.prompt, "user"))
        responses = [_answer(t) for t in (preference.chosen, preference.rejected)]
        for message in (*prompt, *responses):
            self._refuse_control(message.get("content"))
        splitter = self.tool_splitter if preference.tools and self.tool_splitter else self.splitter
        kwargs = {**self.template_kwargs, **(preference.template_kwargs or {})}
        return splitter.split(prompt, responses, preference.tools, kwargs)

    def _plain(self, preference: Preference) -> Texts:
        texts = (preference.prompt, preference.chosen, preference.rejected)
        for text in texts:
            if not isinstance(text, str):
                raise RowProblem("no chat template", "holds messages, but the tokenizer has no chat template")
            self._refuse_control(text)
        prompt, chosen, rejected = texts
        head = self.system_prompt + "\n\n" if self.system_prompt else ""
        return Texts(f"{head}{prompt}", f"{chosen}{self.eos_token}", f"{rejected}{self.eos_token}")

    def _with_system(self, prompt: list[Message]) -> list[Message]:
        if not self.system_prompt or (prompt and prompt[0].get("role") == "system"):
            return prompt
        return [{"role": "system", "content": self.system_prompt}, *prompt]

    def _refuse_control(self, content: Any) -> None:
        if isinstance(content, list):
            content = "\n".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
        if self.control is not None and isinstance(content, str) and (found := self.control.search(content)):
            raise RowProblem("control token in text", f"a text holds the control token {found.group()}")


def make_renderer(
    folder: TokenizerFolder,
    added_tokens: list[str],
    *,
    system_prompt: str | None,
    template_kwargs: dict[str, Any],
    now: datetime.datetime,
) -> Renderer:
    """A Renderer for the tokenizer in `folder`, whose `added_tokens` can end a turn.

    Raises UserError where the template does not compile, or there is neither a template nor an end-of-sequence token.
    """
    eos_token = folder.special_tokens.get("eos_token")
    if folder.template is None and eos_token is None:
        message = "has neither a chat template nor an eos_token"
        raise UserError(message, source=folder.path, remedy="give --chat-template FILE")
    ends = _any_of(added_tokens)

    def splitter(source: str | None) -> Splitter | None:
        if source is None:
            return None
        render = compile_template(source, folder.template_name, folder.special_tokens, now)
        return Splitter(remember(render, source), ends)

    chat = splitter(folder.template)
    control = {folder.special_tokens.get("bos_token"), eos_token, chat.end_of_turn() if chat else None} - {None, ""}
    return Renderer(
        splitter=chat,
        tool_splitter=splitter(folder.tool_template),
        control=_any_of([t for t in control if t]) if control else None,
        eos_token=eos_token,
        system_prompt=system_prompt,
        template_kwargs=template_kwargs,
    )


def _turns(text: Text, role: str) -> list[Message]:
    if isinstance(text, str):
        return [{"role": role, "content": text}]
    if not text:
        raise RowProblem("diverges early", "the two conversations have no turn in common")
    return text


def _answer(text: Text) -> Message:
    """The one assistant message of a response: tokens of other turns could not be told from it in the loss."""
    if isinstance(text, str):
        return {"role": "assistant", "content": text}
    if len(text) != 1 or text[0].get("role") != "assistant":
        roles = ", ".join(str(m.get("role")) for m in text) or "nothing"
        raise RowProblem("diverges early", f"after what the conversations share comes {roles}, where one assistant turn is due")
    return text[0]


def _any_of(tokens: list[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
