"""Pairs that are held out: no prompt on both sides, as many as were asked for, whatever the order of the rows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.held_out import HeldOut, draw, parse_splits

PROMPTS = st.lists(st.integers(0, 12), min_size=2, max_size=60)


def held(share: str, seed: int = 42) -> HeldOut:
    return HeldOut("validation", share, seed, "v.arrow")


@given(prompts=PROMPTS, share=st.sampled_from(["0.05", "0.1", "0.3", "0.5", "0.9"]), seed=st.integers(0, 3), order=st.randoms())
def test_by_prompt_as_many_as_asked_whatever_the_order(prompts: list[int], share: str, seed: int, order: object) -> None:
    digests = np.array(prompts, np.uint64)
    try:
        mask = draw(digests, held(share, seed))
    except UserError:
        assume(False)
        raise
    apart, rest = set(digests[mask].tolist()), set(digests[~mask].tolist())
    assert min(len(apart), len(rest)) > 0
    assert not apart & rest
    wanted = int(Fraction(share) * len(prompts) + Fraction(1, 2))
    left = wanted - int(mask.sum())
    assert left >= 0
    assert all(prompts.count(prompt) > left for prompt in rest)  # none that would have fitted was left behind
    shuffled = np.random.default_rng(seed).permutation(len(prompts))
    assert draw(digests[shuffled], held(share, seed)).tolist() == mask[shuffled].tolist()


def test_single_prompts_are_as_many_as_the_share_says_and_other_seeds_draw_others() -> None:
    digests = np.arange(1000, dtype=np.uint64)
    drawn = [draw(digests, held(share, seed)) for share, seed in (("0.05", 1), ("0.05", 2), ("0.0505", 1), ("1e-3", 1))]
    assert [int(mask.sum()) for mask in drawn] == [50, 50, 51, 1]  # 50.5 is 51
    assert not np.array_equal(drawn[0], drawn[1])
    assert drawn[2][drawn[0]].all()  # a greater share includes the smaller one
    overlap = int((drawn[0] & drawn[1]).sum())
    assert overlap < 12  # 2.5 are due by chance
    thirds = [int(mask.sum()) for mask in np.array_split(drawn[0], 3)]
    assert min(thirds) > 5  # 17 are due


def test_rows_that_are_added_move_few_prompts() -> None:
    before = draw(np.arange(1000, dtype=np.uint64), held("0.05"))
    after = draw(np.arange(1100, dtype=np.uint64), held("0.05"))
    assert int((before & after[:1000]).sum()) >= 40


@pytest.mark.parametrize(
    ("prompts", "share", "words"),
    [
        ([1, 2, 3], "0.1", "0.1 of 3 pairs of 3 prompts is none of them"),
        ([7] * 50, "0.5", "0.5 of 50 pairs of 1 prompt is none of them"),
        ([1, 2], "0.9", "0.9 of 2 pairs of 2 prompts is all of them"),
    ],
)
def test_nothing_on_one_side_is_refused(prompts: list[int], share: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        draw(np.array(prompts, np.uint64), held(share))
    assert str(caught.value) == f"--split validation={share}: {words}: choose another share"


def test_what_split_may_say() -> None:
    assert parse_splits([], 1, None) == (None, None)
    assert parse_splits(["train[:10%]"], 1, None) == ("train[:10%]", None)
    assert parse_splits(["train", "test=.25"], 7, "t.arrow") == ("train", HeldOut("test", ".25", 7, "t.arrow"))
    for splits, output, words in (
        (["validation=0"], "v", "holds out no share of the pairs: write one between 0 and 1, as in validation=0.05"),
        (["validation=1"], "v", "holds out no share"),
        (["validation=5%"], "v", "holds out no share"),
        (["validation=nan"], "v", "holds out no share"),
        (["=0.5"], "v", "holds out no share"),
        (["a=0.1", "b=0.1"], "v", "one split of the data, and one NAME=SHARE"),
        (["train", "test"], None, "one split of the data, and one NAME=SHARE"),
        (["a=0.1"], None, "--split NAME=SHARE and --split-output FILE need each other"),
        (["train"], "v", "need each other"),
    ):
        with pytest.raises(UserError) as caught:
            parse_splits(splits, 1, output)
        assert words in str(caught.value)
        assert caught.value.usage
