"""Skeletons are used only where they cannot differ from running the template."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dpo.preferences.chat_template import compile_template
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.skeletons import only_prints_contents, remember
from support.chat_templates import CHATML, GEMMA, MISTRAL, PHI3, REWRITING, ZEPHYR

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PRINTING = {"chatml": CHATML, "zephyr": ZEPHYR, "mistral": MISTRAL, "phi3": PHI3}
LOOP = "{% for message in messages %}BODY{% endfor %}"
LOOKING = {
    "gemma trims": GEMMA,
    "asks for the last": REWRITING,
    "tests": LOOP.replace("BODY", "{% if message.content %}a{% endif %}"),
    "compares": LOOP.replace("BODY", "{{ message.content == 'a' }}"),
    "searches": LOOP.replace("BODY", "{{ 'a' in message.content }}"),
    "filters": LOOP.replace("BODY", "{{ message.content | trim }}"),
    "calls": LOOP.replace("BODY", "{{ message.content.strip() }}"),
    "slices": LOOP.replace("BODY", "{{ message.content[1:] }}"),
    "sets": LOOP.replace("BODY", "{% set x = message.content %}{{ x }}"),
    "hands on the message": LOOP.replace("BODY", "{{ message }}"),
    "computed key": LOOP.replace("BODY", "{{ message['con' + 'tent'] | length }}"),
    "variable key": LOOP.replace("BODY", "{% if message[key] %}a{% endif %}"),
    "other columns": LOOP.replace("BODY", "{% if message.tool_calls %}a{% endif %}"),
    "the list": "{{ messages }}",
    "the list in a test": "{% if messages[0].content == 'a' %}a{% endif %}",
    "two steps": "{% for m in messages %}{% for c in m.content %}{{ c }}-{% endfor %}{% endfor %}",
    "filtered loop": "{% for m in messages if m.content %}{{ m.content }}{% endfor %}",
    "neighbours": LOOP.replace("BODY", "{{ loop.previtem }}"),
    "changed": LOOP.replace("BODY", "{{ loop.changed(message.content) }}"),
    "shadowed": "{% for loop in messages %}{{ loop.content | length }}{% endfor %}",
    "generation tag": LOOP.replace("BODY", "{% generation %}{{ message.content }}{% endgeneration %}"),
    "macro": "{% macro f(x) %}{{ x }}{% endmacro %}" + LOOP.replace("BODY", "{{ f(message.content) }}"),
    "product": LOOP.replace("BODY", "{{ message.content % 3 }}"),
    "printed in a call": LOOP.replace("BODY", "{{ raise_exception(message.content) }}"),
}


@pytest.mark.parametrize("source", PRINTING.values(), ids=PRINTING)
def test_templates_that_only_print(source: str) -> None:
    assert only_prints_contents(source)


@pytest.mark.parametrize("source", LOOKING.values(), ids=LOOKING)
def test_templates_that_look_are_run(source: str) -> None:
    assert not only_prints_contents(source)


@pytest.mark.parametrize("source", PRINTING.values(), ids=PRINTING)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system"]),
                "content": st.text(st.characters(codec="utf-8"), max_size=8)
                | st.sampled_from(["\x000\x00", "\x001\x00", "{{ a }}"]),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    generate=st.booleans(),
)
def test_skeletons_give_the_same_text(source: str, messages: list[dict[str, str]], generate: bool) -> None:
    render = compile_template(source, "t", TOKENS, datetime.datetime(2026, 1, 31))
    quick = remember(render, source)
    assert quick is not render
    try:
        expected = render(messages, generate)
    except RowProblem:
        with pytest.raises(RowProblem):
            quick(messages, generate)
        return
    assert quick(messages, generate) == expected == quick(messages, generate)
