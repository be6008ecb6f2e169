"""A text that a chat template leaves out is an error with its first words, or said where templates do so by design."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemotron_dpo.preferences.tokenize_chunk import Result
from support.chat_templates import CHATML, GEMMA, PHI3
from support.preference_rows import only_pair, tokenize
from support.small_tokenizers import byte_level, save

TURN = "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template(body: str = "{% set c = m.content %}", front: str = "", turn: str = TURN, header: str = HEADER) -> str:
    """ChatML that does `body` to each message `m` before it writes its text `c`."""
    return f"{front}{{% for m in messages %}}{body}{turn}{{% endfor %}}{header}"


def thoughts(condition: str) -> str:
    body = f"{{% set c = m.content %}}{{% if m.role == 'assistant' and '</think>' in c and {condition} %}}"
    return template(body + "{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}")


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Which river runs through Paris?"}
TOLD = {"role": "assistant", "content": "<think>\nParis.\n</think>\n\nThe Seine."}
MORE = {"role": "user", "content": "And Rome?"}
ANSWERS = {"chosen": "The Tiber.", "rejected": "The Danube."}
THOUGHT = {"chosen": "<think>\nHm.\n</think>\n\n4", "rejected": "<think>\nUm.\n</think>\n\n4"}
TOOL = {
    "function": {
        "name": "weather",
        "description": "Tells how warm it is.",
        "parameters": {"properties": {"town": {"type": "string"}}},
    }
}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"town": "Rome"}}}]}
RESULT = {"role": "tool", "content": '{"degrees": 20}'}
OF_USERS = "{% set c = X if m.role == 'user' else m.content %}"
BIG = 123456789012345678901234567890  # more than 64 bits
WRITES_CALLS = template("{% set c = (m.content or '') + (m.tool_calls | tojson if m.tool_calls else '') %}")
WRITES_TOOLS = template(front="{{ tools | tojson if tools else '' }}")

# name -> (template, row, what the message says is missing)
LEFT_OUT: dict[str, tuple[str, dict[str, Any], str]] = {
    "system": (PHI3, {"prompt": [SYSTEM, USER], **ANSWERS}, 'turn 1 (system): "Be brief."'),
    "a system text that the template itself has": (
        PHI3, {"prompt": [{"role": "system", "content": "end"}, USER], **ANSWERS}, 'turn 1 (system): "end"',
    ),
    "a system text that the user repeats": (
        PHI3, {"prompt": [{**USER, "role": "system"}, USER], **ANSWERS}, 'turn 1 (system): "Which river runs through Paris?"',
    ),
    "capitals": (
        template(OF_USERS.replace("X", "m.content | upper")), {"prompt": "Say a.", **ANSWERS}, 'turn 1 (user): "Say a."',
    ),
    "an end": (
        template(OF_USERS.replace("X", "m.content[:9]")), {"prompt": "one two three", **ANSWERS},
        'turn 1 (user): "three"',
    ),
    "spaces within": (
        template(OF_USERS.replace("X", "m.content.split() | join(' ')")), {"prompt": "a\n\nb", **ANSWERS}, 'turn 1 (user): "b"',
    ),
    "an earlier answer": (
        template("{% set c = m.content if m.role == 'user' or loop.last else '' %}"),
        {"prompt": [USER, TOLD, MORE], **ANSWERS}, 'turn 2 (assistant): "<think> Paris. </think> The Seine."',
    ),
    "the response's thought": (thoughts("true"), {"prompt": "2+2?", **THOUGHT}, 'the response: "<think> Hm. </think> 4"'),
    "words before a thought": (
        thoughts("true"), {"prompt": "a", "chosen": "Well. <think>b</think>c", "rejected": "d"},
        'the response: "Well. <think>b</think>c"',
    ),
    "a reasoning field": (
        CHATML, {"prompt": "a", "chosen": [{**TOLD, "reasoning_content": "Hm, hm."}], "rejected": "b"},
        '"reasoning_content" of the response: "Hm, hm."',
    ),
    "tools": (CHATML, {"prompt": "a", "tools": [TOOL], **ANSWERS}, 'the tool "weather": "weather"'),
    "a parameter": (
        template(front="{{ tools[0].function.name + tools[0].function.description if tools else '' }}"),
        {"prompt": "a", "tools": [TOOL], **ANSWERS}, 'the tool "weather": "town"',
    ),
    "an older kind of call": (
        CHATML, {"prompt": "a", "chosen": [{**TOLD, "function_call": {"name": "weather", "arguments": "{}"}}], "rejected": "b"},
        '"function_call" of the response: "weather"',
    ),
    "a call": (CHATML, {"prompt": "a", "chosen": [CALL], "rejected": "b"}, '"tool_calls" of the response: "weather"'),
    "a past call": (CHATML, {"prompt": [USER, CALL, RESULT], **ANSWERS}, '"tool_calls" of turn 2 (assistant): "weather"'),
    "an argument": (
        template("{% set c = (m.content or '') + (m.tool_calls[0].function.name if m.tool_calls else '') %}"),
        {"prompt": "a", "chosen": [CALL], "rejected": "b"}, '"tool_calls" of the response: "town"',
    ),
    "a result": (
        template("{% set c = '' if m.role == 'tool' else m.content + (m.tool_calls | string if m.tool_calls else '') %}"),
        {"prompt": [USER, CALL, RESULT], **ANSWERS}, 'turn 3 (tool): "{"degrees": 20}"',
    ),
}  # fmt: skip

CUT, PAST, BESIDE, ORDER = (
    "white space at the ends of texts changed", "reasoning of past turns left out", "text beside past calls of tools left out",
    "/think or /no_think taken out",
)  # fmt: skip
MARKED = template("{% set c = m.content | replace('/no_think', '') %}")
SAID: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "nothing": (CHATML, {"prompt": [SYSTEM, USER, TOLD, MORE], "chosen": " The Tiber.\n", "rejected": "\n"}, set()),
    "white space of a prompt": (GEMMA, {"prompt": "a ", **ANSWERS}, {CUT}),
    "white space of a response": (GEMMA, {"prompt": "a", "chosen": " b", "rejected": "c"}, {CUT}),
    "no white space": (GEMMA, {"prompt": "a", **ANSWERS}, set()),
    "a past thought": (thoughts("not loop.last"), {"prompt": [USER, TOLD, MORE], **THOUGHT}, {PAST}),
    "a past thought without its opening": (
        thoughts("not loop.last"), {"prompt": [USER, {**TOLD, "content": "Paris.</think>Seine."}, MORE], **ANSWERS}, {PAST},
    ),
    "a past reasoning field": (CHATML, {"prompt": [USER, {**TOLD, "reasoning": "Hm."}, MORE], **ANSWERS}, {PAST}),
    "a field that is no text": (CHATML, {"prompt": [{**USER, "weight": 1}], **ANSWERS}, set()),
    "another field": (CHATML, {"prompt": [{**USER, "mood": "merry"}], **ANSWERS}, {'field "mood" of messages not read'}),
    "talk beside a past call": (
        template("{% set c = m.tool_calls | tojson if m.tool_calls else m.content %}"),
        {"prompt": [USER, {**CALL, "content": "Let me look."}, RESULT], **ANSWERS}, {BESIDE},
    ),
    "a result as a JSON string": (
        template("{% set c = m.content | tojson if m.role == 'tool' else m.content + (m.tool_calls | string or '') %}"),
        {"prompt": [USER, CALL, RESULT], **ANSWERS}, set(),
    ),
    "an order to think": (MARKED, {"prompt": "2+2? /no_think", **ANSWERS}, {ORDER}),
    "a thought written anew": (
        template("{% set c = m.content | replace('\n', '') %}"), {"prompt": "a", **THOUGHT}, {CUT},
    ),
    "a thought that the prompt opens": (
        template(
            "{% set c = m.content | replace('<think>', '') if not loop.last else m.content %}",
            header="{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        ),
        {"prompt": "a", **THOUGHT}, set(),
    ),
    "the system text in the last user's turn": (
        "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' }}{% if loop.index0 == 2 and "
        "messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
        "{% endfor %}" + HEADER,
        {"prompt": [SYSTEM, USER, {**TOLD, "content": "Seine."}, MORE], **ANSWERS}, set(),
    ),
    "tools": (WRITES_TOOLS, {"prompt": "a", "tools": [TOOL], **ANSWERS}, set()),
    "a variable that the template has not": (
        CHATML, {"prompt": "a", **ANSWERS, "chat_template_kwargs": {"enable_thinking": False}},
        {'template variable "enable_thinking" not used'},
    ),
    # what the template changed in one turn stands unchanged in a later one
    "a past thought that is said again": (
        thoughts("not loop.last"),
        {"prompt": [USER, {**TOLD, "content": "</think>"}, {**MORE, "content": "</think>"}], **ANSWERS}, {PAST},
    ),
    "a thought and an answer that are said again": (
        thoughts("not loop.last"),
        {"prompt": [USER, {**TOLD, "content": "a</think>b"}, {**MORE, "content": "a </think> b"}], **ANSWERS}, {PAST},
    ),
    "an order that is said again": (
        template("{% set c = m.content | replace('/no_think', '') if loop.first else m.content %}"),
        {"prompt": [{**USER, "content": "2+2? /no_think"}, TOLD, {**MORE, "content": "/no_think"}], **ANSWERS}, {ORDER},
    ),
    "white space before what is said again": (
        template("{% set c = m.content | trim if loop.first else m.content %}"),
        {"prompt": [{**USER, "content": "Rome?\n"}, TOLD, {**MORE, "content": "Rome?\n"}], **ANSWERS}, {CUT},
    ),
    "a result that is said again": (
        template("{% set c = m.content | tojson if m.role == 'tool' else m.content + (m.tool_calls | string or '') %}"),
        {"prompt": [USER, CALL, RESULT, TOLD, {**MORE, "content": RESULT["content"]}], **ANSWERS}, set(),
    ),
    "a text that is continued": (GEMMA, {"prompt": [USER, {**TOLD, "content": "The "}], **ANSWERS}, set()),
}  # fmt: skip


def run(folder: Path, chat_template: str, row: dict[str, Any], **settings: Any) -> Result:
    bos = "<s>" if chat_template is GEMMA else None
    end = "<|end|>" if chat_template is PHI3 else "<|im_end|>"
    return tokenize(save(folder, byte_level(), chat_template=chat_template, bos_token=bos, eos_token=end), row, **settings)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    for name, (chat_template, row, missing) in LEFT_OUT.items():
        result = run(tmp_path, chat_template, row)
        (reject,) = result.rejects
        assert (reject.reason, reject.drop) == ("text left out", False), name
        where, words = missing.split(": ", 1)
        assert reject.message.startswith(f"the chat template does not write all of {where}: {words} is missing: "), reject
        assert not result.notes, name


def test_what_templates_do_by_design_is_counted(tmp_path: Path) -> None:
    for name, (chat_template, row, said) in SAID.items():
        result = run(tmp_path, chat_template, row)
        assert not result.rejects, (name, result.rejects)
        assert result.notes == {("changed_by_template", what): 1 for what in said}, name


def test_a_system_prompt_of_the_run_that_the_template_ignores_is_an_error(tmp_path: Path) -> None:
    (reject,) = run(tmp_path, PHI3, {"prompt": "a", **ANSWERS}, system_prompt="Be brief.").rejects
    assert reject.reason == "text left out"


def test_arguments_are_objects_to_the_template_or_text_if_it_wants_text(tmp_path: Path) -> None:
    """OpenAI writes arguments as JSON text. Most templates print them as JSON; DeepSeek's joins them to its own text."""
    as_text = template("{% set c = 'call ' + m.tool_calls[0].function.arguments if m.tool_calls else m.content %}")
    expected = {
        WRITES_CALLS: f'[{{"function": {{"name": "weather", "arguments": {{"town": "Rome", "id": {BIG}}}}}}}]',
        as_text.replace("arguments", "name + m.tool_calls[0].function.arguments"): (
            f'call weather{{"town":"Rome","id":{BIG}}}'
        ),
    }
    given = f'{{"town":"Rome","id":{BIG}}}'
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": given}}]}
    for chat_template, text in expected.items():
        folder = save(tmp_path, byte_level(), chat_template=chat_template, eos_token="<|im_end|>")
        for chosen in (call, {**call, "tool_calls": json.dumps(call["tool_calls"])}):
            pair = only_pair(folder, {"prompt": "a", "chosen": [chosen], "rejected": "b"})
            assert byte_level().decode(pair["chosen_ids"], skip_special_tokens=False) == text + "<|im_end|>"


def test_arguments_stay_text_where_the_template_writes_text_as_it_is(tmp_path: Path) -> None:
    """Qwen3's template asks whether they are a string; so spaces, escapes and numbers are what transformers makes of them."""
    either = "{% set a = m.tool_calls[0].function.arguments if m.tool_calls else '' %}"
    either += "{% set c = ('weather' if m.tool_calls else '') + (a if a is string else a | tojson) + m.content %}"
    for given in ('{"town":  "Rome"}', '{"n": 1e3, "t": "\\u00e9"}', "{}"):
        call = {**CALL, "tool_calls": [{"function": {"name": "weather", "arguments": given}}]}
        folder = save(tmp_path, byte_level(), chat_template=template(either), eos_token="<|im_end|>")
        pair = only_pair(folder, {"prompt": "a", "chosen": [call], "rejected": "b"})
        assert byte_level().decode(pair["chosen_ids"], skip_special_tokens=False) == f"weather{given}<|im_end|>"


def test_arguments_that_would_lose_a_value_are_an_error(tmp_path: Path) -> None:
    twice = {**CALL, "tool_calls": [{"function": {"name": "weather", "arguments": '{"town": "Rome", "town": "Oslo"}'}}]}
    (reject,) = run(tmp_path, WRITES_CALLS, {"prompt": "a", "chosen": [twice], "rejected": "b"}).rejects
    assert (reject.reason, reject.field) == ("repeated key", "arguments")


def test_rejected_arguments_that_are_no_json_stay_as_they_are(tmp_path: Path) -> None:
    broken = {**CALL, "tool_calls": [{"function": {"name": "weather", "arguments": '{"town": '}}]}
    folder = save(tmp_path, byte_level(), chat_template=WRITES_CALLS, eos_token="<|im_end|>")
    pair = only_pair(folder, {"prompt": "a", "chosen": [CALL], "rejected": [broken]})
    assert '"arguments": "{\\"town\\": "' in byte_level().decode(pair["rejected_ids"])


def test_a_variable_may_not_stand_in_for_the_row(tmp_path: Path) -> None:
    row = {"prompt": "a", **ANSWERS, "chat_template_kwargs": {"tools": [TOOL]}}
    (reject,) = run(tmp_path, WRITES_TOOLS, row).rejects
    assert (reject.reason, reject.field, reject.message) == ("wrong type", "chat_template_kwargs", "sets tools")


def test_without_a_template_tools_and_variables_are_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(), eos_token="</s>")
    for extra in ({"tools": [TOOL]}, {"chat_template_kwargs": {"a": 1}}):
        (reject,) = tokenize(folder, {"prompt": "a", **ANSWERS, **extra}).rejects
        assert reject.reason == "no chat template"
