"""Held-out figures by hand: two files of scores of three pairs, joined on pair_id whatever their order."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.inputs import ROUNDINGS
from nemotron_dpo.preferences import figures
from nemotron_dpo.preferences.changed_lines import changed_lines
from nemotron_dpo.preferences.margins import write_report
from nemotron_dpo.streams import StreamInfo, open_writer
from support import small
from support.programs import execute
from support.responses import by_response

# pair -> log-probs of (chosen, rejected) tokens. Sums: a (-3, -4), b (-6, -1), c (-2, -2).
POLICY = {"a": ([-1.0, -2.0], [-4.0]), "b": ([-1.0, -2.0, -3.0], [-1.0]), "c": ([-2.0], [-1.0, -1.0])}
# Sums: c (-2, -2), a (-4, -3), b (-10, -2).
REFERENCE = {"c": ([-2.0], [-1.0, -1.0]), "a": ([-2.0, -2.0], [-3.0]), "b": ([-5.0, -3.0, -2.0], [-2.0])}


def _row(prompt: list[int], chosen: list[int], rejected: list[int], *logps: list[float]) -> dict:
    ids = dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), (prompt, chosen, rejected), strict=True))
    scores = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), logps, strict=True))
    flags = {"chosen_truncated": False, "rejected_truncated": False}
    return {"pair_id": small.pair_id(prompt, chosen, rejected), "source_line": 1, **ids, **flags, **scores}


def _write(path: Path, scores: dict[str, tuple[list[float], list[float]]], about: dict[str, dict] | None = None) -> str:
    rows = [
        _row([1], [2] * len(chosen), [3] * len(rejected), chosen, rejected) | (about or {}).get(name, {})
        for name, (chosen, rejected) in scores.items()
    ]
    with open_writer(path, StreamInfo("scored_pairs", "tests", "0")) as writer:
        for row in rows:  # a batch each, so that columns are joined from several
            writer.write(pa.RecordBatch.from_pylist([row], schema=writer.schema))
    return str(path)


def test_rewards_of_the_rows_and_accuracy_by_source(tmp_path: Path):
    """Margins of the policy are 1, -5, 0 alone and 2, 3, 0 over the reference; those of the rows 2, -1 and none."""
    about = {
        "a": {"source": "x", "chosen_reward": 5.0, "rejected_reward": 3.0},
        "b": {"source": "y", "chosen_reward": 0.0, "rejected_reward": 1.0},
        "c": {"source": "y", "chosen_reward": 1.0},
    }
    policy, reference = _write(tmp_path / "policy.arrow", POLICY, about), _write(tmp_path / "reference.arrow", REFERENCE)
    for other, correlation, accuracy in ((reference, -1.0, {"x": 1.0, "y": 0.5}), (None, 1.0, {"x": 1.0, "y": 0.0})):
        write_report(policy, other, 0.5, tmp_path / "scores.json")
        report = json.loads((tmp_path / "scores.json").read_text())
        expected = {"pairs": 2, "margin_mean": 0.5, "correlation": correlation}
        assert report["row_rewards"] == pytest.approx(expected)
        assert report["accuracy_by_source"] == accuracy


_KLS = ("kl_chosen_per_token", "kl_rejected_per_token")


def test_figures_by_hand(tmp_path: Path):
    policy, reference = _write(tmp_path / "policy.arrow", POLICY), _write(tmp_path / "reference.arrow", REFERENCE)
    write_report(policy, reference, 0.5, tmp_path / "scores.json")
    # Sums: a is right, b wrong, c a tie, which is wrong. Per token: a -1.5 > -4, b -2 < -1, c -2 < -1.
    # Rewards, policy - reference: a (1, -1), b (4, 1), c (0, 0). Margins: 2, 3, 0; beta 0.5 enters the loss alone.
    report = json.loads((tmp_path / "scores.json").read_text())
    kls = [report.pop(f"kl_{side}_per_token") for side in ("chosen", "rejected")]
    # log(reference / policy) of the tokens: chosen a -1, 0; b -4, -1, 1; c 0. Rejected: a 1; b -1; c 0, 0.
    k3 = [[math.expm1(log_r) - log_r for log_r in side] for side in ([-1, 0, -4, -1, 1, 0], [1, -1, 0, 0])]
    assert kls == pytest.approx([sum(side) / len(side) for side in k3])
    del report["changed_most"]  # see below
    assert report.pop("intervals_95").keys() == {"accuracy", "reward_margin_mean", *_KLS, "accuracy_by_length"}
    assert report.pop("accuracy_by_length") == {"1-32": 2 / 3}
    assert report == pytest.approx(
        {
            "pairs": 3,
            "logp_accuracy": 1 / 3,
            "logp_per_token_accuracy": 1 / 3,
            "chosen_logp_per_token": (-1.5 - 2 - 2) / 3,
            "rejected_logp_per_token": (-4 - 1 - 1) / 3,
            "beta": 0.5,
            "accuracy": 2 / 3,
            "loss": (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1.5)) + math.log(2)) / 3,
            "reward_margin_mean": 5 / 3,
            "reward_margin_median": 2.0,
            "rewards_chosen_mean": 5 / 3,
            "rewards_rejected_mean": 0.0,
        }
    )


def test_rewards_are_those_of_training(tmp_path: Path):
    """One name, one meaning: the same pairs through the objective's own metrics."""
    import torch

    from nemotron_dpo.objective import metrics
    from nemotron_dpo.objective.inputs import loss_inputs
    from nemotron_dpo.objective.losses.dpo import Dpo

    policy, reference = _write(tmp_path / "policy.arrow", POLICY), _write(tmp_path / "reference.arrow", REFERENCE)
    write_report(policy, reference, 0.5, tmp_path / "scores.json")
    order = [(name, side) for name in POLICY for side in (0, 1)]
    logps, refs = (
        torch.tensor([logp for name, side in order for logp in scores[name][side]]) for scores in (POLICY, REFERENCE)
    )
    response_R = torch.tensor([i for i, (name, side) in enumerate(order) for _ in POLICY[name][side]])
    pairs, objective = loss_inputs(logps, refs, by_response(response_R, 3)), Dpo(0.5)
    sums = metrics.sums(objective.losses(pairs), pairs)
    means = metrics.means({name: value.item() for name, value in sums.items()}, objective)
    report = json.loads((tmp_path / "scores.json").read_text())
    for name in ("loss", "accuracy", "rewards_chosen_mean", "rewards_rejected_mean"):
        assert report[name] == pytest.approx(means[name]), name


def test_without_a_reference_there_are_no_rewards(tmp_path: Path):
    write_report(_write(tmp_path / "policy.arrow", POLICY), None, 0.5, tmp_path / "scores.json")
    assert "accuracy" not in json.loads((tmp_path / "scores.json").read_text())


def test_missing_pairs_are_counted(tmp_path: Path):
    policy = _write(tmp_path / "policy.arrow", POLICY)
    reference = _write(tmp_path / "reference.arrow", {"a": REFERENCE["a"]})
    with pytest.raises(UserError, match=r"reference\.arrow: lacks 2 of the 3 pairs of the policy's file: score the same"):
        write_report(policy, reference, 0.5, tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_mistake_is_one_line(tmp_path: Path):
    argv = [sys.executable, "-m", "nemotron_dpo.preferences.margins", str(tmp_path / "none"), "-o", str(tmp_path / "out")]
    done = execute(argv)
    assert (done.returncode, done.stderr.decode()) == (1, f"margins: error: {tmp_path}/none: no such file\n")


def test_a_margin_within_rounding_is_no_preference(tmp_path: Path):
    """As in training: the bound is that of objective.inputs, here for 2 + 2 tokens."""
    assert figures.TOKEN_ROUNDING == ROUNDINGS * 2.0**-24
    bound = 2 * figures.TOKEN_ROUNDING
    reference = {"a": ([-1.0, 0.0], [-1.0, 0.0]), "b": ([-1.0, 0.0], [-1.0, 0.0])}
    policy = {"a": ([-1.0 + 0.9 * bound, 0.0], [-1.0, 0.0]), "b": ([-1.0 + 1.1 * bound, 0.0], [-1.0, 0.0])}
    files = _write(tmp_path / "policy.arrow", policy), _write(tmp_path / "reference.arrow", reference)
    write_report(*files, 0.5, tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["accuracy"] == 0.5


def test_two_checkpoints_are_compared_pair_by_pair(tmp_path: Path):
    """The second one's margins over the reference are a 2, b -1, c 1, and this one's 2, 3, 0; the file is in another order."""
    other = {"c": ([-1.0], [-1.0, -1.0]), "b": ([-4.0, -3.0, -2.0], [0.0]), "a": POLICY["a"]}
    files = [_write(tmp_path / f"{n}.arrow", scores) for n, scores in enumerate((POLICY, REFERENCE, other))]
    write_report(files[0], files[1], 0.5, tmp_path / "scores.json", files[2])
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["against"]["reward_margin_mean"] == pytest.approx(2 / 3)
    assert report["against"]["accuracy"] == pytest.approx(2 / 3)
    assert report["difference"]["reward_margin_mean"] == pytest.approx(1.0)
    assert report["difference"]["accuracy"] == pytest.approx(0.0)
    assert report["difference"]["accuracy_by_length"] == {"1-32": pytest.approx(0.0)}
    # a draw of three is all a, b or c at 1 / 27 each, more often than 2.5 %: so the interval spans 0 - 1 = -1 to 3 + 1 = 4
    assert report["intervals_95"]["difference"]["reward_margin_mean"] == pytest.approx([-1.0, 4.0])
    write_report(files[0], files[1], 0.5, tmp_path / "same.json", files[0])
    same = json.loads((tmp_path / "same.json").read_text())
    assert same["difference"]["accuracy"] == 0.0
    assert same["intervals_95"]["difference"]["accuracy"] == [0.0, 0.0]


def test_buckets_are_of_the_longer_response_and_of_sources_with_slashes(tmp_path: Path):
    lengths = {"32": (32, 1), "33": (1, 33), "128": (128, 2), "129": (129, 129), "2049": (5, 2049)}
    scores = {name: ([-1.0] * chosen, [-2.0] * rejected) for name, (chosen, rejected) in lengths.items()}
    about = {name: {"source": "org/a" if name in ("32", "129") else "b"} for name in scores}
    write_report(_write(tmp_path / "policy.arrow", scores, about), None, 0.5, tmp_path / "scores.json")
    report = json.loads((tmp_path / "scores.json").read_text())
    # of 33 against 32 tokens and so on, the sum is the lower where -1 n < -2 m
    right = {name: float(-chosen > -2 * rejected) for name, (chosen, rejected) in lengths.items()}
    assert right == {"32": 0.0, "33": 1.0, "128": 0.0, "129": 1.0, "2049": 1.0}
    assert report["accuracy_by_length"] == {"1-32": 0.0, "33-128": 0.5, "129-512": 1.0, "over 2048": 1.0}
    assert report["accuracy_by_source"] == {"org/a": 0.5, "b": pytest.approx(2 / 3)}
    assert report["intervals_95"]["accuracy_by_length"]["over 2048"] == pytest.approx([0.2065, 1.0], abs=1e-4)
    assert (
        report["intervals_95"]["logp_margin_mean"][0]
        < report["logp_margin_mean"]
        < report["intervals_95"]["logp_margin_mean"][1]
    )


def test_the_pairs_that_changed_most_are_told_in_both_directions(tmp_path: Path):
    """By hand, margins of log-probs: under the policy a 1, b -5, c 0; the reference a -1, b -8, c 0; another a 1, b -9, c 1."""
    other = {"c": ([-1.0], [-1.0, -1.0]), "b": ([-4.0, -3.0, -2.0], [0.0]), "a": POLICY["a"]}
    about = {name: {"source_line": line, "source": "rows.jsonl"} for line, name in enumerate("abc", start=1)}
    policy = _write(tmp_path / "policy.arrow", POLICY, about)
    reference, against = (_write(tmp_path / f"{n}.arrow", scores) for n, scores in enumerate((REFERENCE, other)))
    for files, improved, regressed in [
        ((reference, 0.5, tmp_path / "scores.json", None), [(2, -8.0, -5.0), (1, -1.0, 1.0)], []),
        ((reference, 0.5, tmp_path / "scores.json", against), [(2, -9.0, -5.0)], [(3, 1.0, 0.0)]),
    ]:
        write_report(policy, *files)
        found = json.loads((tmp_path / "scores.json").read_text())["changed_most"]
        shown = [[(one["line"], one["before"], one["after"]) for one in found[name]] for name in ("improved", "regressed")]
        assert shown == [improved, regressed]
        assert found["texts"] == f"not shown: {policy}: does not say which tokenizer made it: name it with --tokenizer"
    assert changed_lines(found) == [
        f"texts not shown: {policy}: does not say which tokenizer made it: name it with --tokenizer",
        "improved most:",
        "  line 2 of rows.jsonl: margin -9.000 -> -5.000",
        "regressed most:",
        "  line 3 of rows.jsonl: margin 1.000 -> 0.000",
    ]
    write_report(policy, None, 0.5, tmp_path / "scores.json")
    assert "changed_most" not in json.loads((tmp_path / "scores.json").read_text())


def test_texts_are_short_and_nothing_in_them_is_obeyed_by_a_terminal():
    pair = {
        "line": 1,
        "source": "",
        "before": 0.0,
        "after": 1.0,
        "prompt": "a\x1b[31m\nb\u202e",
        "chosen": "c " * 99,
        "rejected": "",
    }
    assert changed_lines({"improved": [pair] * 5, "regressed": []}, number=1, width=20) == [
        "improved most:",
        "  line 1 of the input: margin 0.000 -> 1.000",
        "    prompt: a [31m b",
        "    chosen: c c c c c c c c ...",
        "    rejected: (empty)",
        "regressed: none",
    ]
