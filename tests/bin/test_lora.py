"""LoRA through the programs: the curve against peft and torch's AdamW, what a step holds, merging, several processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nemotron_dpo.checkpoint.weights_digest import weights_digest
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.sources import resolve, resolve_run
from nemotron_dpo.streams import open_reader
from support import peft_twin, small
from support.programs import check, command, execute_job, losses, torchrun

pytestmark = pytest.mark.slow

LORA = "policy.megatron_cfg.peft={enabled: true, dim: 4, alpha: 8}"
SAVING = "checkpointing={save_period: 2, save_optimizer: true}"
COMMON = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler={name: constant, warmup_steps: 0}",
    "policy.optimizer.lr=0.01",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=4",
    "dpo.max_num_epochs=2",
)


@pytest.fixture(scope="module")
def scored(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 random pairs scored in float32."""
    folder = tmp_path_factory.mktemp("scored")
    small.write_pairs(folder / "pairs.arrow", small.random_pairs(24, seed=11))
    check("ref-logprobs", folder / "pairs.arrow", "-o", folder / "scored.arrow", "--policy", llama, "--precision", "float32")
    return folder / "scored.arrow"


@pytest.fixture(scope="module")
def single(scored: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process."""
    run_dir = tmp_path_factory.mktemp("runs") / "single"
    check("dpo-train", scored, "--policy", llama, "--run-dir", run_dir, *COMMON, LORA, SAVING)
    return run_dir


def read(path: Path) -> Pairs:
    with open_reader(path, "scored_pairs") as reader:
        return Pairs.of(reader.read_all())


def fresh(llama: Path, **settings):
    """The policy that such a run begins with."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, Base, Lora, adapt

    model = open_policy(resolve(llama), "float32")
    adapt(model, Adapted(Lora(dim=4, alpha=8, **settings), Base("base", "digest")), seed=42)
    return model


@pytest.mark.usefixtures("megatron")
def test_loss_curve_equals_peft_and_torch_adamw(single: Path, scored: Path, llama: Path) -> None:
    from nemotron_dpo.preferences.sampler import batch_indices

    pairs, model = read(scored), peft_twin.twin(llama, fresh(llama), 4, 8, share_a=True)
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    curve = []
    for step in range(4):
        margins = []
        for i in batch_indices(step, 24, 8, seed=42, shuffle=True):
            good = small.reference_logps(model, pairs.prompt[i], pairs.chosen[i]).sum() - float(pairs.ref_chosen[i].sum())
            bad = small.reference_logps(model, pairs.prompt[i], pairs.rejected[i]).sum() - float(pairs.ref_rejected[i].sum())
            margins.append(good - bad)
        loss = -torch.nn.functional.logsigmoid(0.3 * torch.stack(margins)).mean()
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    ours = losses(single)
    assert ours[0] == pytest.approx(np.log(2), abs=1e-5)
    assert ours[-1] < 0.6
    assert np.allclose(ours, curve, atol=1e-4)


def test_a_step_holds_the_adapters_alone_and_says_what_lies_beneath(single: Path, llama: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    folder = single / "checkpoints" / "step_4" / "policy" / "iter_0000004"
    keys = set(FileSystemReader(folder).read_metadata().state_dict_metadata)
    layers = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
    names = {f"decoder.layers.{layer}.adapter.{part}.weight" for layer in layers for part in ("linear_in", "linear_out")}
    assert keys == names
    said = yaml.safe_load((folder / "run_config.yaml").read_text())
    assert said["peft"]["_target_"] == "megatron.bridge.peft.lora.LoRA"
    assert (said["peft"]["dim"], said["peft"]["alpha"]) == (4, 8)
    assert said["peft"]["target_modules"] == ["linear_fc1", "linear_fc2", "linear_proj", "linear_qkv"]
    assert said["checkpoint"]["pretrained_checkpoint"] == str(llama)
    assert said["nemotron_dpo"]["base_weights_digest"] == weights_digest(resolve(llama))


@pytest.mark.usefixtures("megatron")
def test_an_interrupted_run_goes_on_exactly(single: Path, scored: Path, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    run_dir = Path(shutil.copytree(single, tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints" / "step_4")
    done = check("dpo-train", scored, "--policy", llama, "--run-dir", run_dir, *COMMON, LORA, SAVING)
    assert b"resuming after step 2 of 4" in done.stderr
    assert losses(run_dir) == losses(single)
    ours, uninterrupted = (open_policy(resolve_run(folder), None).state_dict() for folder in (run_dir, single))
    assert all(torch.equal(ours[name], uninterrupted[name]) for name in ours if not name.endswith("_extra_state"))


@pytest.mark.usefixtures("megatron")
def test_the_exported_folder_computes_what_the_adapters_do(single: Path, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.policy.rows import pack_row

    check("ckpt-export", single, "-o", tmp_path / "hf", "--to", "hf")
    model, pairs = fresh(llama), small.random_pairs(1, seed=3)
    megatron.load(model, resolve_run(single).path)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    with torch.no_grad():
        ours = model.all_logits(row)[: row.segments[0].rejected]
        assert (small.load_llama(tmp_path / "hf")(ids[None]).logits[0] - ours).abs().max() <= 1e-5
        assert (small.load_llama(llama)(ids[None]).logits[0] - ours).abs().max() >= 1e-2


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize(
    "layout",
    [
        "{tensor_model_parallel_size: 2}",
        "{tensor_model_parallel_size: 2, sequence_parallel: true, activation_checkpointing: true}",
        "{pipeline_model_parallel_size: 2}",
        "{context_parallel_size: 2, use_distributed_optimizer: true}",
    ],
)
def test_any_layout_trains_the_same_adapters(layout: str, single: Path, scored: Path, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    settings = (*COMMON, f"policy.megatron_cfg={layout}", LORA)
    torchrun(2, "dpo-train", scored, "--policy", llama, "--run-dir", tmp_path, *settings)
    assert np.allclose(losses(tmp_path), losses(single), atol=1e-5)
    ours, alone = (dict(open_policy(resolve_run(run_dir), None).named_parameters()) for run_dir in (tmp_path, single))
    for name, weight in alone.items():
        assert (ours[name] - weight).abs().max() <= 1e-4, name


@pytest.mark.usefixtures("megatron")
def test_how_much_trains_and_how_the_work_is_divided_is_said(scored: Path, llama: Path, tmp_path: Path) -> None:
    """Parameters as torch counts them in one process; the policy that they stand beside is that of transformers."""
    from transformers import AutoModelForCausalLM

    own = sum(parameter.numel() for parameter in fresh(llama).parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(llama).parameters())
    argv = command("dpo-train", scored, "--policy", llama, "--run-dir", tmp_path, *COMMON, LORA, "dpo.max_num_steps=1")
    done = execute_job(2, [*argv, "policy.megatron_cfg.tensor_model_parallel_size=2"])
    assert done.returncode == 0, done.stderr.decode()
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("dpo-train: training ")]
    share = f"{100 * own / (own + whole):.2g} %"
    assert said[:2] == [
        "dpo-train: training on 2 processes: 2 tensor-parallel",
        f"dpo-train: training {own:,} parameters of adapters (LoRA of rank 4) beside {whole:,} frozen ones: {share}",
    ]
