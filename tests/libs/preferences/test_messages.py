"""Messages, tools and columns of other layouts: understood as their users mean them, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.preferences.beside import Beside
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.row_formats import Keys, read_row, recognise
from nemotron_dpo.preferences.tokenize_chunk import parse
from support.chat_templates import CHATML
from support.preference_rows import tokenize
from support.small_tokenizers import byte_level, save

USER, GOOD, BAD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
PAIR: dict[str, Any] = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
KEYS = Keys()
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def read(row: dict[str, Any], keys: Keys = KEYS) -> Any:
    return read_row(row, recognise(row, keys), keys)


def test_layouts_of_others_are_the_same_pair() -> None:
    parts = [{"type": "text", "text": "q"}]
    sharegpt = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}
    layouts: list[tuple[dict[str, Any], Keys]] = [
        ({**PAIR, "prompt": [{"role": "user", "content": parts}]}, Keys()),
        ({**PAIR, "prompt": [{"role": "user", "content": [{"text": ""}, {"type": "input_text", "text": "q"}]}]}, Keys()),
        ({**PAIR, "prompt": [{"role": "Human", "content": "q"}], "chosen": [{"role": "Assistant", "content": "a"}]}, Keys()),
        ({**sharegpt, "rejected": {"from": "gpt", "value": "b"}}, Keys()),
        ({**sharegpt, "rejected": {"from": "gpt", "value": "b"}}, Keys(prompt="conversations")),
        ({"chosen": [USER, GOOD], "rejected": [{"role": "prompter", "content": "q"}, {"role": "bot", "content": "b"}]}, Keys()),
    ]
    for row, keys in layouts:
        preference = read(row, keys)
        assert (preference.prompt, preference.chosen, preference.rejected) == ([USER], [GOOD], [BAD]), row
        assert preference.beside == Beside(), row


def test_messages_as_json_text() -> None:
    """As tables have them whose columns hold one type; what only looks like JSON is the text that it is."""
    every = ("prompt", "chosen", "rejected")
    text = {name: json.dumps(PAIR[name]) for name in every}
    whole = {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])}
    rows: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        (text, every),
        ({name: [json.dumps(message) for message in PAIR[name]] for name in every}, every),
        ({**PAIR, "chosen": json.dumps(GOOD)}, ("chosen",)),
        (whole, ("chosen", "rejected")),
        (PAIR, ()),
    ]
    for row, named in rows:
        preference = read(row)
        assert (preference.prompt, preference.chosen, preference.rejected) == ([USER], [GOOD], [BAD]), row
        assert preference.beside == Beside(of_json_text=named), row
    for content in ('{"a": 1}', "[1, 2] is it?", '["x"]', "{}", "[]", '[{"role": "user"}]', '{"role": "user", "content": '):
        assert read({"prompt": content, "chosen": "a", "rejected": "b"}).prompt == content


def test_parts_are_joined_as_templates_that_know_of_parts_do() -> None:
    """`{% for part in content %}{{ part.text }}{% endfor %}`: one after the other, nothing in between."""
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert read({**PAIR, "prompt": [{"role": "user", "content": parts}]}).prompt == [{"role": "user", "content": "one two"}]


def test_tools_as_json_text() -> None:
    forms: list[tuple[Any, Any]] = [
        (TOOLS, TOOLS), (json.dumps(TOOLS), TOOLS), ([json.dumps(TOOLS[0])], TOOLS),
        (None, None), ([], None), ("", None), ("[]", None), ("null", None),
    ]  # fmt: skip
    for given, tools in forms:
        assert read({**PAIR, "tools": given}).tools == tools, given


SOUND = ("images or sound", "and the policy reads text alone")
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "an image part": ({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}, SOUND),
    "an audio part": ({"prompt": [{"role": "user", "content": [{"type": "input_audio"}]}]}, SOUND),
    "images in a message": ({"prompt": [{**USER, "images": ["a.png"]}]}, SOUND),
    "an image column": ({"images": ["a.png"]}, SOUND),
    "a decoded image": ({"image": {"bytes": b"\x89PNG", "path": None}}, SOUND),
    "another part": (
        {"chosen": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}]}]},
        ("wrong type", 'holds a message with a part of type "thinking", where parts with a text are due'),
    ),
    "a part that is a text": (
        {"prompt": [{"role": "user", "content": ["q"]}]},
        ("wrong type", "holds a message with a part that is a string, where parts with a text are due"),
    ),
    "no role": ({"prompt": [{"speaker": "x", "text": "q"}]}, ("wrong type", '"role" is missing in {speaker, text}')),
    "half of ShareGPT": ({"prompt": [{"from": "human"}]}, ("wrong type", '"role" is missing in {from}')),
    "a role that is a number": ({"prompt": [{**USER, "role": 1}]}, ("wrong type", 'whose "role" is a number')),
    "tools that are no JSON": ({"tools": "a tool"}, ("wrong type", "is a string that is no JSON text")),
    "tools that are no list": ({"tools": '{"name": "f"}'}, ("wrong type", "is an object where a list is due")),
    "a tool that is no object": ({"tools": ["7"]}, ("wrong type", "holds a number where each tool is an object")),
    "calls that are no list": (
        {"chosen": [{**GOOD, "tool_calls": {"name": "f"}}]},
        ("wrong type", "is an object where a list of objects is due"),
    ),
    "calls that are no JSON": ({"chosen": [{**GOOD, "tool_calls": "f()"}]}, ("wrong type", "is a string that is no JSON text")),
}


def test_what_is_not_understood_is_named() -> None:
    for name, (change, (reason, words)) in REFUSED.items():
        with pytest.raises(RowProblem) as caught:
            read({**PAIR, **change})
        assert (caught.value.reason, words in caught.value.message) == (reason, True), (name, caught.value.message)


def test_columns_beside_the_pair() -> None:
    alpaca = {"instruction": "Add.", "chosen": "4", "rejected": "5"}
    instruction = Keys(prompt="instruction")
    cases: list[tuple[dict[str, Any], Keys, Any, Beside]] = [
        ({**PAIR, "id": 7, "source": "web"}, Keys(), [USER], Beside(unread=("id", "source"))),
        ({**PAIR, "images": [], "image": {"bytes": None}, "note": "", "tools": None}, Keys(), [USER], Beside()),
        ({**PAIR, "system": "Be brief."}, Keys(), [USER], Beside("Be brief.", ("system",))),
        ({**PAIR, "system": ["Be", "brief"]}, Keys(), [USER], Beside(unread=("system",))),
        ({**alpaca, "input": "2+2"}, instruction, "Add.\n2+2", Beside(read=("input",))),
        ({**alpaca, "input": ""}, instruction, "Add.", Beside()),
        ({**alpaca, "input": 4}, instruction, "Add.", Beside(unread=("input",))),
        ({**PAIR, "input": "2+2"}, Keys(), [USER], Beside(unread=("input",))),
        ({**PAIR, "conversations": [USER]}, Keys(), [USER], Beside(unread=("conversations",))),
    ]
    for row, keys, prompt, beside in cases:
        preference = read(row, keys)
        assert (preference.prompt, preference.beside) == (prompt, beside), row
    ranked = {"context": "q", "completions": [{"rank": i, "completion": t} for i, t in enumerate("ab")], "prompt_id": "x"}
    assert read(ranked).beside == Beside(unread=("prompt_id",))


def test_two_values_of_one_name_are_an_error() -> None:
    once = b'{"prompt": "say \\"chosen\\"", "chosen": {"chosen": "chosen"}, "rejected": "b"}'
    assert parse(once, 1 << 20)["rejected"] == "b"
    for twice in (
        b'{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}',
        b'{"chosen": [{"role": "user", "chosen": "a", "chosen": "b"}], "rejected": "b"}',
    ):
        with pytest.raises(RowProblem) as caught:
            parse(twice, 1 << 20)
        assert (caught.value.reason, caught.value.field) == ("repeated key", "chosen")


def test_no_row_of_any_json_is_a_traceback(tmp_path: Path) -> None:
    """Each odd value in each place: a pair, or an error of the row."""
    template = CHATML.replace("message['content']", "(message.content or '') + (message.tool_calls | string)")
    folder = save(tmp_path, byte_level(), chat_template="{{ tools or '' }}" + template, eos_token="<|im_end|>")
    deep: Any = "end"
    for _ in range(240):
        deep = [deep]
    odd = [
        None,
        True,
        7,
        "",
        "text",
        [],
        [None],
        ["x"],
        [[]],
        {},
        {"a": 1},
        [{"function": 1}],
        [{"function": {"name": 1}}],
        deep,
    ]
    rows = [{**PAIR, name: value} for name in ("tools", "system", "conversations", "extra", "prompt") for value in odd]
    for name in ("content", "role", "tool_calls", "reasoning_content", "images", "extra"):
        for column in ("prompt", "chosen"):
            rows += [{**PAIR, column: [{**PAIR[column][0], name: value}]} for value in odd]
    rows += [{**PAIR, "chosen": [{**GOOD, "tool_calls": [{"name": "f", "arguments": value}]}]} for value in odd]
    rows += [{**PAIR, "tools": [{"name": "f", "parameters": {"properties": value}}]} for value in odd]
    result = tokenize(folder, *rows, row_format="pair")
    assert len(result.facts) + len(result.rejects) == len(rows)
    assert len(result.facts) > 50
    assert {r.reason for r in result.rejects} >= {"wrong type", "unknown role", "images or sound"}
    repeated = b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b', "chosen": "a", "rejected": "b", "chosen": "c"}'
    with pytest.raises(RowProblem):
        parse(repeated, 1 << 20)
