"""What is easily misread in a run of preference optimization, said where the run shows it."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_dpo.outcome import margin
from nemotron_dpo.report.document import Note
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.visible import number


def notes(run: Run) -> tuple[Note, ...]:
    """Those that this run gives reason for."""
    return (*_first_accuracy(run), *_falling(run), *_beta(run), *_noise(run), *_loss_of_beta(run))


def _first_accuracy(run: Run) -> Iterator[Note]:
    starts = [values["accuracy"].first for values in (run.measured.train, *run.measured.sets.values()) if "accuracy" in values]
    if starts and min(starts) == 0.0 and run.measured.made.ends.last.get("accuracy"):
        text = (
            "Before the first update the policy is the reference, so both rewards of every pair are 0 and none is the greater. "
            "Accuracy counts pairs whose chosen reward is greater, so it starts at 0 and not at one half. It means "
            "nothing yet. "
            "The first loss is ln 2 = 0.6931 for the same reason."
        )
        yield Note("Accuracy is 0 at the start", text)


def _falling(run: Run) -> Iterator[Note]:
    name = run.measured.validation
    values = run.measured.sets[name] if name else run.measured.train
    chosen, gained = values.get("rewards_chosen_mean"), margin(run.measured.made.ends.last)
    if chosen is None or chosen.last >= 0 or not gained or gained <= 0:
        return
    rejected = values.get("rewards_rejected_mean")
    text = (
        f"The mean chosen reward is {number(chosen.last, 2)} and the rejected one "
        f"{number(rejected.last if rejected else None, 2)} nats. "
        "The loss asks for a difference, not for likely responses: the cheapest way is to make rejected responses less likely, "
        "and chosen ones, which share words with them, lose a little too. A little is usual. Where chosen responses "
        "lose much, add "
        "an sft term (dpo.sft_loss_weight), or raise beta."
    )
    yield Note("Chosen rewards fall while margins rise", text)


def _beta(run: Run) -> Iterator[Note]:
    gained, beta = margin(run.measured.made.ends.last), run.given.beta
    if not gained:
        return
    scaled = f" This run's margin of {number(gained, 2)} is {number(gained * beta, 2)} there." if beta else ""
    text = (
        "Rewards and margins here are differences of log-probabilities in nats, as NeMo-RL has them, and are not multiplied by "
        f"beta. TRL multiplies by beta before it logs rewards/margins.{scaled} So runs with different betas can be "
        "compared here."
    )
    yield Note("Rewards are without beta", text)


def _noise(run: Run) -> Iterator[Note]:
    noise = run.measured.train.get("reward_noise")
    if noise is not None and noise.first > 0.01:
        text = (
            f"In the precision of this run the reward of a response is known to {number(noise.first, 2)} nats. Margins "
            "of single "
            "pairs below that are rounding; means over many pairs are better known."
        )
        yield Note("Single margins are rounded", text)


def _loss_of_beta(run: Run) -> Iterator[Note]:
    beta, loss = run.given.beta, run.measured.made.ends.last.get("loss")
    if (
        beta is not None
        and beta <= 0.05
        and loss is not None
        and loss > 0.3
        and (run.measured.made.ends.last.get("accuracy") or 0) > 0.8
    ):
        text = (
            f"With beta {beta:g} a margin of {number(1 / beta, 0)} nats is needed to bring the loss of a pair from 0.69 "
            "to 0.31. So the loss "
            "stays high while nearly all pairs are right. Losses of runs with different betas must not be compared."
        )
        yield Note("The loss is high and accuracy too", text)
