"""The proof that a run's reference is the policy it starts from: its first batch scored again and compared token by token.

The digests say that the same weights scored the pairs. This says that they still compute the same here: by these kernels, in
this layout, from what was loaded. It costs one forward pass of one batch, once a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.sampler import batch_indices
from nemotron_dpo.training.batches import PairBatch, micro_batches, share
from nemotron_dpo.training.settings import LoopSettings

# How far the log-prob of a token may be off, and the root mean square of all, in nats. Rows are packed otherwise than when the
# pairs were scored, and ranks may divide the policy otherwise. bfloat16 rounds each layer to 3 digits, which an unlikely token
# feels most.
MOST = {"float32": 1e-3, "bfloat16": 8.0}
RMS = {"float32": 1e-4, "bfloat16": 0.3}


@dataclass(frozen=True)
class Difference:
    """The token whose log-prob differs most, on one rank. `token` counts from 1 within its response."""

    nats: float
    pair: int
    side: str
    token: int
    now: float
    scored: float


@dataclass(frozen=True)
class Differences:
    """Of one rank: the largest, the sum of squares, and the numbers of tokens, of those that differ at all among them."""

    largest: Difference | None
    squares: float
    num_tokens: int
    num_different: int


def prove(policy: TrainablePolicy, data: Pairs, settings: LoopSettings, say: Callable[[str], object]) -> None:
    """Raise UserError where `policy` does not give the reference log-probs of the first batch; every rank calls it.

    Where one process computes in float32 on a CPU every bit is due to be the same, and it is said if one is not.
    """
    precision = settings.gate_precision
    if precision is None or data.ref_chosen is None or not settings.num_steps:
        return
    found = _differences(policy, data, settings)
    largest = max((one.largest for one in found if one.largest), key=lambda one: one.nats, default=None)
    num_tokens, num_different = sum(one.num_tokens for one in found), sum(one.num_different for one in found)
    if largest is None or not num_different:
        return
    rms = (sum(one.squares for one in found) / num_tokens) ** 0.5
    counts = f"{num_different} of {num_tokens} tokens of the first batch differ from their reference, by {rms:.2g} nats rms"
    what = f"{counts}, most of all {_described(largest, data)}"
    if not (largest.nats <= MOST[precision] and rms <= RMS[precision]):
        bounds = f"{MOST[precision]:g} nats and {RMS[precision]:g} rms are allowed in {precision}"
        raise UserError(f"{what}; {bounds}", remedy="score the pairs again with ref-logprobs at the same --precision")
    if precision == "float32" and parallel.world_size() == 1 and device().type == "cpu":
        say(f"warning: {what}: in float32 one process gives the same bits, so other kernels or threads scored the pairs")


def _differences(policy: TrainablePolicy, data: Pairs, settings: LoopSettings) -> Sequence[Differences]:
    """Those of every rank."""
    batches = settings.batches
    rows = batch_indices(0, len(data), batches.size, seed=batches.seed, shuffle=batches.shuffle).tolist()
    mine = micro_batches(data, share(policy.model, data, rows), batches.packing)
    logps = policy.evaluate(mine, _unchanged)
    has = parallel.is_last_stage() and parallel.is_first_copy()
    return parallel.gather(_of_rank(mine, logps) if has else Differences(None, 0.0, 0, 0))


def _unchanged(batch: PairBatch, logps_R: Tensor) -> tuple[Tensor, Tensor]:
    return logps_R.sum(), logps_R.detach()


def _of_rank(batches: Sequence[PairBatch], logps: Sequence[Tensor]) -> Differences:
    found = [_of_row(batch, logps_R) for batch, logps_R in zip(batches, logps, strict=True) if batch.pairs]
    largest = max((one.largest for one in found if one.largest), key=lambda one: one.nats, default=None)
    sums = (sum(getattr(one, name) for one in found) for name in ("squares", "num_tokens", "num_different"))
    return Differences(largest, *sums)


def _of_row(batch: PairBatch, logps_R: Tensor) -> Differences:
    """A number that is none differs more than any other."""
    assert batch.ref_logps_R is not None
    scored, now = batch.ref_logps_R.cpu().numpy(), logps_R.float().cpu().numpy()
    off = np.nan_to_num(np.abs(now.astype(np.float64) - scored), nan=np.inf)
    at = int(off.argmax())
    response_R = batch.row.response_R.cpu().numpy()
    response = int(response_R[at])
    token = at - int(np.searchsorted(response_R, response)) + 1
    side = ("chosen", "rejected")[response % 2]
    largest = Difference(float(off[at]), batch.pairs[response // 2], side, token, float(now[at]), float(scored[at]))
    return Differences(largest, float((off**2).sum()), len(off), int((now != scored).sum()))


def _described(one: Difference, data: Pairs) -> str:
    where = f"token {one.token} of the {one.side} response of pair {data.pair_ids[one.pair].hex()} ({data.place(one.pair)})"
    return f"{where}: {one.now:.6g} now, {one.scored:.6g} when scored"
