"""Bring messages of several conventions to one form: a role under its usual name, and one text as content.

A message may be OpenAI's {role, content} or ShareGPT's {from, value}, with the role names of either. Its content may be a list
of text parts. Tools and tool calls may be JSON text. Images, video and sound are refused by name, because the policy reads only
text.
"""

from __future__ import annotations

import json
from typing import Any

from nemotron_dpo.preferences.problems import RowProblem, describe, wrong_type

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
    "observation": "tool",
}
_MEDIA = ("image", "images", "image_url", "input_image", "video", "videos", "audio", "audios", "input_audio")
_TEXT_PARTS = ("text", "input_text", "output_text")
_TAGS = ("image", "video", "audio", "start_of_image", "image_soft_token")  # the last two are Gemma 3's
_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<IMG_CONTEXT>")  # of Qwen and InternVL
# placeholder -> what closes it where it is markup: Mistral's [IMG] is a forum's, too
_PLACEHOLDERS = {**{f"<{name}>": f"</{name}>" for name in _TAGS}, "[IMG]": "[/IMG]", **dict.fromkeys(_TOKENS)}


def normal_message(message: dict[str, Any], key: str) -> dict[str, Any]:
    """Bring one message of the column `key` to the form {role, content}; `message` holds no nulls and may be changed in place.

    A role whose name is not known stays as it is, because the chat template may know it. Raises RowProblem where the role is
    missing or no string, where a part holds no text, where the message holds media, or where its tool calls are malformed.
    """
    if "role" not in message and "from" in message and "value" in message:
        rest = {name: value for name, value in message.items() if name not in ("from", "value")}
        message = {"role": message["from"], "content": message["value"], **rest}
    role = message.get("role")
    if not isinstance(role, str):
        what = f"is {describe(role)}" if "role" in message else f"is missing in {_fields(message)}"
        raise RowProblem("wrong type", f'holds a message whose "role" {what}', field=key)
    if role not in ROLES:
        message["role"] = _OTHER_NAMES.get(role.lower(), role)
    if isinstance(message.get("content"), list):
        message["content"] = _joined_parts(message["content"], key)
    if len(message) > 2:
        _check_fields(message, key)
    return message


def _fields(message: dict[str, Any]) -> str:
    return "{" + ", ".join(map(str, message)) + "}"


def _check_fields(message: dict[str, Any], key: str) -> None:
    for name in message:
        if name in _MEDIA and carries_content(message[name]):
            raise media(f'holds a message with "{name}"', key)
    if "tool_calls" not in message:
        return
    calls = message.pop("tool_calls")
    calls = from_json_text(calls, "tool_calls") if isinstance(calls, str) else calls
    if calls is not None:
        message["tool_calls"] = calls
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise wrong_type("tool_calls", "a list of objects", calls)


def _joined_parts(parts: list[Any], key: str) -> str:
    """The texts of a message's parts, joined without a separator, as chat templates that support parts write them."""
    return "".join(_part_text(part, key) for part in parts)


def _part_text(part: Any, key: str) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in _MEDIA:
        raise media(f'holds a message with a part of type "{kind}"', key)
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    what = f'of type "{kind}"' if isinstance(kind, str) and kind not in _TEXT_PARTS else f"that is {describe(part)}"
    raise RowProblem("wrong type", f"holds a message with a part {what}, where parts with a text are due", field=key)


def media(where: str, key: str | None = None) -> RowProblem:
    """The problem of a row that holds images, video or sound; `where` says where in the row."""
    return RowProblem("images or sound", f"{where}, and the policy reads text alone", field=key)


def refuse_placeholders(text: str) -> None:
    """Raise RowProblem where `text` has a placeholder such as <image>: its data set had media that the row no longer holds.

    A text that also has the closing tag, such as </video> or [/IMG], is taken for markup and passes.
    """
    for placeholder, closing in _PLACEHOLDERS.items():
        if placeholder in text and (closing is None or closing not in text):
            raise media(f"a text of the prompt asks to look at {placeholder}")


def carries_content(value: object) -> bool:
    """True where `value` has content: it is neither null nor an empty text, nor a list or object of such values alone."""
    if isinstance(value, dict):
        return any(map(carries_content, value.values()))
    if isinstance(value, list | tuple):
        return any(map(carries_content, value))
    return value is not None and value != ""


def read_tools(value: Any) -> list[Any] | None:
    """The tools of a row as a list of objects; None where there are none.

    The list and each tool in it may be given as JSON text. Raises RowProblem where `value` is anything else.
    """
    tools = from_json_text(value, "tools") if isinstance(value, str) else value
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise wrong_type("tools", "a list", tools)
    tools = [from_json_text(tool, "tools") if isinstance(tool, str) else tool for tool in tools]
    for tool in tools:
        if not isinstance(tool, dict):
            raise RowProblem("wrong type", f"holds {describe(tool)} where each tool is an object", field="tools")
    return tools or None


def messages_of_json_text(value: Any) -> Any:
    """The messages that `value` holds as JSON text, or `value` itself where it holds none.

    `value` may be the JSON text of one message, that of a list of messages, or a list of such texts. Tables whose columns hold
    only strings store conversations in this form.
    """
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        found = [messages_of_json_text(item) for item in value]
        return found if all(isinstance(item, dict) for item in found) else value
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(isinstance(turn, dict) and _is_message(turn) for turn in turns) else value


def _is_message(turn: dict[str, Any]) -> bool:
    return {"role", "content"} <= turn.keys() or {"role", "tool_calls"} <= turn.keys() or {"from", "value"} <= turn.keys()


def from_json_text(text: str, field: str) -> Any:
    """The value that the JSON text `text` encodes; None for a blank text. Raises RowProblem where `text` is no JSON."""
    if not text.strip():
        return None
    try:
        return json.loads(text)  # not orjson, which rounds integers of more than 64 bits
    except (ValueError, RecursionError):
        raise RowProblem("wrong type", "is a string that is no JSON text", field=field) from None


def with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """`message` with the arguments of its tool calls parsed, where they are the JSON text of an object.

    Chat templates print the arguments as JSON, so they would print a text as a string in quotes. A text that is no JSON object
    stays as it is. Raises RowProblem where one object in the arguments has a key twice.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_parsed_call(call) for call in calls]}


def _parsed_call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _parsed_call(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError):
        return call
    return {**call, "arguments": parsed} if isinstance(parsed, dict) else call


def _without_repeated_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(items)
    if len(whole) < len(items):
        raise RowProblem("repeated key", "hold a key twice in one object", field="arguments")
    return whole


def argument_texts(message: dict[str, Any]) -> list[str]:
    """The arguments of the tool calls in `message`, of those calls whose arguments are text."""
    calls = message.get("tool_calls")
    called = [call.get("function", call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    found = [function.get("arguments") for function in called if isinstance(function, dict)]
    return [arguments for arguments in found if isinstance(arguments, str)]
