"""Figures of scored pairs, joined on pair_id, as ratios of sums over pairs: accuracy, margin, KL per token, by part.

Legend: P pairs; row 0 of 2 holds the chosen responses, row 1 the rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.intervals import Ratio
from nemotron_dpo.preferences.pairs import IdColumn, Pairs, Ragged
from nemotron_dpo.wording import counted

TOKEN_ROUNDING = 2.0**-14  # nats; the rounding of one float32 log-prob, as in objective.inputs.ROUNDINGS


@dataclass(frozen=True)
class InOrder:
    """Scored pairs in the order of others: row i is row `rows[i]` of `pairs`. `sums_2P` are in that order."""

    pairs: Pairs
    rows: np.ndarray
    sums_2P: np.ndarray

    def tokens(self, side: int) -> Iterator[np.ndarray]:
        """The log-probs of each response of one side."""
        column = (self.pairs.ref_chosen, self.pairs.ref_rejected)[side]
        assert column is not None
        return (column[row].astype(np.float64) for row in self.rows.tolist())


def in_order_of(ids: IdColumn, other: Pairs, source: str) -> InOrder:
    """`other` in the order of `ids`. Raises UserError, naming `source`, for a missing pair."""
    row_of = {pair_id: row for row, pair_id in enumerate(other.pair_ids)}
    missing = sum(pair_id not in row_of for pair_id in ids)
    if missing:
        remedy = "score the same tokenized pairs under both"
        raise UserError(
            f"lacks {missing} of the {counted(len(ids), 'pair')} of the policy's file", source=source, remedy=remedy
        )
    rows = np.array([row_of[pair_id] for pair_id in ids])
    return InOrder(other, rows, summed(other)[0][:, rows])


def figures(pairs: Pairs, policy: InOrder, base: InOrder | None) -> dict[str, Ratio]:
    """What is reported with an interval, by name; a part of the pairs is `figure/part`.

    The accuracy is that of rewards where there is a reference. KL is Schulman's k3, r - 1 - log r with r = reference / policy,
    a mean over the tokens that the data have: what the policy has moved on them, not on text of its own.
    """
    counts_2P, ones_P = np.stack([pairs.chosen.lengths, pairs.rejected.lengths]), np.ones(len(pairs))
    margins_P, rounding_P = policy.sums_2P[0] - policy.sums_2P[1], np.zeros(len(pairs))
    if base is not None:
        margins_P, rounding_P = margins_P - (base.sums_2P[0] - base.sums_2P[1]), rounding(counts_2P)
    right_P = (margins_P > rounding_P).astype(np.float64)
    name = "logp" if base is None else "reward"
    found = {("logp_accuracy" if base is None else "accuracy"): Ratio(right_P, ones_P, is_share=True)}
    found[f"{name}_margin_mean"] = Ratio(margins_P, ones_P)
    for side, label in enumerate(("chosen", "rejected") if base is not None else ()):
        found[f"kl_{label}_per_token"] = Ratio(_kl(policy, base, side), counts_2P[side].astype(np.float64))  # type: ignore[arg-type] - there is a base
    for label, has_P in (*_by_length(counts_2P.max(0)).items(), *_by_source(pairs).items()):
        found[label] = Ratio(right_P * has_P, has_P.astype(np.float64), is_share=True)
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`figure/part` as a part of a section."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        section, _, part = name.partition("/")
        if part:
            tree.setdefault(section, {})[part] = value
        else:
            tree[section] = value
    return tree


def _kl(policy: InOrder, base: InOrder, side: int) -> np.ndarray:
    """Of each pair, the sum of the estimator over the tokens of one side, float64 [P]."""
    less = (theirs - ours for ours, theirs in zip(policy.tokens(side), base.tokens(side), strict=True))
    return np.array([(np.expm1(log_r) - log_r).sum() for log_r in less])


_EDGES = (32, 128, 512, 2048)


def _by_length(longest_P: np.ndarray) -> dict[str, np.ndarray]:
    """Which pairs are in which bucket of tokens of the longer response, bool [P]; buckets without pairs are left out."""
    starts = (0, *_EDGES)
    names = [f"{start + 1}-{end}" for start, end in zip(starts, _EDGES, strict=False)] + [f"over {_EDGES[-1]}"]
    bucket_P = np.searchsorted(_EDGES, longest_P)
    return {f"accuracy_by_length/{name}": bucket_P == n for n, name in enumerate(names) if (bucket_P == n).any()}


def _by_source(pairs: Pairs) -> dict[str, np.ndarray]:
    counts = pairs.source.counts()
    names_P = pairs.source.to_numpy() if len(counts) > 1 else None
    return {} if names_P is None else {f"accuracy_by_source/{name or '(unnamed)'}": names_P == name for name in counts}


def rounding(counts_2P: np.ndarray) -> np.ndarray:
    """The largest margin of each pair that rounding alone may cause, of responses of so many tokens."""
    return TOKEN_ROUNDING * np.sqrt(counts_2P.sum(0))


def summed(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probs (float64, nats) and token counts (int64) of scored pairs, each [2, P]: chosen, then rejected."""
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    sides = (pairs.ref_chosen, pairs.ref_rejected)
    return np.stack([_sums(side) for side in sides]), np.stack([side.lengths for side in sides])


def _sums(side: Ragged) -> np.ndarray:
    """The sum of each row. Each response has at least one token; `np.add.reduceat` gives no sum for an empty row."""
    return np.concatenate(
        [
            np.add.reduceat(values.astype(np.float64), offsets[:-1] - offsets[0])
            for values, (_, offsets) in zip(side.by_part(), side.parts, strict=True)
        ]
    )
