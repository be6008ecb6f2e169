"""The rewards that rows bring along: columns that are named, columns that are recognised, ranks and strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.preferences.notes import reward_notes, spoken
from nemotron_dpo.preferences.problems import NOT_READ, RowProblem
from nemotron_dpo.preferences.row_formats import Keys, read_row
from support.chat_templates import CHATML
from support.preference_rows import pairs, tokenize
from support.small_tokenizers import byte_level, save

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
ASKED = Keys(chosen_reward="mine", rejected_reward="theirs")


def completions(*rewards: Any, name: str = "reward") -> dict[str, Any]:
    """Of two completions the second is the better one."""
    made = [{"rank": rank, "completion": f"text {rank}"} for rank in (2, 1)]
    return {"context": "q", "completions": [{**c, name: r} if r is not ... else c for c, r in zip(made, rewards, strict=True)]}


def helpsteer3(preference: float) -> dict[str, Any]:
    return {"context": "q", "response1": "one", "response2": "two", "overall_preference": preference}


READ: dict[str, tuple[dict[str, Any], str, tuple[float | None, float | None]]] = {
    **{
        f"{chosen}": ({**PAIR, chosen: 4.5, rejected: -2}, "pair", (4.5, -2.0))
        for chosen, rejected in (
            ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
            ("chosen_reward", "rejected_reward"), ("reward_chosen", "reward_rejected"), ("rating_chosen", "rating_rejected"),
        )
    },
    "none": (PAIR, "pair", (None, None)),
    "cells of a CSV": ({**PAIR, "score_chosen": " 4.5 ", "score_rejected": "-1e-3"}, "pair", (4.5, -0.001)),
    "one of two": ({**PAIR, "score_chosen": 4.5}, "pair", (None, None)),
    "one of two a number": ({**PAIR, "score_chosen": 4.5, "score_rejected": None}, "pair", (None, None)),
    "words": ({**PAIR, "score_chosen": "high", "score_rejected": "low"}, "pair", (None, None)),
    "spelled otherwise": ({**PAIR, "score_chosen": "1_0", "score_rejected": "infinity"}, "pair", (None, None)),
    "booleans": ({**PAIR, "score_chosen": True, "score_rejected": False}, "pair", (None, None)),
    "not finite": ({**PAIR, "score_chosen": float("nan"), "score_rejected": 1.0}, "pair", (None, None)),
    "beyond float32": ({**PAIR, "score_chosen": 1e39, "score_rejected": 1.0}, "pair", (None, None)),
    "a column that is not read": ({**PAIR, "score_chosen": NOT_READ, "score_rejected": 1.0}, "pair", (None, None)),
    "a transcript": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad",
            "chosen_rating": 5, "rejected_rating": 1,
        },
        "transcript", (5.0, 1.0),
    ),
    "completions": (completions(0.25, 0.75), "ranked", (0.75, 0.25)),
    "completions without": (completions(..., ...), "ranked", (None, None)),
    "completions of which one has none": (completions(0.25, ...), "ranked", (None, None)),
    "HelpSteer3, the first much better": (helpsteer3(-3), "helpsteer3", (3.0, 0.0)),
    "HelpSteer3, the second slightly better": (helpsteer3(1), "helpsteer3", (1.0, 0.0)),
}  # fmt: skip


@pytest.mark.parametrize(("row", "row_format", "expected"), READ.values(), ids=READ)
def test_recognised_without_being_asked_for(row: dict[str, Any], row_format: str, expected: tuple) -> None:
    rewards = read_row(row, row_format, Keys()).rewards
    assert (rewards.chosen, rewards.rejected) == expected


def test_named_columns_count_alone() -> None:
    row = {**PAIR, "score_chosen": 1.0, "score_rejected": 0.0, "mine": 7, "theirs": "8"}
    for asked, row_format in ((row, "pair"), ({**helpsteer3(2), "mine": 7, "theirs": "8"}, "helpsteer3")):
        rewards = read_row(asked, row_format, ASKED).rewards
        assert (rewards.chosen, rewards.rejected) == (7.0, 8.0)
    same = Keys(chosen_reward="score", rejected_reward="score")
    rewards = read_row(completions(3, 5, name="score"), "ranked", same).rewards
    assert (rewards.chosen, rewards.rejected) == (5.0, 3.0)


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({**PAIR, "mine": 1}, "theirs", "--rejected-reward-key names another column (data.train.rejected_reward_key in"),
        ({**PAIR, "mine": None, "theirs": 1}, "mine", "is null where a finite number is due"),
        ({**PAIR, "mine": "much", "theirs": 1}, "mine", "is a string where a finite number is due"),
        ({**PAIR, "mine": 1, "theirs": True}, "theirs", "is a boolean where a finite number is due"),
        ({**PAIR, "mine": 1, "theirs": float("nan")}, "theirs", "is nan where a finite number is due"),
        ({**PAIR, "mine": -1e39, "theirs": 1}, "mine", "is -1e+39 where a finite number is due"),
        ({**PAIR, "mine": 1, "theirs": NOT_READ}, "theirs", "is a column that is not read"),
    ],
)
def test_a_named_column_must_hold_a_number(row: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(RowProblem) as caught:
        read_row(row, "pair", ASKED)
    assert (caught.value.field, caught.value.drop) == (field, False)
    assert words in caught.value.message


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"), byte_level(), chat_template=CHATML, eos_token="<|im_end|>")


def test_rewards_are_written_and_said(tokenizer: Path) -> None:
    scores = [(4.5, 2), (1.0, 3), (None, 3), (0.1, 0.0)]
    rows = [{**PAIR, "prompt": str(n), "score_chosen": a, "score_rejected": b} for n, (a, b) in enumerate(scores)]
    rows.append({**PAIR, "chosen": "bad", "score_chosen": 1, "score_rejected": 2})  # equal responses: not written
    columns = "score_chosen, score_rejected"
    for swap, expected, higher in (
        (False, [(4.5, 2.0), (1.0, 3.0), (None, None), (0.10000000149011612, 0.0)], 1),  # 0.1 in float32
        (True, [(2.0, 4.5), (3.0, 1.0), (None, None), (0.0, 0.10000000149011612)], 2),
    ):
        result = tokenize(tokenizer, *rows, swap=swap)
        assert [(pair["chosen_reward"], pair["rejected_reward"]) for pair in pairs(result)] == expected
        counted = f"rewards of 3 pairs ({columns}), {higher} of them higher for the rejected response"
        notes = reward_notes(result.facts, result.reward_columns)
        assert spoken(notes) == f"; {counted}; no rewards of 1 pair, as {columns} are no numbers there"
