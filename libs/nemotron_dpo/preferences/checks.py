"""Checks that pairs from a file are complete, are of the policy's vocabulary and have log-probs that a policy can give.

A stream's checksums find damage. These checks find what was written wrong, by hand or by another program, and damage in
data that has no checksums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.wording import counted

# No policy gives a log-prob outside this range: rounding may lift one a little above 0, and logits do not differ by 10,000
MOST, LEAST = 1e-3, -1e4
_REMEDY = "was the file changed? Tokenize again"


def check_ids(pairs: Pairs, source: object) -> None:
    """Raise UserError for a pair without a prompt or a response, or whose pair_id is not the digest of its token ids."""
    for name, column in (("prompt", pairs.prompt), ("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        empty = np.flatnonzero(column.lengths == 0)
        if len(empty):
            raise UserError(f"has a pair without {name}_ids ({pairs.place(empty[0])})", source=source, remedy=_REMEDY)
    computed = np.frombuffer(b"".join(digests(pairs)), "<u8").reshape(-1, 2)
    wrong = np.flatnonzero((pairs.pair_ids.to_numpy() != computed).any(axis=1))
    if len(wrong):
        what = f"has a pair_id that is not the digest of its token ids ({pairs.place(wrong[0])})"
        raise UserError(what, source=source, remedy=_REMEDY)


def check_kinds(batches: Iterable[Pairs], short_length: int | None, source: object) -> None:
    """Raise UserError for pairs of which one text has at most `short_length` tokens and the other has more.

    A policy with such a length (`Architecture.short_length`) turns the positions of either otherwise, those of the prompt that
    they share as well. None for a policy without.
    """
    if short_length is None:
        return
    count, first = 0, ""
    for pairs in batches:
        chosen, rejected = (pairs.prompt.lengths + each.lengths for each in (pairs.chosen, pairs.rejected))
        mixed = np.flatnonzero((chosen <= short_length) != (rejected <= short_length))
        count += len(mixed)
        if len(mixed) and not first:
            row = int(mixed[0])
            first = f"{pairs.place(row)}: {chosen[row]} tokens with the chosen and {rejected[row]} with the rejected response"
    if count:
        what = f"has {count} pairs of which one text has more than {short_length} tokens and the other has not, "
        what += f"which the policy's longrope turns otherwise, and so their prompt (the first: {first})"
        raise UserError(what, source=source, remedy=f"tokenize with --max-length {short_length}, or leave those pairs out")


def check_vocabulary(pairs: Pairs, vocab_size: int, source: object) -> None:
    """Raise UserError for a token id that is not in the policy's range of 0 to `vocab_size` - 1."""
    for column in (pairs.prompt, pairs.chosen, pairs.rejected):
        for first, ids, (_, offsets) in zip(column.firsts, column.by_part(), column.parts, strict=True):
            outside = np.flatnonzero(ids.view(np.uint32) >= vocab_size)  # a negative id is very large as uint32
            if len(outside):
                line = pairs.place(_row(first, offsets, outside[0]))
                what = f"has token id {ids[outside[0]]}; the policy knows {vocab_size} tokens ({line})"
                raise UserError(what, source=source, remedy="tokenize with the policy's own tokenizer")


def check_scores(pairs: Pairs, source: object, remedy: str = "score it again with ref-logprobs", of: str = "ref_") -> None:
    """Raise UserError where a response does not have one log-prob for each token, or has one that no policy gives.

    `pairs` must have log-probs, in columns whose names begin with `of`.
    """
    for name, ids, scores in (("chosen", pairs.chosen, pairs.ref_chosen), ("rejected", pairs.rejected, pairs.ref_rejected)):
        assert scores is not None
        uneven = np.flatnonzero(ids.lengths != scores.lengths)
        if len(uneven):
            counts = f"{scores.lengths[uneven[0]]} log-probs for {counted(int(ids.lengths[uneven[0]]), 'token')}"
            raise UserError(f"has {of}{name}_logps of {counts} ({pairs.place(uneven[0])})", source=source, remedy=remedy)
        for first, values, (_, offsets) in zip(scores.firsts, scores.by_part(), scores.parts, strict=True):
            wrong = np.flatnonzero(~((values >= LEAST) & (values <= MOST)))
            if len(wrong):
                line = pairs.place(_row(first, offsets, wrong[0]))
                what = f"has {values[wrong[0]]:g} in {of}{name}_logps ({line}), which is no log-prob"
                raise UserError(what, source=source, remedy=remedy)


def check_rewards(pairs: Pairs, source: object, *, needed: bool, ordered: bool = False) -> None:
    """Raise UserError for a reward that is no finite number and, where they are `needed`, for a response without a reward.

    Where they must be `ordered`, also for a chosen response that has a lower one than the other.
    """
    for name, rewards in (("chosen", pairs.chosen_reward), ("rejected", pairs.rejected_reward)):
        infinite = np.flatnonzero(np.isinf(rewards))
        if len(infinite):
            what = f"has {rewards[infinite[0]]:g} as {name}_reward ({pairs.place(infinite[0])})"
            raise UserError(what, source=source, remedy=_REMEDY)
        missing = np.flatnonzero(np.isnan(rewards))
        if needed and len(missing):
            what = f"has no reward of the {name} response ({pairs.place(missing[0])}), and the objective needs one"
            raise UserError(what, source=source, remedy="tokenize with --chosen-reward-key and --rejected-reward-key")
    lower = np.flatnonzero(pairs.chosen_reward < pairs.rejected_reward)
    if ordered and len(lower):
        first = int(lower[0])
        rewards = f"{pairs.chosen_reward[first]:g} for the chosen response and {pairs.rejected_reward[first]:g} for the other"
        what = f"has rewards that contradict the choice, {rewards} ({pairs.place(first)})"
        leave = "leave such rows out (preference-tokenize --drop inverted)"
        remedy = f"the objective takes the log of the gap: {leave}, or set dpo.odpo_gap=identity"
        raise UserError(what, source=source, remedy=remedy)


def digests(pairs: Pairs) -> Iterator[bytes]:
    """The digest that the pair_id of each pair must equal, in order: `columns.pair_id` of its token ids."""
    sides = (pairs.prompt, pairs.chosen, pairs.rejected)
    lengths = np.stack([side.lengths for side in sides], axis=1).astype("<i4").tobytes()
    start = 0
    for parts in zip(*(side.parts for side in sides), strict=True):
        prompt, chosen, rejected = (memoryview(ids) for ids, _ in parts)
        bounds = (itertools.pairwise(offsets.tolist()) for _, offsets in parts)
        for (a, b), (c, d), (e, f) in zip(*bounds, strict=True):  # in the open: of a million pairs a loop takes half a second
            digest = blake2b(lengths[start : start + 12], digest_size=16)
            update = digest.update
            update(prompt[a:b])
            update(chosen[c:d])
            update(rejected[e:f])
            start += 12
            yield digest.digest()


def _row(first: int, offsets: np.ndarray, place: int) -> int:
    """The row that has the value at index `place` of a part; the part begins with row `first`."""
    return int(first) + int(np.searchsorted(offsets - offsets[0], place, side="right")) - 1
