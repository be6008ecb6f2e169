"""How well a policy tells chosen from rejected responses: held-out accuracy and margins from outputs of ref-logprobs.

python -m nemotron_dpo.preferences.margins POLICY.arrow [--reference REFERENCE.arrow] [--beta B] -o SCORES.json

Both files are joined on pair_id. Without a reference, log-probs of the policy alone are compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.checks import check_ids, check_scores
from nemotron_dpo.preferences.pairs import IdColumn, Pairs, Ragged
from nemotron_dpo.streams import open_reader, published_file

TOKEN_ROUNDING = 2.0**-14  # nats; the rounding of one float32 log-prob, as in objective.inputs.ROUNDINGS


def main() -> NoReturn:
    """Entry point."""
    parser = argparse.ArgumentParser("margins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="Output of ref-logprobs under the policy.")
    parser.add_argument("--reference", help="Output of ref-logprobs on the same pairs under the reference.")
    parser.add_argument("--beta", type=float, default=0.05, help="KL penalty of the loss [default: 0.05].")
    parser.add_argument("-o", dest="output", required=True, type=Path, help="JSON report to write.")
    arguments = parser.parse_args()
    try:
        write_report(arguments.policy, arguments.reference, arguments.beta, arguments.output)
    except UserError as error:
        sys.exit(f"margins: error: {error}")
    sys.exit(0)


def write_report(policy: str, reference: str | None, beta: float, output: Path) -> None:
    """Score the pairs of `policy`, against `reference` where one is given, and write the report to `output` as JSON.

    Raises UserError where a stream cannot be read, has no pairs or fails a check, or where `reference` lacks a pair.
    """
    pairs = _read(policy)
    sums_2P, counts_2P = summed(pairs)
    report = logp_report(sums_2P, counts_2P)
    margins_P, rounding_P = sums_2P[0] - sums_2P[1], np.zeros(len(pairs))
    if reference is not None:
        reference_2P = joined(pairs.pair_ids, _read(reference), reference)
        report |= reward_report(sums_2P, reference_2P, counts_2P, beta)
        margins_P, rounding_P = margins_P - (reference_2P[0] - reference_2P[1]), rounding(counts_2P)
    report |= report_by_data(pairs, margins_P, margins_P > rounding_P)
    with published_file(output) as file:
        file.write(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def logp_report(sums_2P: np.ndarray, counts_2P: np.ndarray) -> dict[str, Any]:
    """Accuracies and mean log-probs of P pairs under the policy alone; row 0 holds the chosen responses, row 1 the rejected.

    `sums_2P` holds the natural-log probability of each response, `counts_2P` its number of tokens. A tie counts as wrong.
    """
    means_2P = sums_2P / counts_2P
    return {
        "pairs": int(sums_2P.shape[1]),
        "logp_accuracy": float((sums_2P[0] > sums_2P[1]).mean()),
        "logp_per_token_accuracy": float((means_2P[0] > means_2P[1]).mean()),
        "chosen_logp_per_token": float(means_2P[0].mean()),
        "rejected_logp_per_token": float(means_2P[1].mean()),
    }


def reward_report(policy_2P: np.ndarray, reference_2P: np.ndarray, counts_2P: np.ndarray, beta: float) -> dict[str, Any]:
    """DPO's loss (Rafailov et al. 2023, eq. 7) and the rewards of P pairs, with the names and the meaning of training.

    As in NeMo-RL, the reward of a response is log pi - log pi_ref, in nats. It is not multiplied by beta: beta enters only
    the loss. A pair counts as correct only where its margin exceeds the rounding error of its sums, which grows with the
    number of tokens in `counts_2P`. Training uses the same rule (objective.inputs).
    """
    rewards_2P = policy_2P - reference_2P
    margins_P = rewards_2P[0] - rewards_2P[1]
    return {
        "beta": beta,
        "accuracy": float((margins_P > rounding(counts_2P)).mean()),
        "loss": float(np.logaddexp(0, -beta * margins_P).mean()),
        "reward_margin_mean": float(margins_P.mean()),
        "reward_margin_median": float(np.median(margins_P)),
        "rewards_chosen_mean": float(rewards_2P[0].mean()),
        "rewards_rejected_mean": float(rewards_2P[1].mean()),
    }


def report_by_data(pairs: Pairs, margins_P: np.ndarray, is_right_P: np.ndarray) -> dict[str, Any]:
    """The margins that the rewards of the rows have, where there are some, and how they go with the policy's `margins_P`.

    Where the pairs are of several sources, also the share of each that `is_right_P`.
    """
    report: dict[str, Any] = {}
    given_P = (pairs.chosen_reward - pairs.rejected_reward).astype(np.float64)
    has_P = np.isfinite(given_P)
    if has_P.any():
        report["row_rewards"] = {"pairs": int(has_P.sum()), "margin_mean": float(given_P[has_P].mean())}
        if given_P[has_P].std() and margins_P[has_P].std():
            report["row_rewards"]["correlation"] = float(np.corrcoef(given_P[has_P], margins_P[has_P])[0, 1])
    if len(pairs.source.counts()) > 1:
        names_P = pairs.source.to_numpy()
        shares = {name: float(is_right_P[names_P == name].mean()) for name in pairs.source.counts()}
        report["accuracy_by_source"] = {name or "(unnamed)": share for name, share in shares.items()}
    return report


def rounding(counts_2P: np.ndarray) -> np.ndarray:
    """The largest margin of each pair that rounding alone may cause, of responses of so many tokens."""
    return TOKEN_ROUNDING * np.sqrt(counts_2P.sum(0))


def joined(ids: IdColumn, reference: Pairs, source: str) -> np.ndarray:
    """Summed log-probs [2, P] of `reference`, in the order of `ids`. Raises UserError, naming `source`, for a missing pair."""
    row_of = {pair_id: row for row, pair_id in enumerate(reference.pair_ids)}
    missing = sum(pair_id not in row_of for pair_id in ids)
    if missing:
        remedy = "score the same tokenized pairs under both"
        raise UserError(f"lacks {missing} of the {len(ids)} pairs of the policy's file", source=source, remedy=remedy)
    return summed(reference)[0][:, [row_of[pair_id] for pair_id in ids]]


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


def _read(source: str) -> Pairs:
    with open_reader(source, "scored_pairs") as reader:
        if reader.warning:
            print(f"margins: warning: {reader.warning}", file=sys.stderr)
        pairs = Pairs.of(reader.read_all())
    if not len(pairs):
        raise UserError("has no pairs", source=source)
    check_ids(pairs, source)
    check_scores(pairs, source)
    return pairs


if __name__ == "__main__":
    main()
