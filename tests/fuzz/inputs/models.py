"""What describes a model, its weights and adapters."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any

from fuzz.target import Target, as_json, as_yaml, put


@functools.cache
def sound_configs() -> list[Any]:
    """A config.json of every family."""
    from nemotron_dpo.checkpoint.families import config
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.steps import tiny_hybrid
    from support import decilm
    from support.families import FAMILIES, SIZES

    made = [tiny_hybrid.architecture(96), {**SIZES, **decilm.said()}]
    for kind, own in FAMILIES.items():
        for usual in _USUAL:
            tree = {**usual, **SIZES, **own, "model_type": kind}
            with contextlib.suppress(UserError):
                made.append({**tree, **config.write(config.from_config(tree, Path("config.json")))})
                break
    return made


_EPSILONS = {"rms_norm_eps": 1e-5, "norm_eps": 1e-5, "layer_norm_epsilon": 1e-5}
_USUAL = (  # what configs of families say besides the sizes
    {**_EPSILONS, "hidden_act": "silu", "rope_theta": 1e4},
    {**_EPSILONS, "hidden_act": "silu"},
    {**_EPSILONS, "hidden_act": "relu2", "rope_theta": 1e4},
    {**_EPSILONS, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1e4},
    {**_EPSILONS, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
)


def _read_model_config(folder: Path, content: bytes) -> object:
    from nemotron_dpo import hf_folder
    from nemotron_dpo.checkpoint.families import config

    path = put(folder, "config.json", content)
    hf_folder.honoured_config(folder)
    return config.write(config.read(path.parent))


@functools.cache
def _run_configs() -> list[Any]:
    from nemotron_dpo.checkpoint import adapters, run_config
    from nemotron_dpo.checkpoint.families import config
    from nemotron_dpo.errors import UserError

    made = []
    for tree in sound_configs()[::3]:
        try:
            model, own = run_config._sections(config.from_config(tree, Path("config.json")))
        except UserError:
            continue
        peft = {"_target_": adapters._TARGET, "dim": 8, "alpha": 16, "target_modules": ["linear_qkv"], "lora_dtype": None}
        made.append(
            {
                "checkpoint": {"pretrained_checkpoint": "/b"},
                "model": model,
                "nemotron_dpo": {**own, "base_weights_digest": "sha256:0"},
            }
        )
        made.append({**made[-1], "peft": peft})
    return made


def _read_run_config(folder: Path, content: bytes) -> object:
    from nemotron_dpo.checkpoint import adapters, run_config
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.sources import ModelSource

    put(folder, "run_config.yaml", content)
    source, first = ModelSource("megatron", folder, str(folder)), None
    for read in (run_config.read, lambda folder: source.files_digest(), lambda folder: adapters.read(source)):
        try:
            read(folder)
        except UserError as error:
            first = first or error
    return first


def _headers() -> list[Any]:
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    }
    return [header]


def as_safetensors(header: Any) -> bytes:
    """A file of safetensors with this header and 24 bytes of data."""
    text = as_json(header)
    return len(text).to_bytes(8, "little") + text + bytes(range(24))


def _read_safetensors(folder: Path, content: bytes) -> object:
    from nemotron_dpo import hf_folder
    from nemotron_dpo.checkpoint.hf_files import Weights

    put(folder, "config.json", b"{}")
    put(folder, "model.safetensors", content)
    _ = hf_folder.precision(folder), hf_folder.left_out(folder)
    weights = Weights(folder)
    return [weights.read(key) for key in sorted(weights.keys())]


def _indexes() -> list[Any]:
    return [{"metadata": {"total_size": 24}, "weight_map": {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}}]


def _read_index(folder: Path, content: bytes) -> object:
    from nemotron_dpo.checkpoint.hf_files import Weights

    put(folder, "config.json", b"{}")
    put(folder, "model.safetensors.index.json", content)
    (header,) = _headers()
    for number, name in enumerate(("a.weight", "b")):
        size = 16 if number == 0 else 8
        text = as_json({name: {**header[name], "data_offsets": [0, size]}})
        put(folder, f"model-{number + 1}.safetensors", len(text).to_bytes(8, "little") + text + bytes(size))
    return Weights(folder).keys()


def _integrity() -> list[Any]:
    return [{"algorithm": "sha256", "files": {"a": "00", "tokenizer/tokenizer.json": hashlib.sha256(b"{}").hexdigest()}}]


def _read_integrity(folder: Path, content: bytes) -> object:
    from nemotron_dpo import file_digests

    put(folder, "integrity.json", content)
    put(folder, "tokenizer/tokenizer.json", b"{}")
    return file_digests.check_subfolder(folder / "tokenizer"), file_digests.left_out(folder, "tokenizer")


def _adapter_configs() -> list[Any]:
    return [
        {
            "peft_type": "LORA",
            "base_model_name_or_path": "/b",
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj"],
            "bias": "none",
            "use_rslora": True,
            "alpha_pattern": {"q_proj": 4},
            "init_lora_weights": True,
            "lora_dropout": 0.0,
        }
    ]


def _read_adapter_config(folder: Path, content: bytes) -> object:
    from nemotron_dpo.checkpoint import peft_merge
    from nemotron_dpo.checkpoint.families import config

    put(folder, "adapter_config.json", content)
    return peft_merge.base_of(folder), peft_merge._scales(folder, config.from_config(sound_configs()[0], Path("c")))


TARGETS = (
    Target("config.json", sound_configs, as_json, _read_model_config),
    Target("run_config.yaml", _run_configs, as_yaml, _read_run_config),
    Target("safetensors", _headers, as_safetensors, _read_safetensors),
    Target("safetensors index", _indexes, as_json, _read_index),
    Target("integrity.json", _integrity, as_json, _read_integrity),
    Target("adapter_config.json", _adapter_configs, as_json, _read_adapter_config),
)
