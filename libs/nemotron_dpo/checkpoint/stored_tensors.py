"""Whole tensors out of a torch_dist folder, one at a time, without a model, a job or the memory that either takes.

megatron-core reads a checkpoint into a model that has been built for it. Whoever only looks at the weights, as a digest of
them does, asks here: for a parameter of the model by its own name, however the checkpoint stores it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from nemotron_dpo.checkpoint import untrusted
from nemotron_dpo.errors import UserError

# Names of norms in a model, and how they end in a checkpoint of Transformer Engine: stored with the linear layer behind them,
# or before them
_NORMS: Mapping[str, tuple[str, ...]] = {
    ".self_attention.q_layernorm.": (".self_attention.linear_q_up_proj.layer_norm_",),
    ".self_attention.kv_layernorm.": (".self_attention.linear_kv_up_proj.layer_norm_",),
    ".input_layernorm.": (".self_attention.linear_qkv.layer_norm_", ".self_attention.in_proj.layer_norm_"),
    ".pre_mlp_layernorm.": (".mlp.linear_fc1.layer_norm_",),
    ".self_attn_bda.post_layernorm.": (".self_attention.linear_proj.post_layernorm.",),
    ".mlp_bda.post_layernorm.": (".mlp.linear_fc2.post_layernorm.",),
    ".norm.": (".mixer.in_proj.layer_norm_",),
    "decoder.final_norm.": ("decoder.final_layernorm.",),
    "decoder.final_layernorm.": ("decoder.final_norm.",),
}
# Of what is stored in parts, the ends of their keys in order: a recurrent layer's input, which tensor parallelism divides one
# by one; gate and up projection, where Megatron-LM saved with singleton_local_shards
_PARTS = (".query", ".key", ".value", ".z", ".x", ".B", ".C", ".dt", ".beta", ".alpha", "_w", "_v")
_EXPERT = re.compile(r"local_experts\.(\d+)\.")
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


class StoredTensors:
    """The tensors of one iteration folder. Raises UserError where its metadata are damaged or name what is not harmless."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metadata: Metadata = untrusted.check(folder)[0]
        self._places: dict[tuple[str, tuple[int, ...]], Any] = {
            (index.fqn, tuple(index.offset or ())): info for index, info in self._metadata.storage_data.items()
        }

    def read(self, name: str) -> Tensor:
        """The whole tensor of the parameter that a model of one process calls `name`. Raises UserError where there is none."""
        for key, axes in _stored_as(name):
            if self._is_tensor(key):
                return self._select(key, axes)
            parts = [key + part for part in _PARTS if self._is_tensor(key + part)]
            if parts:
                return torch.cat([self._select(part, axes) for part in parts])
        raise UserError(f"lacks {name}", source=self._folder, remedy="is it of another model?")

    def _is_tensor(self, key: str) -> bool:
        return isinstance(self._metadata.state_dict_metadata.get(key), TensorStorageMetadata)

    def _select(self, key: str, axes: tuple[int, ...]) -> Tensor:
        """Of the tensor `key`, the entry at `axes` of its first axes: those of layers and experts."""
        stored = self._metadata.state_dict_metadata[key]
        assert isinstance(stored, TensorStorageMetadata)
        size = tuple(stored.size)
        if any(at >= most for at, most in zip(axes, size, strict=False)):
            raise UserError(f"has no {key} at {axes}", source=self._folder, remedy="is it of another model?")
        whole = torch.empty(size[len(axes) :], dtype=stored.properties.dtype)
        filled = 0
        for chunk in stored.chunks:
            ends = [start + length for start, length in zip(chunk.offsets, chunk.sizes, strict=True)]
            if all(start <= at < end for at, start, end in zip(axes, chunk.offsets, ends, strict=False)):
                part = self._chunk(key, tuple(chunk.offsets))
                inner = tuple(at - start for at, start in zip(axes, chunk.offsets, strict=False))
                place = tuple(slice(a, b) for a, b in zip(chunk.offsets[len(axes) :], ends[len(axes) :], strict=True))
                whole[place] = part[inner]
                filled += part[inner].numel()
        if filled != whole.numel():
            raise UserError(f"has {filled} of the {whole.numel()} values of {key}", source=self._folder)
        return whole

    def _chunk(self, key: str, offsets: tuple[int, ...]) -> Tensor:
        info = self._places.get((key, offsets))
        if info is None or getattr(info, "transform_descriptors", None):
            raise UserError(f"holds {key} in a form that is not read", source=self._folder)
        path = self._folder / info.relative_path
        try:
            with path.open("rb") as file:
                file.seek(info.offset)
                return torch.load(io.BytesIO(file.read(info.length)), map_location="cpu", weights_only=True)
        except Exception as error:  # torch passes on whatever its unpickler raised
            what = f"is damaged in {key} ({(str(error).splitlines() or [''])[0]})"
            raise UserError(what, source=path, remedy="copy it again") from None


def _stored_as(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys that checkpoints may have for a parameter, each with its place on the axes of layers and of experts.

    Layers are numbered in the key or stacked on an axis, where they are all alike; experts are stacked behind the layers.
    """
    for alias in _aliases(name):
        expert = _EXPERT.search(alias)
        keys = [(alias, ())]
        if expert:
            keys = [(_EXPERT.sub("experts.", alias), (int(expert[1]),)), *keys]
        for key, axes in keys:
            layer = _LAYER.match(key)
            yield key, axes
            if layer:
                yield _LAYER.sub("decoder.layers.", key), (int(layer[1]), *axes)


def _aliases(name: str) -> list[str]:
    return [name, *(name.replace(own, other) for own, others in _NORMS.items() if own in name for other in others)]
