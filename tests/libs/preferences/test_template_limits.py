"""A template that would compute or write without end is refused by the row; what templates do stays as it is."""

from __future__ import annotations

import datetime

import pytest

from nemotron_dpo.preferences import template_limits
from nemotron_dpo.preferences.chat_template import compile_template
from nemotron_dpo.preferences.problems import RowProblem

NOON = datetime.datetime(2026, 1, 2, 12)
LARGE = [
    "{{ 'A' * 10**10 }}",
    "{{ 10**10 * 'A' }}",
    "{{ [1] * 10**10 }}",
    "{{ 10**(10**9) }}",
    "{{ (10**999) * (10**999) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.center(10**10) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'|center(width=10**10) }}",
    "{{ 'a\\nb'|indent(10**10) }}",
    "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6).join(['b'] * 10**6) }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for i in range(10**5) %}{{ 'a' * 10**6 }}{% endfor %}",
]


def _render(source: str, **values: object) -> str:
    return compile_template(source, "t", {}, NOON)([], False, **values)


def test_what_is_beyond_all_bounds_is_refused_at_once():
    for source in LARGE:
        with pytest.raises(RowProblem, match="the chat template") as refused:
            _render(source)
        assert refused.value.reason == "template error", source
        assert "computes for more than" not in str(refused.value), source
    with pytest.raises(RowProblem, match="undefined"):
        _render("{{ lipsum(10**9) }}")


def test_what_computes_without_end_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    endless = "{% for a in range(10**5) %}{% for b in range(10**5) %}{% if b < 0 %}x{% endif %}{% endfor %}{% endfor %}"
    for _ in range(2):
        with pytest.raises(RowProblem, match="the chat template computes for more than 0 s"):
            _render(endless)
        assert _render("{{ 'a' * 3 }}") == "aaa"


def test_what_templates_do_stays():
    cases = {
        "{{ 2 ** 10 }} {{ 3 * 4 }} {{ 'ab' * 2 }} {{ '%s-%02d' % ('a', 3) }} {{ 1 + 2 }} {{ 'a' + 'b' }} {{ 7 % 4 }}": "1024 12 abab a-03 3 ab 3",
        "{{ 'a'.ljust(3) }}|{{ 'a'|center(3) }}|{{ 'a\nb'|indent(2) }}|{{ 'aXb'|replace('X', '-') }}|{{ '%d'|format(3) }}": "a  | a |a\n  b|a-b|3",
        "{{ '{} {x}'.format(1, x=2) }} {{ ', '.join(['a', 'b']) }} {{ 'aXb'.replace('X', '') }}": "1 2 a, b ab",
    }
    for source, text in cases.items():
        assert _render(source) == text
