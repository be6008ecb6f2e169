"""Each detection in a real run of a small policy that has the trouble, and none of them in a run that has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from nemotron_dpo.objective.registry import make
from nemotron_dpo.training.guards import findings
from nemotron_dpo.training.guards.alarm import Alarm
from nemotron_dpo.training.guards.remedies import Tuning
from nemotron_dpo.training.guards.watch import Watch, WatchSettings
from support import small
from support.programs import check

if TYPE_CHECKING:
    import pyarrow as pa

    from nemotron_dpo.objective.protocol import Objective

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

BATCH, STEPS = 8, 30


def _pools() -> dict[str, small.Tokens]:
    """Pairs by what is odd about them."""
    easy, held_out, random = small.random_pairs(64, 1), small.random_pairs(2 * BATCH, 3), np.random.default_rng(4)
    one, other = (small.random_pairs(STEPS * BATCH, seed) for seed in (5, 6))
    words, long = (small.random_pairs(count, seed, longest) for count, seed, longest in ((64, 7, 4), (BATCH, 8, 4)))
    alike = [random.integers(3, small.VOCAB, 40).astype(np.int32) for _ in range(64)]
    return {
        "easy": easy,
        "swapped": replace(easy, chosen=easy.rejected, rejected=easy.chosen),
        "held out": held_out,
        "hard": small.Tokens(one.prompts, one.prompts, other.prompts),  # neither response is better
        "words": words,
        "long": replace(long, chosen=_resized(long.chosen, 90), rejected=_resized(long.rejected, 90)),
        "alike": small.Tokens(
            easy.prompts, alike, [np.concatenate([[3 + i % 9], ids[1:]]).astype(np.int32) for i, ids in enumerate(alike)]
        ),
    }


def _resized(responses: list[np.ndarray], length: int) -> list[np.ndarray]:
    return [np.resize(ids, length) for ids in responses]


POOLS = _pools()
STARTS = dict(zip(POOLS, np.cumsum([0, *(len(tokens.prompts) for tokens in POOLS.values())]).tolist(), strict=False))


def rows(*names: str) -> list[int]:
    """The rows of the pairs of these pools, in their order."""
    return [STARTS[name] + place for name in names for place in range(len(POOLS[name].prompts))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/ and all pairs, scored by it."""
    where = tmp_path_factory.mktemp("provoked")
    small.write_llama(where / "policy")
    sides = ([ids for tokens in POOLS.values() for ids in getattr(tokens, side)] for side in ("prompts", "chosen", "rejected"))
    small.write_pairs(where / "pairs.arrow", small.Tokens(*sides))
    scored = ("-o", where / "scored.arrow", "--policy", where / "policy", "--precision", "float32")
    check("ref-logprobs", where / "pairs.arrow", *scored)
    return where


@dataclass(frozen=True)
class Run:
    """A run of `steps` steps over the rows `order`, again and again, and the trouble that it is to have at first."""

    kind: str
    objective: Objective
    order: Sequence[int] = tuple(rows("easy"))
    lr: float = 3e-3
    steps: int = 30
    rates: Mapping[int, float] = field(default_factory=dict)  # step -> of it and those after it
    validates: bool = False


def _rows(folder: Path, order: Sequence[int]) -> Any:
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.streams import open_reader

    with open_reader(folder / "scored.arrow", "scored_pairs") as reader:
        table: pa.Table = reader.read_all()
    return Pairs.of(table.take(list(order)))


def alarms(folder: Path, run: Run) -> list[Alarm]:
    """What the guards say of `run`."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.training import loop
    from nemotron_dpo.training.carried import Carried
    from nemotron_dpo.training.settings import BatchSettings, LoopSettings, Packing, UpdateSettings, ValidationSettings
    from nemotron_dpo.training.stopping import Stop

    rates = [
        next((run.rates[at] for at in sorted(run.rates, reverse=True) if at <= step), run.lr)
        for step in range(1, run.steps + 1)
    ]
    batches = BatchSettings(BATCH, Packing(None, BATCH), shuffle=False)
    settings = LoopSettings(run.objective, batches, UpdateSettings(rates), ValidationSettings(period=6, at_end=run.validates))
    watch = Watch(
        WatchSettings(
            Tuning(run.lr, rates, getattr(run.objective, "beta", None)),
            compares=run.objective.needs.rejected,
            starts_exactly=None not in run.objective.terms.values(),
        )
    )
    policy = TrainablePolicy(open_policy(resolve(folder / "policy"), "float32"), Optimization(lr=run.lr))
    sets = {"held_out": _rows(folder, rows("held out"))} if run.validates else {}
    made = loop.records(
        policy, _rows(folder, run.order), sets, settings, lambda step: False, stop=Stop(), carried=Carried(run.objective)
    )
    return [alarm for record in made for alarm in watch.take(record)]


DPO = make("dpo", beta=0.1)
HARD = rows("hard")
TROUBLE = {
    "a learning rate 100 times as high": Run(findings.LOSS, DPO, HARD, lr=0.3),
    "the same without a reference": Run(findings.LOSS, make("simpo", beta=2.0, gamma=0.5), HARD, lr=0.3),
    "the same where nothing is compared": Run(findings.LOSS, make("sft"), HARD, lr=3.0),
    "the same of a loss that starts at 25": Run(findings.LOSS, make("ipo", beta=0.1), HARD, lr=0.3),
    "the same of a loss of the whole batch": Run(findings.LOSS, make("aot", beta=0.1), HARD, lr=0.3),
    "a beta of 0.0001": Run(findings.KL_EXPLOSION, make("dpo", beta=1e-4), lr=1e-2, steps=60),
    "responses that differ in one token": Run(findings.CHOSEN, make("dpo", beta=0.01), rows("alike"), lr=1e-2, steps=60),
    "a great beta, and a rate that overshoots": Run(
        findings.KL_COLLAPSE, make("sppo_hard", beta=50.0), rows("alike")[:BATCH], lr=3e-3, rates={5: 1e-3}
    ),
    "a batch of long pairs": Run(findings.GRADIENT, make("sft"), rows("words", "words", "long"), steps=17),
    "pairs that are swapped from some step on": Run(findings.ACCURACY, DPO, rows("easy", "easy", "swapped"), steps=24),
    "pairs that are swapped in training alone": Run(findings.VALIDATION, DPO, rows("swapped"), validates=True),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_what_goes_wrong_is_said(name: str, folder: Path) -> None:
    run = TROUBLE[name]
    said = alarms(folder, run)
    first = next(alarm for alarm in said if alarm.finding.kind == run.kind)
    assert len(first.pairs) == 3
    assert first.remedy.startswith("try ")


@pytest.mark.parametrize("objective", ["dpo", "ipo", "simpo", "aot", "sft", "sppo_hard", "bco_pair"])
def test_a_run_that_goes_well_is_not_spoken_of(objective: str, folder: Path) -> None:
    settings = {"simpo": {"beta": 2.0, "gamma": 0.5}, "sft": {}}.get(objective, {"beta": 0.1})
    run = Run("", make(objective, **settings), lr=1e-3, steps=24, validates=True)
    assert [alarm.lines() for alarm in alarms(folder, run)] == []
