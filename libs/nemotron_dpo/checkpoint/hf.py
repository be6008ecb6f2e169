"""Load an HF folder into this rank's share of a model, and write a whole model as an HF folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import torch
from megatron.core import parallel_state
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nemotron_dpo.checkpoint.hf_weights import Rule, rules
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def load(model: nn.Module, shape: Architecture, folder: Path) -> None:
    """Fill `model` (one rank's shard of a GPTModel) from the safetensors in `folder`, one parameter at a time.

    Raises UserError where a file is missing or damaged, or a tensor is missing or of another shape.
    """
    weights = _Weights(folder)
    for name, parameter, rule, layer in _named_rules(model, shape):
        parts = [weights.read(key.format(layer)) for key in rule.hf]
        shard = _shard(rule.merge(shape, parts), parameter, paired=len(rule.hf) == 2)
        if shard.shape != parameter.shape:
            what = f"{' + '.join(rule.hf).format(layer)} gives {tuple(shard.shape)}; {name} is {tuple(parameter.shape)}"
            raise UserError(what, source=folder, remedy="does config.json belong to these weights?")
        with torch.no_grad():
            parameter.copy_(shard)


def save(model: nn.Module, shape: Architecture, folder: Path, dtype: torch.dtype, tokenizer: Path | None) -> None:
    """Write `model` (whole, TP = PP = 1) into the existing folder as config.json, safetensors and tokenizer files.

    Raises UserError where the weights cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for _, parameter, rule, layer in _named_rules(model, shape):
        for key, part in zip(rule.hf, rule.split(shape, parameter.detach()), strict=True):
            tensors[key.format(layer)] = part.to(dtype).contiguous()
    config = {**shape.to_hf(), "dtype": _name(dtype), "torch_dtype": _name(dtype)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot be written ({error})", remedy="is the disk full?") from None
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes 0600, whatever the umask
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(source: Path | None, folder: Path) -> None:
    """Copy the tokenizer files of `source`, where it has any, into `folder`."""
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


class _Weights:
    """The tensors of one HF folder, single-file or sharded with an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, safe_open] = {}
        index = folder / "model.safetensors.index.json"
        self._file_of = orjson.loads(index.read_bytes())["weight_map"] if index.is_file() else {}

    def read(self, key: str) -> Tensor:
        name = self._file_of.get(key, "model.safetensors")
        path = self.folder / name
        try:
            if name not in self._open:
                self._open[name] = safe_open(path, framework="pt")
            return self._open[name].get_tensor(key)
        except FileNotFoundError:
            raise UserError("is missing", source=path, remedy="only safetensors weights are read") from None
        except SafetensorError as error:
            raise UserError(f"cannot give {key} ({error})", source=path, remedy="is the download complete?") from None


def _named_rules(model: nn.Module, shape: Architecture) -> Iterator[tuple[str, nn.Parameter, Rule, int]]:
    """(name, parameter, its rule, its global layer number) for every parameter this rank holds."""
    first = parallel_state.get_pipeline_model_parallel_rank() * (
        shape.num_layers // parallel_state.get_pipeline_model_parallel_world_size()
    )
    by_name = {rule.megatron: rule for rule in rules(shape)}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        layer = int(words[2]) if name.startswith("decoder.layers.") else 0
        pattern = ".".join("{}" if i == 2 else word for i, word in enumerate(words)) if layer or "layers" in words else name
        if name == "output_layer.weight" and shape.tied_embeddings:  # the last pipeline stage's own copy
            pattern = "embedding.word_embeddings.weight"
        yield name, parameter, by_name[pattern], first + layer


def _shard(full: Tensor, parameter: nn.Parameter, *, paired: bool) -> Tensor:
    """This rank's share of `full`; a paired tensor (gate over up) is cut in each half."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    axis = parameter.partition_dim  # type: ignore[attr-defined]
    if paired:
        return torch.cat([half.chunk(size, axis)[rank] for half in full.chunk(2, axis)], axis)
    return full.chunk(size, axis)[rank]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
