"""NVIDIA's Megatron-Bridge writes checkpoints that we read, and reads those that we write: the same weights either way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nemotron_dpo.policy.architecture import Layer
from nemotron_dpo.policy.sublayers.attention import Attention
from nemotron_dpo.sources import resolve
from support import delta_nets, families, hybrid_folders, programs, real_assets, small

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.usefixtures("megatron")]

HYBRIDS = {"hybrid": hybrid_folders.PATTERNS["dense"], "hybrid_moe": hybrid_folders.PATTERNS["experts"]}
READ = ("llama", "mistral", "qwen2", "qwen3", "nemotron", "gemma", "gemma2", "gemma3_text", "hybrid", "hybrid_moe", "qwen3_moe")
WRITTEN = READ[:-2]  # Bridge 0.3.1 exports experts only as Transformer Engine groups them
ALIGNED = "qwen3"
TIED = ("gemma", "gemma2", "gemma3_text")
CHANGES: dict[str, dict] = {
    "mistral": {"sliding_window": 120},
    "gemma2": {"sliding_window": 120},
    "gemma3_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
}
OFF_BY_ONE = (
    "mistral",
    "gemma2",
    "gpt_oss",
)  # Bridge 0.3.1 writes a window one token longer than it should be (its pull request 2656)
# families of which Bridge exports nothing without Transformer Engine: its model of what we write is looked at instead
LATENT = {"n_shared_experts": 1, "q_lora_rank": 24}
COMPARED: dict[str, dict] = {
    "gpt_oss": {  # the only numbers that Bridge has, which does not write positions down, and the only precision
        "dtype": torch.bfloat16,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    "glm4_moe": {"n_shared_experts": 1},  # which Bridge takes for granted
    "deepseek_v2": {**LATENT, "max_position_embeddings": 4096},  # which Bridge says of all
    "deepseek_v3": {**LATENT, "max_position_embeddings": 4096},
    "qwen3_next": {},
}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Let Bridge do a command of bridge_cpu.py."""
    log = tmp_path_factory.mktemp("bridge_cpu") / "log"
    argv = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("bridge_cpu.py"))]
    environment = {**os.environ, "PYTHONPATH": str(real_assets.megatron_bridge()), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with log.open("w") as said:
        server = subprocess.Popen(argv, env=environment, stderr=said, **pipes)

    def convert(verb: str, *arguments: Path) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps([verb, *map(str, arguments)]), file=server.stdin, flush=True)
        answered, _, _ = select.select([server.stdout], [], [], 500)
        assert answered, "Bridge does not end"
        assert server.stdout.readline() == "0\n", log.read_text()[-3000:]

    with server:
        yield convert
        os.killpg(server.pid, signal.SIGKILL)


def export(source: Path, output: Path, form: str) -> Path:
    """Convert in this process."""
    from nemotron_dpo.checkpoint.export import export

    export(resolve(source), output, form, None)
    return output


def align(policy: Path, run: Path, **settings: object) -> Path:
    """The checkpoint after steps of supervised fine-tuning, which needs no reference."""
    pairs = small.write_pairs(run.with_suffix(".arrow"), small.random_pairs(4))
    overrides = ["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "policy.train_global_batch_size=4"]
    overrides += ["dpo.val_at_start=false", "dpo.val_at_end=false", "policy.max_total_sequence_length=128"]
    overrides += ["policy.optimizer.lr=1e-3", "policy.scheduler=null", *(f"{key}={value}" for key, value in settings.items())]
    programs.check("dpo-train", pairs, "--policy", policy, "--run-dir", run, *overrides)
    return run


def same(one: Path, other: Path) -> bool:
    """Whether two HF folders hold equal tensors under equal names."""
    before, after = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert before.keys() == after.keys()
    return all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models of all families that Bridge has in common with us."""
    folder = tmp_path_factory.mktemp("models")
    dense = [name for name in READ if name not in HYBRIDS]
    made = {name: families.write_model(folder / name, name, tied=name in TIED, **CHANGES.get(name, {})) for name in dense}
    return made | {name: hybrid_folders.write_hybrid(folder / name, pattern) for name, pattern in HYBRIDS.items()}


@pytest.fixture(scope="module")
def from_bridge(models: dict[str, Path], bridge: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same as checkpoints, written by Bridge."""
    folder = tmp_path_factory.mktemp("bridge")
    bridge("import", *(path for name in READ for path in (models[name], folder / name)))
    return {name: folder / name for name in READ}


@pytest.fixture(scope="module")
def through_bridge(
    models: dict[str, Path], from_bridge: dict[str, Path], bridge: Callable, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """By family: a policy that we wrote, as HF folder of ours and as HF folder that Bridge made of our checkpoint.

    One of them is what dpo-train made of Bridge's own checkpoint.
    """
    folder = tmp_path_factory.mktemp("through")
    ours = {name: export(models[name], folder / f"{name}-checkpoint", "megatron") for name in WRITTEN if name != ALIGNED}
    settings = {"dpo.max_num_steps": 2, "dpo.max_num_epochs": 2, "policy.precision": "float32"}
    ours[ALIGNED] = align(from_bridge[ALIGNED], folder / "run", **settings) / "checkpoints" / "step_2" / "policy"
    bridge("export", *(path for name in WRITTEN for path in (ours[name], models[name], folder / name)))
    return {name: (export(ours[name], folder / f"{name}-ours", "hf"), folder / name) for name in WRITTEN}


def longer_window(layer: Layer) -> Layer:
    """The layer with a window of one token more, where it has one."""
    assert isinstance(layer.mixer, Attention)
    window = layer.mixer.window
    return layer if window is None else replace(layer, mixer=replace(layer.mixer, window=window + 1))


@pytest.mark.parametrize("name", READ)
def test_what_bridge_writes_is_read(name: str, models: dict[str, Path], from_bridge: dict[str, Path], tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import probe
    from nemotron_dpo.checkpoint.policy import open_policy, read_architecture

    expected = read_architecture(resolve(models[name]))  # whose special tokens Bridge does not record
    expected = replace(expected, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    if name in OFF_BY_ONE:
        expected = replace(expected, layers=tuple(map(longer_window, expected.layers)))
    model = open_policy(resolve(from_bridge[name]), None)
    assert model.architecture == expected
    assert same(export(from_bridge[name], tmp_path / "hf", "hf"), models[name])

    oracle, rows = (hybrid_folders if name in HYBRIDS else families).load(models[name]), probe.rows(2, model.architecture)
    scores = [
        small.reference_logps(oracle, np.array(pair["prompt_ids"]), np.array(pair[side])).detach().numpy()
        for pair in rows.to_pylist()
        for side in ("chosen_ids", "rejected_ids")
    ]
    assert np.abs(probe.score(model, rows) - np.concatenate(scores)).max() < 1e-4


@pytest.mark.parametrize("name", WRITTEN)
def test_what_we_write_is_read_by_bridge(name: str, models: dict, through_bridge: dict[str, tuple[Path, Path]]) -> None:
    ours, bridges = through_bridge[name]
    assert same(ours, bridges)
    assert same(ours, models[name]) == (name != ALIGNED)


def test_a_hybrid_with_experts_that_we_write_is_read_by_bridge(
    models: dict[str, Path], bridge: Callable, tmp_path: Path
) -> None:
    """Expert biases, shared experts and a precision per tensor: as if Bridge had made it of the same folder, bit for bit."""
    bfloat16 = hybrid_folders.write_hybrid(tmp_path / "bfloat16", HYBRIDS["hybrid_moe"], dtype=torch.bfloat16)
    arguments: list[Path] = []
    for number, folder in enumerate((models["hybrid_moe"], bfloat16)):
        arguments += [export(folder, tmp_path / f"checkpoint-{number}", "megatron"), folder]
    bridge("compare", *arguments)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random models of the families in COMPARED, as we write them: transformers leaves keys out that Bridge reads."""
    folder = tmp_path_factory.mktemp("compared")
    written = {}
    for name, changes in COMPARED.items():
        made = folder / f"{name}-made"
        delta_nets.write_model(made, "experts") if name == "qwen3_next" else families.write_model(made, name, **changes)
        written[name] = export(made, folder / name, "hf")
    return written


def test_other_mixtures_that_bridge_writes_are_read(compared: dict[str, Path], bridge: Callable, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import read_architecture

    bridge("import", *(path for name, folder in compared.items() for path in (folder, tmp_path / name)))
    for name, folder in compared.items():
        expected = replace(read_architecture(resolve(folder)), bos_token_id=None, eos_token_id=None, pad_token_id=None)
        if name in OFF_BY_ONE:
            expected = replace(expected, layers=tuple(map(longer_window, expected.layers)))
        assert read_architecture(resolve(tmp_path / name)) == expected, name
        assert same(export(tmp_path / name, tmp_path / f"{name}-hf", "hf"), folder), name


def test_other_mixtures_that_we_write_are_read_by_bridge(compared: dict[str, Path], bridge: Callable, tmp_path: Path) -> None:
    """As if Bridge had made its model of the same folder, bit for bit."""
    ours = {name: export(folder, tmp_path / name, "megatron") for name, folder in compared.items()}
    bridge("compare", *(path for name, folder in compared.items() for path in (ours[name], folder)))


@pytest.mark.real
def test_smollm2_goes_to_us_is_aligned_and_goes_back(bridge: Callable, tmp_path: Path) -> None:
    """As many layers of it as take numbers of two digits."""
    from nemotron_dpo.checkpoint import probe
    from nemotron_dpo.checkpoint.policy import open_policy

    source, theirs = small.first_layers(real_assets.smollm2(), tmp_path / "smollm2", 11), tmp_path / "theirs"
    bridge("import", source, theirs)
    rows, scores = None, []
    for folder in (source, theirs):
        model = open_policy(resolve(folder), "float32")
        rows = rows or probe.rows(2, model.architecture)
        scores.append(probe.score(model, rows))
        del model
    assert np.array_equal(*scores)
    run = align(theirs, tmp_path / "run", **{"dpo.max_num_steps": 1, "checkpointing.save_optimizer": "false"})
    aligned = run / "checkpoints" / "step_1" / "policy"
    bridge("export", aligned, source, tmp_path / "back")
    assert same(export(aligned, tmp_path / "ours", "hf"), tmp_path / "back")
    assert not same(tmp_path / "ours", source)
