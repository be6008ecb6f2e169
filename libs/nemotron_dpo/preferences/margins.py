"""How well a policy tells chosen from rejected responses: held-out accuracy and margins from outputs of ref-logprobs.

python -m nemotron_dpo.preferences.margins POLICY.arrow [--reference REFERENCE.arrow] [--against OTHER.arrow] [--beta B]
    -o SCORES.json

All files are joined on pair_id. Without a reference, log-probs of the policy alone are compared. Another policy's figures
are subtracted from this one's, pair by pair. Figures have 95 % intervals over pairs: accuracies Wilson's, others the
bootstrap's. The pairs whose margins changed most, against the other policy where there is one, else against the reference,
are told with their texts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.changed import changed_most
from nemotron_dpo.preferences.checks import check_ids, check_scores
from nemotron_dpo.preferences.figures import InOrder, figures, in_order_of, nested, rounding, summed
from nemotron_dpo.preferences.intervals import difference, intervals
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import StreamInfo, open_reader, published_file


def main() -> NoReturn:
    """Entry point."""
    parser = argparse.ArgumentParser("margins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="Output of ref-logprobs under the policy.")
    parser.add_argument("--reference", help="Output of ref-logprobs on the same pairs under the reference.")
    parser.add_argument("--against", metavar="OTHER", help="Output of ref-logprobs on the same pairs under another policy.")
    parser.add_argument("--beta", type=float, default=0.05, help="KL penalty of the loss [default: 0.05].")
    parser.add_argument("-o", dest="output", required=True, type=Path, help="JSON report to write.")
    arguments = parser.parse_args()
    try:
        write_report(arguments.policy, arguments.reference, arguments.beta, arguments.output, arguments.against)
    except UserError as error:
        sys.exit(f"margins: error: {error}")
    sys.exit(0)


def write_report(policy: str, reference: str | None, beta: float, output: Path, against: str | None = None) -> None:
    """Score the pairs of `policy`, against `reference` where one is given, and write the report to `output` as JSON.

    With the scores of a second policy, `against`, also that one's figures and the paired differences. Raises UserError where
    a stream cannot be read, has no pairs or fails a check, or where one lacks a pair.
    """
    pairs, info = _read(policy)
    sums_2P, counts_2P = summed(pairs)
    report = logp_report(sums_2P, counts_2P)
    margins_P, rounding_P = sums_2P[0] - sums_2P[1], np.zeros(len(pairs))
    base = None if reference is None else in_order_of(pairs.pair_ids, _read(reference)[0], reference)
    if base is not None:
        report |= reward_report(sums_2P, base.sums_2P, counts_2P, beta)
        margins_P, rounding_P = margins_P - (base.sums_2P[0] - base.sums_2P[1]), rounding(counts_2P)
    report |= report_by_data(pairs, margins_P, margins_P > rounding_P)
    ours = figures(pairs, InOrder(pairs, np.arange(len(pairs)), sums_2P), base)
    other = None if against is None else in_order_of(pairs.pair_ids, _read(against)[0], against)
    theirs = None if other is None else figures(pairs, other, base)
    report |= nested({name: figure.value for name, figure in ours.items()})
    report["intervals_95"] = nested(intervals(ours))
    if theirs is not None:
        apart = difference(ours, theirs)
        report["against"] = nested({name: figure.value for name, figure in theirs.items()})
        report["difference"] = nested({name: less for name, (less, _) in apart.items()})
        report["intervals_95"]["difference"] = nested({name: edges for name, (_, edges) in apart.items()})
    earlier = base if other is None else other
    if earlier is not None:
        before_P, after_P = (sums_2P[0] - sums_2P[1] for sums_2P in (earlier.sums_2P, sums_2P))
        report["changed_most"] = changed_most(pairs, before_P, after_P, info, policy)
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


def _read(source: str) -> tuple[Pairs, StreamInfo]:
    with open_reader(source, "policy_scores", "scored_pairs") as reader:
        if reader.warning:
            print(f"margins: warning: {reader.warning}", file=sys.stderr)
        pairs, info = Pairs.of(reader.read_all()), reader.info
    if not len(pairs):
        raise UserError("has no pairs", source=source)
    check_ids(pairs, source)
    check_scores(pairs, source, of="ref_" if info.schema == "scored_pairs" else "")
    return pairs, info


if __name__ == "__main__":
    main()
