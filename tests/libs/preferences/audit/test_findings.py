"""What the audit finds is what a plain look at the texts finds, wherever the rows lie and however they are cut into chunks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.audit.facts import FactTable, differ_in_space_alone, is_empty
from nemotron_dpo.preferences.audit.findings import NAMES, dropped, findings, parse_names
from nemotron_dpo.preferences.audit.spoken import doubt
from nemotron_dpo.preferences.tally import Tally
from support.chat_templates import CHATML
from support.preference_rows import tokenize
from support.small_tokenizers import byte_level, save


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"), byte_level(), chat_template=CHATML, eos_token="<|im_end|>")


def table_of(chat: Path, rows: list[dict[str, Any]], **settings: Any) -> FactTable:
    tally = Tally()
    tally.add(tokenize(chat, *rows, **settings))
    return tally.table


def looked_for(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The oddities of rows by comparing all of them with all others."""
    triples = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    turned = [(prompt, rejected, chosen) for prompt, chosen, rejected in triples]
    return {
        "duplicates": [n for n, triple in enumerate(triples) if triple in triples[:n]],
        "both-ways": [n for n, triple in enumerate(turned) if triple in triples],
        "empty": [n for n, (_, a, b) in enumerate(triples) if not a.strip() or not b.strip()],
        "whitespace": [n for n, (_, a, b) in enumerate(triples) if "".join(a.split()) == "".join(b.split())],
        "inverted": [n for n, row in enumerate(rows) if row.get("score_chosen", 0) < row.get("score_rejected", 0)],
        "tied": [n for n, row in enumerate(rows) if "score_chosen" in row and row["score_chosen"] == row["score_rejected"]],
    }


def some_rows(number: int, seed: int) -> list[dict[str, Any]]:
    pick = random.Random(seed)
    texts = ["a b", "ab", "a  b", " ", "", "\n", "c", "d", "a\tb "]
    rows = []
    for _ in range(number):
        chosen, rejected = pick.sample(texts, 2)
        row = {"prompt": pick.choice("pq"), "chosen": chosen, "rejected": rejected}
        if pick.random() < 0.5:
            row |= {"score_chosen": pick.randrange(3), "score_rejected": pick.randrange(3)}
        rows.append(row)
    return rows


def test_findings_are_those_of_a_plain_look(chat: Path) -> None:
    for seed in range(5):
        rows = some_rows(60, seed)
        table = table_of(chat, rows)
        found = findings(table.all())
        assert {name: found[name].rows.tolist() for name in NAMES} == looked_for(rows)
        for name in ("duplicates", "both-ways"):
            finding = found[name]
            assert finding.others is not None
            for row, other in zip(finding.rows, finding.others, strict=True):
                sides = ("chosen", "rejected") if name == "duplicates" else ("rejected", "chosen")
                is_other = [[there[side] for side in ("prompt", *sides)] == list(rows[row].values())[:3] for there in rows]
                assert is_other.index(True) == other


def test_contradictions_go_before_repeats_and_take_all_their_rows(chat: Path) -> None:
    ab, ba, cd = ({"prompt": "p", "chosen": a, "rejected": b} for a, b in ("ab", "ba", "cd"))
    facts = table_of(chat, [ab, cd, ab, ba, cd, {**ab, "prompt": "q"}]).all()
    both = dropped(facts, frozenset({"both-ways", "duplicates"}))
    assert {name: finding.rows.tolist() for name, finding in both.items()} == {"both-ways": [0, 2, 3], "duplicates": [4]}
    assert [finding.others.tolist() for finding in both.values() if finding.others is not None] == [[3, 3, 0], [1]]
    repeats = dropped(facts, frozenset({"duplicates", "empty"}))
    assert {name: finding.rows.tolist() for name, finding in repeats.items()} == {"duplicates": [2, 4]}


def test_the_rows_without_pairs_do_not_shift_the_places(chat: Path) -> None:
    """Rejects, blank lines and other files lie between; lengths are those before truncation, of what was cut by side."""
    row = {"prompt": "p", "chosen": "x" * 40, "rejected": "b"}
    tally = Tally()
    for source, rows in (("one", [row, {"prompt": 1}]), ("two", [{"prompt": "p"}, row, {**row, "prompt": "q" * 9}])):
        result = tokenize(chat, *rows, max_length=50)
        tally.table.add(source, result.facts, result.reward_columns)
    facts = tally.table.all()
    assert [tally.table.place(n) for n in range(3)] == ["one:1", "two:2", "two:3"]
    found = findings(facts)
    assert [tally.table.place(n) for n in found["duplicates"].rows] == ["two:2"]
    assert found["cut-chosen"].rows.tolist() == [0, 1, 2]
    assert not len(found["cut-rejected"].rows) + len(found["cut-prompt"].rows)
    assert (facts["prompt"] + facts["chosen"]).tolist() == [50] * 3
    assert set(facts["whole_chosen"].tolist()) == {41}  # a token a character, and the end of the turn
    assert tally.table.num_files == 2


@pytest.mark.parametrize(
    ("response", "empty"),
    [
        ("", True),
        (" \n\t\u00a0", True),
        (".", False),
        ([{"role": "assistant", "content": " "}], True),
        ([{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}], False),
        ([{"role": "assistant", "content": "", "reasoning_content": "Hm."}], False),
        ([{"role": "assistant", "content": "", "tool_calls": []}], True),
    ],
)
def test_what_an_empty_response_is(response: Any, empty: bool) -> None:
    assert is_empty(response) == empty


def test_white_space_is_what_python_calls_so() -> None:
    for one, other, alone in (
        ("a b", "ab\n", True),
        ("a", "a\u200b", False),
        (" x", "y", False),
        ("", " ", True),
        ("ab", "ba", False),
    ):
        assert differ_in_space_alone(one, other) == alone


def test_names_of_what_is_left_out() -> None:
    assert parse_names("duplicates, both-ways") == {"duplicates", "both-ways"}
    assert parse_names("") == frozenset()
    for text in ("duplicate", "tied,", "tied,,empty"):
        with pytest.raises(UserError, match=r"names nothing: there are empty, whitespace, inverted, tied, both-ways") as caught:
            parse_names(text)
        assert caught.value.usage


@pytest.mark.parametrize(
    ("agree", "contradict", "tied", "suspects"),
    [(0, 4, 0, True), (0, 3, 0, False), (10, 10, 0, False), (10, 11, 0, True), (1, 2, 97, True), (50, 3, 0, False)],
)
def test_columns_are_suspected_where_most_rewards_contradict(agree: int, contradict: int, tied: int, suspects: bool) -> None:
    stand = {"pairs": agree + contradict + tied, "agree": agree, "contradict": contradict, "tied": tied}
    said = doubt(stand, " (a, b)", swapped=False)
    assert (said is not None) == suspects
    if said:
        assert said.startswith(
            f"in {contradict} of {agree + contradict + tied} pairs with rewards (a, b) the rejected response"
        )
        assert said.endswith("--swap exchanges them (data.train.chosen_key and rejected_key in a config)")
        assert str(doubt(stand, "", swapped=True)).endswith("swapped? leave out --swap")


def test_columns_of_rewards_are_counted_over_chunks(chat: Path) -> None:
    """Chunks number their columns each for themselves."""
    scored = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}
    rated = {"prompt": "p", "chosen": "c", "rejected": "d", "chosen_rating": 2, "rejected_rating": 2}
    tally = Tally()
    tally.add(tokenize(chat, scored, rated, scored))
    tally.add(tokenize(chat, rated, scored))
    columns = ["score_chosen, score_rejected", "chosen_rating, rejected_rating"]
    assert tally.table.reward_columns == columns
    assert tally.table.all()["rewards_of"].tolist() == [1, 2, 1, 2, 1]
    assert dict(tally.notes) == {
        ("pairs_with_rewards", columns[0]): 3,
        ("pairs_with_rewards", columns[1]): 2,
        ("pairs_with_inverted_rewards", columns[0]): 3,
    }
    tally.leave_out(np.array([0, 3]))
    assert tally.notes["pairs_with_rewards", columns[0]] == 2
    assert tally.closing_line().startswith("5 rows read, 3 pairs written")
