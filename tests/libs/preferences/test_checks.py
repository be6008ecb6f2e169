"""Pairs from a file are whole, of the policy's vocabulary, named by their ids and scored by a policy; or they are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.checks import check_ids, check_rewards, check_scores, check_vocabulary, digests
from nemotron_dpo.preferences.columns import pair_id
from nemotron_dpo.preferences.encoding import PairIds
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import SCORED_PAIRS
from support import small

IDS = [([1], [2, 3], [4]), ([5, 6, 7], [8], [9, 10]), ([11], [12], [13]), ([1, 2], [3], [4, 5])]


def rows(**changes: Any) -> list[dict]:
    """Four pairs of input lines 10, 20, 30 and 40; `changes` are of the columns of the third."""
    made = [
        {
            "pair_id": small.pair_id(*ids),
            "source_line": 10 * (number + 1),
            **dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ids, strict=True)),
            "chosen_truncated": False,
            "rejected_truncated": False,
            "ref_chosen_logps": [-1.5] * len(ids[1]),
            "ref_rejected_logps": [-0.0] * len(ids[2]),
        }
        for number, ids in enumerate(IDS)
    ]
    made[2] |= changes
    return made


def stored(made: list[dict]) -> list[Pairs]:
    """The same rows as one batch, as a table of two chunks, as slices of a longer batch, and each as the third of its own."""
    batch = pa.RecordBatch.from_pylist(made, schema=SCORED_PAIRS)
    around = pa.RecordBatch.from_pylist([made[0], *made, made[1]], schema=SCORED_PAIRS).slice(1, 4)
    chunks = pa.Table.from_batches([batch.slice(0, 1), batch.slice(1, 3)])
    return [Pairs.of(batch), Pairs.of(around), Pairs.of(chunks)]


def check(pairs: Pairs) -> None:
    check_ids(pairs, "a")
    check_vocabulary(pairs, 14, "a")
    check_scores(pairs, "a")
    check_rewards(pairs, "a", needed=False)


def test_good_pairs_pass_however_they_are_stored() -> None:
    for pairs in stored(rows()):
        check(pairs)
        assert list(digests(pairs)) == [small.pair_id(*ids) for ids in IDS] == [pair_id(PairIds(*ids)) for ids in IDS]


RESCORE, RETOKENIZE = "score it again with ref-logprobs", "was the file changed? Tokenize again"
NAMED: Callable[..., dict] = lambda *ids: dict(  # noqa: E731 - a name for the type; a line is enough
    zip(("pair_id", "prompt_ids", "chosen_ids", "rejected_ids"), (small.pair_id(*ids), *ids), strict=True)
)
WRONG: dict[str, tuple[dict, str]] = {
    "no prompt": (NAMED([], [12], [13]), f"has a pair without prompt_ids (line 30 of the input): {RETOKENIZE}"),
    "no chosen": (NAMED([11], [], [13]), f"has a pair without chosen_ids (line 30 of the input): {RETOKENIZE}"),
    "no rejected": (NAMED([11], [12], []), f"has a pair without rejected_ids (line 30 of the input): {RETOKENIZE}"),
    "another id": (
        {"chosen_ids": [13]},
        f"has a pair_id that is not the digest of its token ids (line 30 of the input): {RETOKENIZE}",
    ),
    "ids moved over a boundary": (
        {"prompt_ids": [11, 12], "chosen_ids": [13], "rejected_ids": [13]},
        f"has a pair_id that is not the digest of its token ids (line 30 of the input): {RETOKENIZE}",
    ),
    "beyond the vocabulary": (
        NAMED([11], [12, 14], [13]),
        "has token id 14; the policy knows 14 tokens (line 30 of the input): tokenize with the policy's own tokenizer",
    ),
    "negative": (
        NAMED([-1], [12], [13]),
        "has token id -1; the policy knows 14 tokens (line 30 of the input): tokenize with the policy's own tokenizer",
    ),
    "too few scores": (
        {"ref_chosen_logps": []},
        f"has ref_chosen_logps of 0 log-probs for 1 token (line 30 of the input): {RESCORE}",
    ),
    "too many scores": (
        {"ref_rejected_logps": [-1.0, -1.0]},
        f"has ref_rejected_logps of 2 log-probs for 1 token (line 30 of the input): {RESCORE}",
    ),
    **{
        f"a score of {value}": (
            {"ref_rejected_logps": [value]},
            f"has {value:g} in ref_rejected_logps (line 30 of the input), which is no log-prob: {RESCORE}",
        )
        for value in (6.99, 0.01, -1.3e20, -2e4, float("nan"), float("inf"), float("-inf"))
    },
    "an infinite reward": (
        {"rejected_reward": float("-inf"), "source": "prefs.jsonl"},
        f"has -inf as rejected_reward (line 30 of prefs.jsonl): {RETOKENIZE}",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_pairs_are_refused_with_their_line(changes: dict, message: str) -> None:
    for pairs in stored(rows(**changes)):
        with pytest.raises(UserError) as caught:
            check(pairs)
        assert str(caught.value) == f"a: {message}"


def test_scores_moved_from_one_response_to_the_next_are_refused() -> None:
    """As many log-probs in all, divided otherwise."""
    made = rows()
    made[0]["ref_chosen_logps"], made[1]["ref_chosen_logps"] = [-1.0], [-1.0, -1.0]
    with pytest.raises(UserError, match=r"has ref_chosen_logps of 1 log-probs for 2 tokens \(line 10 of the input\)"):
        check(stored(made)[0])


def test_a_missing_reward_is_refused_where_one_is_needed_and_its_line_named() -> None:
    remedy = "tokenize with --chosen-reward-key and --rejected-reward-key"
    for changes, side in (({"rejected_reward": None}, "rejected"), ({"chosen_reward": float("nan")}, "chosen")):
        made = [{"chosen_reward": 1.5, "rejected_reward": 0.0, **row} for row in rows()]
        for pairs in stored(made):
            check_rewards(pairs, "a", needed=True)
        made[2] |= {**changes, "source": "prefs.jsonl"}
        for pairs in stored(made):
            check_rewards(pairs, "a", needed=False)
            with pytest.raises(UserError) as caught:
                check_rewards(pairs, "a", needed=True)
            where = f"has no reward of the {side} response (line 30 of prefs.jsonl), and the objective needs one"
            assert str(caught.value) == f"a: {where}: {remedy}"


def test_rewards_that_contradict_the_choice_are_refused_where_their_order_counts() -> None:
    """0.25 of the rejected response is less than 0.5 and equal to 0.25; it is more than -1."""
    for chosen, is_refused in ((0.5, False), (0.25, False), (-1.0, True)):
        made = [{"chosen_reward": 1.5, "rejected_reward": 0.0, **row} for row in rows()]
        made[2] |= {"chosen_reward": chosen, "rejected_reward": 0.25}
        for pairs in stored(made):
            check_rewards(pairs, "a", needed=True)
            with pytest.raises(UserError) if is_refused else contextlib.nullcontext() as caught:
                check_rewards(pairs, "a", needed=True, ordered=True)
            if caught is not None:
                said = (
                    "a: has rewards that contradict the choice, -1 for the chosen response and 0.25 for the other (line 30 of"
                )
                assert str(caught.value).startswith(said)
