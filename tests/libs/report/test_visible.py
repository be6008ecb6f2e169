"""Text from outside as it is shown."""

from __future__ import annotations

from nemotron_dpo.report.markdown import _fenced, _safe
from nemotron_dpo.report.sparkline import sparkline
from nemotron_dpo.report.visible import number, percent, shortened, visible


def test_what_would_act_is_spelled_out() -> None:
    for text, shown in (
        ("plain \u00e9 \u4e2d \U0001f600", "plain \u00e9 \u4e2d \U0001f600"),
        ("a\u202eb\u202c", "a<U+202E>b<U+202C>"),
        ("\x1b[2J\x00\x9b", "<U+001B>[2J<U+0000><U+009B>"),
        ("a\u200bb\ufeff\u2066\U000e0041", "a<U+200B>b<U+FEFF><U+2066><U+E0041>"),
        ("one\r\ntwo\tthree\rfour", "one two three<U+000D>four"),
        ("\ud800", "<U+D800>"),
    ):
        assert visible(text) == shown
    assert visible("one\r\n\ttwo", lines=True) == "one\n\ttwo"


def test_long_texts_say_how_much_is_left_out() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("a" * 1_000_000, 2) == "aa ... [999,998 more characters]"


def test_numbers() -> None:
    for value, shown in ((None, "-"), (float("nan"), "-"), (0.0, "0"), (0.69314, "0.6931"), (-17.374, "-17.37"), (8658.2, "8,658"), (2.5e-7, "2.5e-07"), (1.5e6, "1.5e+06")):  # fmt: skip
        assert number(value) == shown
    for share, shown in (
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.5, "50 %"),
        (0.9996, ">99.9 %"),
        (0.996, "99.6 %"),
        (0.0002, "<0.1 %"),
    ):
        assert percent(share) == shown


def test_sparklines() -> None:
    for values, bars in (
        ([0, 1], "\u2581\u2588"),
        ([1, 1, 1], "\u2581" * 3),
        ([], ""),
        ([float("nan"), 2], "\u2581"),
        ([0, 7, 3.5], "\u2581\u2588\u2585"),
    ):
        assert sparkline(values) == bars
    assert sparkline(list(range(800)), 8) == "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    assert sparkline([1, 10, 100], log=True) == "\u2581\u2585\u2588"


def test_markdown_of_others_is_text() -> None:
    assert _safe("<b>*a*_[x](http://y)|`") == "&lt;b&gt;\\*a\\*\\_\\[x\\](http:\u200b//y)\\|\\`"
    assert _fenced("a\n````\nb").split("\n") == ["`````", "a", "````", "b", "`````"]
