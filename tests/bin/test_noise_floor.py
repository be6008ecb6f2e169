"""Rewards within rounding: none is a preference at step 1, and a run says what it does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.preferences.figures import summed
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.streams import open_reader
from support import small
from support.programs import check, metrics

pytestmark = pytest.mark.slow

COMMON = (
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.max_num_steps=2",
    "checkpointing.enabled=false",
)


@pytest.fixture(scope="module")
def scored(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """24 random pairs by precision, scored in rows of few pairs."""
    folder = tmp_path_factory.mktemp("scored")
    pairs = small.write_pairs(folder / "pairs.arrow", small.random_pairs(24, seed=11))
    files = {precision: folder / f"{precision}.arrow" for precision in ("float32", "bfloat16")}
    for precision, file in files.items():
        settings = ("--policy", llama, "--precision", precision, "--micro-batch-tokens", 70)
        check("ref-logprobs", pairs, "-o", file, *settings)
    return files


def sums(path: Path) -> np.ndarray:
    with open_reader(path, "scored_pairs") as reader:
        return summed(Pairs.of(reader.read_all()))[0]


def test_no_preference_at_step_1_and_a_noise_floor(scored: dict[str, Path], llama: Path, tmp_path: Path) -> None:
    """However differently rows are packed."""
    noise = {}
    for precision, file in scored.items():
        settings = (*COMMON, f"policy.precision={precision}", "policy.sequence_packing.train_mb_tokens=400")
        arguments = (file, "--policy", llama, "--run-dir", tmp_path / precision, "--validation", file)
        done = check("dpo-train", *arguments, *settings)
        start, first, second, end = metrics(tmp_path / precision)
        assert start["validation-default/accuracy"] == first["train/accuracy"] == 0.0
        assert "validation-default/reward_noise_floor" not in start  # it is measured with the first step
        noise[precision] = sigma = first["train/reward_noise"]
        floor = 2 * sigma / 8**0.5  # two standard errors of a mean of 8
        assert first["train/reward_noise_floor"] == second["train/reward_noise_floor"] == pytest.approx(floor)
        assert end["validation-default/reward_noise_floor"] == pytest.approx(2 * sigma / 24**0.5)
        said = f"noise floor: a response's reward is known to {sigma:.2g} nats in {precision} (rms): a mean over 8 pairs below "
        assert done.stderr.decode().count(f"{said}{floor:.2g} is noise\n") == 1
    # a unit in the last place is 2^16 times as much in bfloat16; rewards change by about what they are away from float32's
    assert 2**12 < noise["bfloat16"] / noise["float32"] < 2**20
    away = np.sqrt(np.square(sums(scored["bfloat16"]) - sums(scored["float32"])).mean())
    assert away / 8 < noise["bfloat16"] < away * 8
