"""Make of a preference the three texts to tokenize: the prompt, the chosen response and the rejected one.

With a chat template, a prompt that is a string becomes one user message. A response that is a string becomes one assistant
message. Without a template, the texts are taken as they are, and the end-of-sequence token is appended to each response.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, replace
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.boundary import RenderedPair, Splitter
from nemotron_dpo.preferences.chat_template import compile_template
from nemotron_dpo.preferences.completeness import Completeness
from nemotron_dpo.preferences.messages import ROLES, Message, argument_texts, refuse_placeholders, with_parsed_arguments
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.row_fields import Text
from nemotron_dpo.preferences.row_formats import Preference
from nemotron_dpo.preferences.skeletons import remember
from nemotron_dpo.preferences.tokenizer_folder import TokenizerFolder

_GIVEN = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True)
class Renderer:
    """Renders preferences to texts with one chat template, or with none (`splitter` None).

    `control` matches the tokens that no text of the data may contain. These tokens begin a sequence or end a turn, and an
    inference server would take them for that. `tool_splitter` is for the template that the tokenizer uses for rows with tools.
    """

    splitter: Splitter | None
    tool_splitter: Splitter | None
    completeness: Completeness | None
    control: re.Pattern[str] | None
    eos_token: str | None
    system_prompt: str | None
    template_kwargs: dict[str, Any]
    template_source: str

    def render(self, preference: Preference) -> RenderedPair:
        """The texts of `preference`.

        Raises RowProblem where prompt and response cannot be split exactly, where the template leaves a text out, where a text
        holds a control token, or where the messages or template variables are not what a template can take.
        """
        if self.splitter is None:
            return self._plain(preference)
        prompt = self._with_system(_turns(preference.prompt, "user"), preference.beside.system)
        responses = [_answer(t) for t in (preference.chosen, preference.rejected)]
        for message in (*prompt, *responses):
            self._check_message(message)
        kwargs = {**self.template_kwargs, **(preference.template_kwargs or {})}
        if kwargs.keys() & _GIVEN:
            raise RowProblem("wrong type", f"sets {' and '.join(kwargs.keys() & _GIVEN)}", field="chat_template_kwargs")
        return self._complete(prompt, responses, preference.tools, kwargs)

    def _complete(self, prompt: list[Message], responses: list[Message], tools: Any, kwargs: dict[str, Any]) -> RenderedPair:
        """The texts of the messages. Raises RowProblem where the template did not write all that the messages say."""
        assert self.splitter is not None
        assert self.completeness is not None
        splitter = self.tool_splitter if tools and self.tool_splitter else self.splitter
        texts, messages = _split(splitter, [*prompt, *responses], tools, kwargs)
        framed = kwargs == self.template_kwargs and prompt[-1]["role"] != "assistant"
        changed = self.completeness.check_prompt(texts.prompt, messages[:-2], tools, framed=framed)
        changed |= self.completeness.check_response(texts.prompt, texts.chosen, messages[-2])
        changed |= self.completeness.check_response(texts.prompt, texts.rejected, messages[-1])
        changed.update(f'template variable "{name}" not used' for name in kwargs if not self._uses(name))
        return replace(texts, changed=frozenset(changed)) if changed else texts

    def _plain(self, preference: Preference) -> RenderedPair:
        texts = (preference.prompt, preference.chosen, preference.rejected)
        for what, given in (("tools", preference.tools), ("chat_template_kwargs", preference.template_kwargs)):
            if given:
                raise RowProblem("no chat template", f"has {what}, but the tokenizer has no chat template")
        for text in texts:
            if not isinstance(text, str):
                raise RowProblem("no chat template", "holds messages, but the tokenizer has no chat template")
            self._refuse_control(text)
        prompt, chosen, rejected = texts
        system = preference.beside.system or self.system_prompt
        head = system + "\n\n" if system else ""
        return RenderedPair(f"{head}{prompt}", f"{chosen}{self.eos_token}", f"{rejected}{self.eos_token}")

    def _with_system(self, prompt: list[Message], column: str | None) -> list[Message]:
        own = prompt[0].get("content") if prompt and prompt[0]["role"] == "system" else None
        if own is not None and column not in (None, own):
            raise RowProblem("prompt disagrees", "is not what the system turn of the messages says", field="system")
        system = column or self.system_prompt
        return [{"role": "system", "content": system}, *prompt] if system and own is None else prompt

    def _check_message(self, message: Message) -> None:
        role, content = message["role"], message.get("content")
        if role not in ROLES and not any(f"{quote}{role}{quote}" in self.template_source for quote in "'\""):
            raise RowProblem("unknown role", f'has a turn of the role "{role}": roles are {", ".join(ROLES)}')
        if isinstance(content, str):
            self._refuse_control(content)
            if ("<" in content or "[IMG]" in content) and role in ("user", "system"):
                refuse_placeholders(content)

    def _uses(self, variable: str) -> bool:
        return re.search(rf"\b{re.escape(variable)}\b", self.template_source) is not None

    def _refuse_control(self, text: str) -> None:
        if self.control is not None and (found := self.control.search(text)):
            raise RowProblem("control token in text", f"a text holds the control token {found.group()}")


def make_renderer(
    folder: TokenizerFolder,
    added_tokens: list[str],
    *,
    system_prompt: str | None,
    template_kwargs: dict[str, Any],
    now: datetime.datetime,
) -> Renderer:
    """A Renderer for the tokenizer in `folder`; any of its `added_tokens` may be the token that ends a turn.

    `now` is the time that a template reads with strftime_now. Raises UserError where the template does not compile, or where
    the folder has neither a template nor an end-of-sequence token.
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
        template_source=(folder.template or "") + (folder.tool_template or ""),
        completeness=Completeness(chat.render, template_kwargs, ends) if chat else None,
    )


def _split(
    splitter: Splitter, messages: list[Message], tools: Any, kwargs: dict[str, Any]
) -> tuple[RenderedPair, list[Message]]:
    """The texts of a prompt and its two responses, and the messages that were rendered.

    The last two of `messages` are the responses, those before them the prompt. The arguments of tool calls stay text where the
    template writes them so. Else they are parsed, because the template would put a text in quotes.
    """
    if not any("tool_calls" in message for message in messages):
        return splitter.split(messages[:-2], messages[-2:], tools, kwargs), messages
    texts = [text for message in messages for text in argument_texts(message)]
    if texts and (split := _as_they_are(splitter, messages, texts, tools, kwargs)):
        return split, messages
    parsed = [with_parsed_arguments(message) for message in messages]
    try:
        return splitter.split(parsed[:-2], parsed[-2:], tools, kwargs), parsed
    except RowProblem as problem:
        if parsed == messages or problem.reason != "template error":
            raise
    return splitter.split(messages[:-2], messages[-2:], tools, kwargs), parsed  # DeepSeek's needs the arguments as text


def _as_they_are(
    splitter: Splitter, messages: list[Message], arguments: list[str], tools: Any, kwargs: dict[str, Any]
) -> RenderedPair | None:
    """The rendered texts where the template writes `arguments` unquoted; None where it quotes, changes or refuses them."""
    try:
        split = splitter.split(messages[:-2], messages[-2:], tools, kwargs)
    except RowProblem:
        return None
    written = f"{split.prompt}\0{split.chosen}\0{split.rejected}"
    found = ((written.find(text), text) for text in arguments)
    return split if all(at >= 0 and written[at - 1 : at] != '"' for at, _ in found) else None


def _turns(text: Text, role: str) -> list[Message]:
    if isinstance(text, str):
        return [{"role": role, "content": text}]
    if not text:
        raise RowProblem("diverges early", "the two conversations have no turn in common")
    return text


def _answer(text: Text) -> Message:
    """The one assistant message of a response. Raises RowProblem where the response has other turns.

    The loss counts all tokens of a response, so it would also train on the tokens of those turns.
    """
    if isinstance(text, str):
        return {"role": "assistant", "content": text}
    if len(text) != 1 or text[0].get("role") != "assistant":
        roles = ", ".join(str(m.get("role")) for m in text) or "nothing"
        raise RowProblem("diverges early", f"after what the conversations share comes {roles}, where one assistant turn is due")
    return text[0]


def _any_of(tokens: list[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
