"""Routers of mixtures in whole runs: frozen ones and those with an auxiliary loss, in every way of dividing the policy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import families, small
from support.programs import check, losses, metrics, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

SETTINGS = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.sequence_packing.train_mb_tokens=128",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "policy.optimizer.weight_decay=0.1",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=3",
    "dpo.max_num_epochs=2",
    "dpo.val_at_start=false",
    "dpo.val_at_end=false",
)
SCORING = ("--precision", "float32", "--micro-batch-tokens", 128)
FREEZE = "policy.megatron_cfg.freeze_moe_router=true"
KIND, COEFF = "policy.megatron_cfg.moe_router_load_balancing_type", "policy.megatron_cfg.moe_aux_loss_coeff"
TENSOR, PIPELINE = "tensor_model_parallel_size=2 sequence_parallel=true", "pipeline_model_parallel_size=2"
EXPERTS, CONTEXT = "expert_model_parallel_size=2", "context_parallel_size=2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Mixtral and pairs that it has scored."""
    folder = tmp_path_factory.mktemp("routers")
    families.write_model(folder / "policy", "mixtral")
    small.write_pairs(folder / "pairs.arrow", small.random_pairs(24, seed=11))
    check("ref-logprobs", folder / "pairs.arrow", "-o", folder / "scored.arrow", "--policy", folder / "policy", *SCORING)
    return folder


def arguments(data: Path, run: Path, *settings: str) -> tuple[object, ...]:
    return (data / "scored.arrow", "--policy", data / "policy", "--run-dir", run, *SETTINGS, *settings)


@pytest.fixture(scope="module")
def single(data: Path) -> Callable[..., Path]:
    """The run folder of one process with some settings, made once."""

    def made(*settings: str) -> Path:
        folder = data / f"single {' '.join(settings)}".replace("/", " ")
        if not folder.exists():
            check("dpo-train", *arguments(data, folder, *settings))
        return folder

    return made


def assert_same_curve(ours: Path, theirs: Path, tolerance: float) -> None:
    for mine, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert mine.keys() == other.keys()
        for name in (name for name in other if not name.startswith(("timing", "memory"))):
            near_zero = 0 if name in ("train/loss", "train/grad_norm") else tolerance  # rewards start at 0
            assert mine[name] == pytest.approx(other[name], rel=tolerance, abs=near_zero), name


def exported(run: Path) -> dict[str, torch.Tensor]:
    check("ckpt-export", run, "-o", run / "hf", "--to", "hf")
    return load_file(run / "hf" / "model.safetensors")


@pytest.mark.parametrize("layout", [TENSOR, PIPELINE, EXPERTS])
def test_a_frozen_router_leaves_the_run_bit_for_bit_as_it_came(
    layout: str, data: Path, single: Callable[..., Path], tmp_path: Path
) -> None:
    words = [f"policy.megatron_cfg.{word}" for word in layout.split()]
    torchrun(2, "dpo-train", *arguments(data, tmp_path / "run", FREEZE, *words))
    assert_same_curve(tmp_path / "run", single(FREEZE), 1e-4)
    before, after = load_file(data / "policy" / "model.safetensors"), exported(tmp_path / "run")
    unchanged = {name for name in after if torch.equal(after[name], before[name])}
    assert unchanged == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}


def test_a_run_with_frozen_routers_resumes_exactly(data: Path, single: Callable[..., Path], tmp_path: Path) -> None:
    half = arguments(data, tmp_path / "run", FREEZE, "checkpointing.save_optimizer=true", "policy.scheduler.name=constant")
    check("dpo-train", *half, "dpo.max_num_steps=1")
    check("dpo-train", *half)
    whole = single(FREEZE, "policy.scheduler.name=constant")
    for mine, other in zip(metrics(tmp_path / "run"), metrics(whole), strict=True):
        assert mine["train/loss"] == other["train/loss"]
        assert mine["train/grad_norm"] == other["train/grad_norm"]


@pytest.mark.parametrize(
    ("kind", "metric", "layout"),
    [
        ("aux_loss", "load_balancing_loss", ""),
        ("aux_loss", "load_balancing_loss", TENSOR),
        ("aux_loss", "load_balancing_loss", PIPELINE),
        ("aux_loss", "load_balancing_loss", CONTEXT),
        ("seq_aux_loss", "seq_load_balancing_loss", EXPERTS),
        ("global_aux_loss", "global_load_balancing_loss", EXPERTS),
        ("global_aux_loss", "global_load_balancing_loss", TENSOR),
        ("transformers_aux_loss", "aux_loss", PIPELINE),
    ],
)
def test_the_auxiliary_loss_does_not_depend_on_how_the_policy_is_divided(
    kind: str, metric: str, layout: str, data: Path, single: Callable[..., Path], tmp_path: Path
) -> None:
    """A learning rate that moves nothing keeps rounding from growing, so that 1e-5 can be asked of all steps."""
    settings = (f"{KIND}={kind}", f"{COEFF}=0.5", "policy.optimizer.lr=1e-9", "policy.sequence_packing.train_mb_tokens=96")
    words = [f"policy.megatron_cfg.{word}" for word in layout.split()]
    torchrun(2, "dpo-train", *arguments(data, tmp_path / "run", *settings, *words))
    one = single(*settings)
    assert_same_curve(tmp_path / "run", one, 1e-5)
    for record in metrics(one):
        added = 0.5 * record[f"train/moe/{metric}"] * (1 if kind == "transformers_aux_loss" else 2)  # the sum over two layers
        assert record["train/loss"] == pytest.approx(record["train/preference_loss"] + added, rel=1e-6)


def test_by_default_the_loss_has_the_coefficient_of_the_model_and_validation_has_none_of_it(data: Path, tmp_path: Path) -> None:
    """As in NeMo-RL. The scores of the reference pass are those of training: the first preference loss is ln 2."""
    policy = families.write_model(tmp_path / "policy", "mixtral", router_aux_loss_coef=0.25)
    check("ref-logprobs", data / "pairs.arrow", "-o", tmp_path / "scored.arrow", "--policy", policy, *SCORING)
    given = (tmp_path / "scored.arrow", "--policy", policy, "--validation", tmp_path / "scored.arrow", *SETTINGS)
    check("dpo-train", *given, "--run-dir", tmp_path / "run", "dpo.val_at_end=true")
    *steps, validation = metrics(tmp_path / "run")
    assert steps[0]["train/preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    for record in steps:
        added = 0.25 * 2 * record["train/moe/load_balancing_loss"]
        assert record["train/loss"] == pytest.approx(record["train/preference_loss"] + added, rel=1e-6)
    assert validation["validation-default/loss"] == validation["validation-default/preference_loss"]
    assert not any("moe" in name for name in validation)
    check("dpo-train", *given, "--run-dir", tmp_path / "none", f"{KIND}=none")
    assert all(record["train/loss"] == record["train/preference_loss"] for record in metrics(tmp_path / "none"))


def test_gpt_oss_has_no_auxiliary_loss_unless_told_to(tmp_path: Path) -> None:
    """OpenAI's config.json says 0.9, beside which ln 2 is little; Megatron-Bridge and transformers train it without."""
    folder = families.write_model(tmp_path / "policy", "gpt_oss", router_aux_loss_coef=0.9, max_position_embeddings=128)
    small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(8, seed=11))
    check("ref-logprobs", tmp_path / "pairs.arrow", "-o", tmp_path / "scored.arrow", "--policy", folder, *SCORING)
    check("dpo-train", *arguments(tmp_path, tmp_path / "usual"), "dpo.max_num_steps=1")
    check("dpo-train", *arguments(tmp_path, tmp_path / "told"), "dpo.max_num_steps=1", f"{COEFF}=0.9")
    assert losses(tmp_path / "usual") == [pytest.approx(math.log(2), abs=1e-5)]
    assert losses(tmp_path / "told")[0] > math.log(2) + 0.9  # the auxiliary loss of routers in balance is 1
    check("ckpt-export", tmp_path / "usual", "-o", tmp_path / "hf", "--to", "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["router_aux_loss_coef"] == 0.9
