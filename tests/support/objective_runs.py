"""Short runs of objectives on a small random policy, in this process or as the ranks of a job, to see what divides them.

As a program (`execute_job` starts it): FOLDER LAYOUT PAIRS_PER_ROW. It trains each of `DIVIDED` on FOLDER/scored.arrow from
FOLDER/policy, and the first rank prints the records of all as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import orjson
import pyarrow as pa

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.objective.modified import modified
from nemotron_dpo.objective.protocol import FirstReading, Needs, Objective, PairLosses
from nemotron_dpo.objective.registry import find, make
from nemotron_dpo.objective.weighted_sum import mixture
from support import small

if TYPE_CHECKING:
    from nemotron_dpo.objective.inputs import LossInputs
    from nemotron_dpo.policy.layout import Layout
    from nemotron_dpo.policy.trainable import TrainablePolicy
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.training.record import Record
    from nemotron_dpo.training.settings import LoopSettings, Packing

NUM_PAIRS, BATCH, STEPS, GROUP = 14, 6, 2, 4
BETA = 0.3
LR, EPS = 1e-2, 0.1  # an eps so large that Adam does not make a gradient that is rounding as large as any other


@dataclass(frozen=True)
class Shifted:
    """A loss of each pair alone that a running mean of earlier batches' log-ratios shifts."""

    mean: float = 0.0
    needs = Needs(reference=True, state=True)

    @property
    def terms(self) -> Mapping[str, FirstReading | None]:
        return {"shifted": None}

    @property
    def state(self) -> Mapping[str, float]:
        return {"mean": self.mean}

    def with_state(self, state: Mapping[str, float]) -> Self:
        return replace(self, mean=state["mean"])

    def after(self, batch: LossInputs) -> Self:
        values = (batch.chosen.log_ratio + batch.rejected.log_ratio).double()
        return replace(self, mean=0.9 * self.mean + 0.1 * values.mean().item())

    def losses(self, pairs: LossInputs) -> PairLosses:
        from torch.nn.functional import logsigmoid

        chosen, rejected = pairs.chosen.log_ratio - self.mean, pairs.rejected.log_ratio - self.mean
        loss = -logsigmoid(BETA * chosen) - logsigmoid(-BETA * rejected)
        return PairLosses(loss, {"shifted": loss}, pairs.rewards())


def _objectives() -> dict[str, Objective]:
    """Of each kind that training treats in a way of its own, by the terms of the loss."""
    aot, bco, sft = make("aot", beta=BETA), make("bco", beta=BETA), make("sft", average=True)
    mpo = [("dpo", 0.8, Dpo(BETA)), ("bco", 0.2, bco), ("aot", 0.5, aot), ("sft", 1.0, sft)]
    dpo = [(find("dpo"), Dpo(BETA))]
    return {
        "dpo": Dpo(BETA),
        "simpo": make("simpo", beta=2.0),
        "aot": aot,
        "beta_dpo": make("beta_dpo", beta=BETA),
        "bco": bco,
        "mixture": mixture(mpo),
        "shortened": modified([(find("aot"), aot)], ld_alpha=0.3)[0],
        "weighted": modified(dpo, wpo_weighting=True)[0],
        "shifted": Shifted(),
    }


OBJECTIVES = _objectives()
DIVIDED = tuple(name for name in OBJECTIVES if name not in ("dpo", "aot", "bco"))  # the mixture has these as terms


def write(folder: Path, scores: Sequence[Sequence[np.ndarray]] | None = None) -> Path:
    """policy/ and scored.arrow, by `scores` of chosen and rejected responses or by those of no policy at all."""
    from nemotron_dpo.streams import StreamInfo, open_writer

    small.write_llama(folder / "policy")
    tokens, random = small.random_pairs(NUM_PAIRS, seed=11), np.random.default_rng(12)
    tokens.prompts[3] = random.integers(3, small.VOCAB, size=80).astype(np.int32)  # so that replicas share pairs unevenly
    if scores is None:
        sides = (tokens.chosen, tokens.rejected)
        scores = [[_scores(random, len(ids)) for ids in side] for side in sides]
    with open_writer(folder / "scored.arrow", StreamInfo("scored_pairs", "tests", "0")) as writer:
        rows = [
            {
                "pair_id": small.pair_id(prompt, chosen, rejected),
                "source_line": line,
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "chosen_truncated": False,
                "rejected_truncated": False,
                "ref_chosen_logps": ref_chosen,
                "ref_rejected_logps": ref_rejected,
            }
            for line, (prompt, chosen, rejected, ref_chosen, ref_rejected) in enumerate(
                zip(tokens.prompts, tokens.chosen, tokens.rejected, *scores, strict=True), start=1
            )
        ]
        writer.write(pa.RecordBatch.from_pylist(rows, schema=writer.schema))
    return folder


def _scores(random: np.random.Generator, count: int) -> np.ndarray:
    """Of a reference that likes some responses better than others, or length alone would decide how differences are sorted."""
    return random.normal(random.uniform(-6.5, -2.5), 0.5, count).astype(np.float32)


def read_pairs(folder: Path) -> Pairs:
    """The pairs that `write` wrote."""
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.streams import open_reader

    with open_reader(folder / "scored.arrow", "scored_pairs") as reader:
        return Pairs.of(reader.read_all())


def open_trainable(policy: Path) -> TrainablePolicy:
    """A policy of the layout that `parallel` was initialized for, with its optimizer."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve

    return TrainablePolicy(open_policy(resolve(policy), "float32"), Optimization(lr=LR, eps=EPS))


def settings(objective: Objective, packing: Packing, num_steps: int = STEPS) -> LoopSettings:
    """A validation before and after every step, whose groups do not divide the pairs."""
    from nemotron_dpo.training.settings import BatchSettings, LoopSettings, UpdateSettings, ValidationSettings

    validation = ValidationSettings(period=1, batches=0, batch_size=GROUP)
    return LoopSettings(objective, BatchSettings(BATCH, packing), UpdateSettings([LR] * num_steps), validation)


def records(folder: Path, objective: Objective, packing: Packing) -> Iterator[dict[str, float]]:
    """Those of a run with these `settings`."""
    return records_of(folder, settings(objective, packing))


def records_of(folder: Path, told: LoopSettings) -> Iterator[dict[str, float]]:
    """What is `repeatable` of each step and validation, and what is known of each of its pairs, as "pair PLACE NAME"."""
    from nemotron_dpo.training import loop
    from nemotron_dpo.training.carried import Carried
    from nemotron_dpo.training.stopping import Stop

    pairs, policy, carried = read_pairs(folder), open_trainable(folder / "policy"), Carried(told.objective)
    for record in loop.records(policy, pairs, {"same": pairs}, told, lambda step: False, stop=Stop(), carried=carried):
        yield {**repeatable(record), **_of_pairs(record)}


def _of_pairs(record: Record) -> dict[str, float]:
    assert record.pairs is not None
    columns = {"row": record.pairs.rows, **record.pairs.by_name}
    return {f"pair {place} {name}": float(value) for name, values in columns.items() for place, value in enumerate(values)}


def repeatable(record: Record) -> dict[str, float]:
    """All numbers but times, and but the noise of rewards, which is measured on the first micro batch of each rank."""
    left_out = {"timing", "memory", "reward_noise"}
    return {name: value for name, value in record.values.items() if not left_out & set(name.split("/"))
            and "noise_floor" not in name}  # fmt: skip


def main(folder: Path, layout: Layout, packing: Packing) -> None:
    """As the module says."""
    from nemotron_dpo.policy import parallel

    with parallel.joined():
        parallel.initialize(layout)
        curves = {name: list(records(folder, OBJECTIVES[name], packing)) for name in DIVIDED}
        if parallel.rank() == 0:
            sys.stdout.write(orjson.dumps(curves).decode())


if __name__ == "__main__":
    from nemotron_dpo.policy.layout import Layout
    from nemotron_dpo.training.settings import Packing

    main(Path(sys.argv[1]), Layout(**json.loads(sys.argv[2])), Packing(None, int(sys.argv[3])))
