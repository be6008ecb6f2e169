"""What is answered of runs of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.report import single
from nemotron_dpo.report.answers import advice, answers
from nemotron_dpo.report.comparison import page
from nemotron_dpo.report.evidence import checks
from nemotron_dpo.report.markdown import markdown
from nemotron_dpo.report.notes import notes
from nemotron_dpo.report.run_report import read_run
from nemotron_dpo.steps.catalogue import manifest
from support.report_runs import SETTINGS, sightings, train_row, usual_rows, validation_row, write_log, write_run

Rows = list[dict[str, Any]]


def _held_accuracy(share: float, **more: float) -> Rows:
    rows = usual_rows()
    rows[-1] |= {"validation-default/accuracy": share} | {f"validation-default/{name}": value for name, value in more.items()}
    return rows


def _noisy() -> Rows:
    """Margins of a thousandth, with a floor of the mean rewards of one hundredth."""
    return [
        train_row(step, 0.693, rewards_chosen_mean=0.001, rewards_rejected_mean=0.0, reward_noise_floor=0.01)
        for step in range(1, 21)
    ]


def _ties() -> Rows:
    """The same, of the validation too: of its pairs one of ten is right, and all others are ties."""
    noise = {
        f"validation-default/{name}": value
        for name, value in (("rewards_chosen_mean", 0.001), ("rewards_rejected_mean", 0.0), ("reward_noise_floor", 0.01))
    }
    return [*_noisy(), validation_row(20, 0.693, 0.1) | noise]


WARM_UP = {"settings": [*SETTINGS, "policy.scheduler.warmup_steps=50"]}


def _worse() -> Rows:
    rows = usual_rows()
    rows[-1]["validation-default/loss"] = 0.6  # it was 0.55 after step 10
    return rows


# A run -> did it learn, is it safe, what next, and the setting that is to be tried.
RUNS: list[tuple[str, Callable[[], Rows], dict[str, Any], tuple[str, str, str, str]]] = [
    ("well", usual_rows, {}, ("Yes", "No objection found", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
    ("noise", _noisy, {}, ("Nothing measurable", "Cannot be told", "Ten times the learning rate", "policy.optimizer.lr=0.0001")),
    ("ties", _ties, {}, ("Nothing measurable", "Cannot be told", "Ten times the learning rate", "policy.optimizer.lr=0.0001")),
    ("warm-up", _ties, WARM_UP, ("Nothing measurable", "Cannot be told", "A shorter warm-up", "policy.scheduler.warmup_steps=2")),
    ("shorter warm-up", _ties, {"settings": [*SETTINGS, "policy.scheduler.warmup_steps=19"]},
     ("Nothing measurable", "Cannot be told", "Ten times the learning rate", "policy.optimizer.lr=0.0001")),
    ("trained on", usual_rows, {"validation": {"default": {"pairs": 64, "trained_on": 64}}}, ("Yes", "Not as it is", "Hold pairs out", "data.validation.prompt_file=HELD_OUT.jsonl")),
    ("few trained on", usual_rows, {"validation": {"default": {"pairs": 64, "trained_on": 3}}},
     ("Yes", "Look closer first", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
    ("none trained on", usual_rows, {"validation": {"default": {"pairs": 64, "trained_on": 0}}},
     ("Yes", "No objection found", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
    ("others trained on", usual_rows, {"validation": {"b": {"pairs": 64, "trained_on": 64}}},
     ("Yes", "No objection found", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
    ("odd record", usual_rows, {"validation": {"default": {"pairs": "64", "trained_on": None}}},
     ("Yes", "No objection found", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
    ("turned", _worse, {}, ("Yes", "Not as it is", "Fewer steps", "dpo.max_num_steps=10")),
    ("rising", lambda: [train_row(s, 0.7 + s / 50) for s in range(1, 21)], {}, ("No", "Cannot be told", "A greater beta", "dpo.reference_policy_kl_penalty=0.2")),
    ("wrong way round", lambda: _held_accuracy(0.1), {}, ("Only what it saw", "Not as it is", "Look at the pairs", "")),
    ("by chance", lambda: _held_accuracy(0.55), {}, ("Yes", "Look closer first", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
    ("unlearned", lambda: _held_accuracy(0.9, rewards_chosen_mean=-12.0), {}, ("Yes", "Not as it is", "A greater beta", "dpo.reference_policy_kl_penalty=0.2")),
    ("alarmed", usual_rows, {"alarms": [{"kind": "loss", "step": 7, "seen": "the loss is above its start", "remedy": "try beta 0.3", "good_step": 5}]},
     ("Yes", "Not as it is", "What the guards advise", "")),
    ("spiked", usual_rows, {"alarms": [{"kind": "gradient_spike", "step": 7, "seen": "a spike", "remedy": "r", "good_step": 0}]},
     ("Yes", "Look closer first", "A greater beta, and compare", "dpo.reference_policy_kl_penalty=0.2")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rows", "facts", "wanted"), RUNS, ids=[case[0] for case in RUNS])
def test_three_answers(
    kind: str, rows: Callable[[], Rows], facts: dict[str, Any], wanted: tuple[str, ...], tmp_path: Path
) -> None:
    run = read_run(write_run(tmp_path / "run", rows(), **facts))
    learned, safe, following = answers(run)
    assert (learned.answer, safe.answer, following.answer, "".join(following.commands)) == wanted


def test_ties_are_not_called_wrong(tmp_path: Path) -> None:
    said = _texts(write_run(tmp_path / "run", _ties()))
    assert "open Rounding alone may make the margins" in said
    assert "tossing a coin" not in said


def test_without_a_beta_the_rate_is_halved(tmp_path: Path) -> None:
    settings = ["policy.optimizer.lr=1e-5", "dpo.max_num_steps=20", "dpo.preference_loss=orpo"]
    run = read_run(write_run(tmp_path / "run", usual_rows(), settings=settings))
    assert advice(run, checks(run)).setting == "policy.optimizer.lr=5e-06"


def test_the_manifest_is_quoted_in_its_own_words(tmp_path: Path) -> None:
    step = manifest.find_step("rl/nemo_rl/dpo", manifest.discover(manifest.configs_root()))
    words = {strategy["then"] for strategy in step.strategies}
    for rows in (usual_rows(), _worse(), _held_accuracy(0.1), [train_row(s, 0.6) for s in range(1, 5)]):
        why = answers(read_run(write_run(tmp_path / "run", rows)))[2].why
        assert any(then in why for then in words), why


def _texts(run_dir: Path) -> str:
    return "\n".join(f"{check.mark} {check.text}" for check in checks(read_run(run_dir)))


def test_length_is_looked_at_where_pairs_are_on_record(tmp_path: Path) -> None:
    """Margins that are the difference in length, that are not, and pairs whose chosen response is always the longer."""
    run = write_run(tmp_path / "run", usual_rows())
    longer = [20 + (n - 20) for n in range(40)]
    for margins, chosen, said in (
        (
            [n - 20.0 for n in range(40)],
            longer,
            "bad It is right in 100 % of the pairs whose chosen response is the longer, and in 0 % of the others",
        ),
        ([(n * 7) % 5 - 2.0 for n in range(40)], longer, "good Margins hardly follow length"),
        ([abs(n - 20.0) + n for n in range(40)], longer, "open Margins follow the difference in length"),
        ([1.0] * 40, [30] * 40, "open In 100 % of the pairs the chosen response is the longer"),
    ):
        write_log(
            run,
            [
                sightings(0, "validation-default", [0.0] * 40),
                sightings(20, "validation-default", margins, chosen_tokens=chosen),
            ],
        )
        assert said in _texts(run)


def test_other_signs(tmp_path: Path) -> None:
    rows = usual_rows()
    rows[5]["train/grad_norm"] = 30.0  # others have 2
    rows[-2]["train/accuracy"] = 1.0
    said = _texts(write_run(tmp_path / "run", [*rows[:-1], validation_row(20, 0.42, 0.75)]))
    for line in (
        "open The gradient jumped to 30.0 at step 5, 15 times its median.",
        "open It is right in 100 % of the pairs that it trained on last, and in 75 %",
    ):
        assert line in said
    assert "good 75 % of 64 held-out pairs are right (95 % interval 63 % to 84 %)" in said


def test_an_accuracy_has_one_interval_on_the_page(tmp_path: Path) -> None:
    """64 of 64 pairs are right; by hand the interval begins at 64 / (64 + 3.8415) = 0.943."""
    run = write_run(tmp_path / "run", _held_accuracy(1.0))
    write_log(run, [sightings(step, "validation-default", [float(step)] * 64) for step in (0, 20)])
    assert "100 % of 64 held-out pairs are right (95 % interval 94 % to 100 %)" in _texts(run)
    known = read_run(run)
    rows = {row[0]: row for row in single.first_and_last(known).rows}
    assert rows["accuracy"][-1] == "0.943 to 1.000"
    compared = page([known, known]).figures_first.rows
    assert [row[3] for row in compared] == ["1.0000 (0.943 to 1.000)"] * 2


def test_pairs_that_are_trained_on_are_not_called_held_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", usual_rows(), validation={"default": {"pairs": 64, "trained_on": 64}})
    write_log(run, [sightings(step, "validation-default", [float(step)] * 64) for step in (0, 20)])
    said = _texts(run)
    assert "bad 64 of the 64 validation pairs are trained on as well: what it measures of them is no test." in said
    assert "open 88 % of 64 validation pairs are right" in said
    known = read_run(run)
    for whole in (single.page(known), page([known, known])):
        text = markdown(whole)
        assert "validation pairs" in text
        assert [words for words in ("held-out", "held out") if words in text] == []


def test_notes_are_those_that_the_run_gives_reason_for(tmp_path: Path) -> None:
    titles = [note.title for note in notes(read_run(write_run(tmp_path / "run", usual_rows())))]
    assert titles == ["Accuracy is 0 at the start", "Chosen rewards fall while margins rise", "Rewards are without beta"]
    low = ["dpo.reference_policy_kl_penalty=0.05"]
    loss = math.log(2) / 1.5
    rows = [
        train_row(s, loss, accuracy=1.0, rewards_chosen_mean=1.0, rewards_rejected_mean=-9.0, reward_noise=0.4)
        for s in range(1, 5)
    ]
    found = {note.title: note.text for note in notes(read_run(write_run(tmp_path / "run", rows, settings=low)))}
    assert list(found) == ["Rewards are without beta", "Single margins are rounded", "The loss is high and accuracy too"]
    assert "This run's margin of 10.0 is 0.50 there." in found["Rewards are without beta"]
    assert "a margin of 20.0 nats" in found["The loss is high and accuracy too"]  # 1 / beta, where -log sigmoid is 0.31
