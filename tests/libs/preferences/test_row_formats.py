"""Every row format to a prompt and two responses."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.problems import RowProblem, Unreadable
from nemotron_dpo.preferences.recognition import with_row_formats
from nemotron_dpo.preferences.row_formats import Keys, read_row, recognise

USER, MORE = {"role": "user", "content": "q"}, {"role": "user", "content": "more"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}


def ranked(*ranks: float) -> dict[str, Any]:
    texts = [[BAD], [GOOD], [USER]]
    return {"context": [USER], "completions": [{"rank": r, "completion": t} for r, t in zip(ranks, texts, strict=False)]}


def helpsteer3(preference: object) -> dict[str, Any]:
    return {"context": [USER], "response1": "one", "response2": "two", "overall_preference": preference}


CONVERSATION = {"chosen": [USER, BAD, MORE, GOOD], "rejected": [USER, BAD, MORE, BAD]}
TRANSCRIPT = {
    "chosen": "\n\nHuman: q\n\nAssistant: bad\n\nHuman: more\n\nAssistant: good",
    "rejected": "\n\nHuman: q\n\nAssistant: bad\n\nHuman: more\n\nAssistant: bad",
}
READ = {
    "strings": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "pair", "q", "good", "bad"),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "pair", [USER], [GOOD], [BAD]),
    "one message": ({"prompt": USER, "chosen": GOOD, "rejected": "bad"}, "pair", [USER], [GOOD], "bad"),
    "prompt text beside conversations": (
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "pair", [USER], [GOOD], [BAD],
    ),
    "prompt turns beside conversations": (
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        "pair", [SYSTEM, USER], [GOOD], [BAD],
    ),
    "prompt transcript": (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"}, "pair", [USER], "good", "bad",
    ),
    "conversation": (CONVERSATION, "conversation", [USER, BAD, MORE], [GOOD], [BAD]),
    "transcript": (TRANSCRIPT, "transcript", [USER, BAD, MORE], [GOOD], [BAD]),
    "empty answer": (
        {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        "transcript", [USER], [{"role": "assistant", "content": ""}], [BAD],
    ),
    "second rank is better": (ranked(1, 0), "ranked", [USER], [GOOD], [BAD]),
    "first rank is better": (ranked(-2, 5.5), "ranked", [USER], [BAD], [GOOD]),
    "first response preferred": (helpsteer3(-1), "helpsteer3", [USER], "one", "two"),
    "second response preferred": (helpsteer3(3), "helpsteer3", [USER], "two", "one"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "row_format", "prompt", "chosen", "rejected"), READ.values(), ids=READ)
def test_formats(row: dict[str, Any], row_format: str, prompt: Any, chosen: Any, rejected: Any) -> None:
    assert recognise(row, Keys()) == row_format
    preference = read_row(row, row_format, Keys())
    assert (preference.prompt, preference.chosen, preference.rejected) == (prompt, chosen, rejected)


def test_no_prompt_is_a_null_one_or_none() -> None:
    """Beside whole conversations and transcripts, whatever the format of the file's first rows."""
    for prompt in ({}, {"prompt": None}):
        for row, row_format in ((CONVERSATION, "conversation"), (TRANSCRIPT, "transcript")):
            assert recognise({**prompt, **row}, Keys()) == row_format
            read = [read_row({**prompt, **row}, name, Keys()) for name in (row_format, "pair")]
            assert [(r.prompt, r.chosen, r.rejected) for r in read] == [([USER, BAD, MORE], [GOOD], [BAD])] * 2


def test_rows_after_the_first_may_have_a_prompt_of_their_own() -> None:
    rows = [CONVERSATION, {**CONVERSATION, "prompt": "other"}, {"prompt": None, **TRANSCRIPT}]
    (chunk,) = with_row_formats(iter([Chunk("s", 1, rows)]), "auto", Keys(), 99)
    with pytest.raises(RowProblem, match="is not what the two conversations have in common"):
        read_row(chunk.rows[1], chunk.row_format, Keys())
    assert [read_row(chunk.rows[i], chunk.row_format, Keys()).chosen for i in (0, 2)] == [[GOOD], [GOOD]]


def test_a_value_that_cannot_be_read_is_a_problem_where_it_is_asked_for() -> None:
    bad = Unreadable("invalid UTF-8", "is not valid UTF-8")
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "completions": bad}
    assert read_row(row, "pair", Keys()).prompt == "q"
    for key in ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs"):
        with pytest.raises(RowProblem) as caught:
            read_row({**row, key: bad}, recognise({**row, key: bad}, Keys()), Keys())
        assert (caught.value.reason, caught.value.message, caught.value.field) == (bad.reason, bad.message, key)


def test_custom_keys_and_extra_columns() -> None:
    keys = Keys("question", "good", "bad")
    row = {"question": "q", "good": "a", "bad": "b", "tools": [{"name": "t"}], "chat_template_kwargs": {"k": 1}}
    assert recognise(row, keys) == "pair"
    preference = read_row(row, "pair", keys)
    assert (preference.prompt, preference.tools, preference.template_kwargs) == ("q", [{"name": "t"}], {"k": 1})


def test_null_fields_of_a_message_are_left_out() -> None:
    row = {"prompt": [{**USER, "tool_calls": None}], "chosen": "a", "rejected": "b"}
    assert read_row(row, "pair", Keys()).prompt == [USER]


PROBLEMS = {
    "no rejected": ({"prompt": "q", "chosen": "a"}, "missing field", "rejected", False),
    "unknown format": ({"text": "q"}, "missing field", "prompt", False),
    "number": ({"prompt": 1, "chosen": "a", "rejected": "b"}, "wrong type", "prompt", False),
    "null": ({"prompt": "q", "chosen": None, "rejected": "b"}, "wrong type", "chosen", False),
    "list of strings": ({"prompt": ["q"], "chosen": "a", "rejected": "b"}, "wrong type", "prompt", False),
    "empty list": ({"prompt": [], "chosen": "a", "rejected": "b"}, "missing field", "prompt", False),
    "no role": ({"prompt": [{"content": "q"}], "chosen": "a", "rejected": "b"}, "wrong type", "prompt", False),
    "number in a message": (
        {"prompt": [{**USER, "content": 1}], "chosen": "a", "rejected": "b"}, "wrong type", "prompt", False,
    ),
    "tools": ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": "t"}, "wrong type", "tools", False),
    "prompt disagrees": (
        {"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompt disagrees", "prompt", False,
    ),
    "three completions": (ranked(0, 1, 2), "wrong type", "completions", False),
    "rank text": (ranked("0", "1"), "wrong type", "rank", False),  # type: ignore[arg-type] - the mistake that is tested
    "preference text": (helpsteer3("1"), "wrong type", "overall_preference", False),
    "preference true": (helpsteer3(True), "wrong type", "overall_preference", False),
    "equal": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "equal responses", None, True),
    "equal conversations": ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "equal responses", None, True),
    "equal ranks": (ranked(1, 1), "tie", None, True),
    "preference 0": (helpsteer3(0), "tie", None, True),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "field", "drop"), PROBLEMS.values(), ids=PROBLEMS)
def test_problems(row: dict[str, Any], reason: str, field: str | None, drop: bool) -> None:
    with pytest.raises(RowProblem) as caught:
        read_row(row, recognise(row, Keys()), Keys())
    assert (caught.value.reason, caught.value.field, caught.value.drop) == (reason, field, drop)
