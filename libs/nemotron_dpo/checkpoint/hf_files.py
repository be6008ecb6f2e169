"""The tensors of an HF folder, read one by one from its safetensors files, whatever form they are stored in.

No more than a few are in memory at a time: the model itself takes all that can be spared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nemotron_dpo import hf_folder, machine_errors
from nemotron_dpo.checkpoint import mxfp4
from nemotron_dpo.errors import UserError
from nemotron_dpo.weights_file import opened

_MAPPED_BYTES = 8_000_000  # until a mapped file is closed, the pages read count as memory of this process
_ONE_OF_A_STACK = re.compile(r"(.+)\[([0-9]{1,9})\]")
_PACKED = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


class Weights:
    """The tensors of one HF folder, from one file or several, by the names that transformers uses."""

    def __init__(self, folder: Path, renamed: Callable[[str], str] | None = None) -> None:
        """`renamed` gives the names within a model that wraps it those that it has alone; None as transformers saves them.

        Raises UserError where the folder has no safetensors, holds two sets of them, or one cannot be read."""
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._mapped = 0
        self._file_of: dict[str, str] = {}
        for path in hf_folder.weight_files(folder):
            for key in self._file(path.name).keys():  # noqa: SIM118 - safetensors' file is no dict
                if key in self._file_of:
                    raise UserError(f"{key} is in {self._file_of[key]} as well as in {path.name}", source=folder)
                self._file_of[key] = path.name
        # AutoModel.save_pretrained leaves the prefix `model.` out; transformers reads such folders too
        headless = "embed_tokens.weight" in self._file_of and not any(key.startswith("model.") for key in self._file_of)
        self._stored_as: dict[str, str] = {}
        self._packed: dict[str, tuple[int, slice]] = {}  # the expert's number and its rows, of a tensor of all experts
        for key in self._file_of:
            name = (renamed or _without_tower)(_with_model(key) if headless else key)
            is_packed = _PACKED.search(name) and f"{key}_bias" not in self._file_of  # gpt-oss's lie otherwise
            for part in self._unpacked(key, name) if is_packed else (name,):
                if part in self._stored_as:
                    raise UserError(f"holds {part} twice: as {self._stored_as[part]} and as {key}", source=folder)
                self._stored_as[part] = key
        self._blocks = _float8_blocks(folder)

    def keys(self) -> set[str]:
        """The names of all tensors; what is in 4 bits, in blocks and their scales, has its one name."""
        packed = {key.removesuffix(mxfp4.BLOCKS) for key in self._stored_as if key.endswith(mxfp4.BLOCKS)}
        packed = {key for key in packed if key + mxfp4.SCALES in self._stored_as}
        return (set(self._stored_as) | packed) - {key + part for key in packed for part in (mxfp4.BLOCKS, mxfp4.SCALES)}

    def read(self, key: str) -> Tensor:
        """One tensor. Release it before many others are read, since it keeps its file mapped.

        `name[3]` is what is at 3 on the first axis of `name`, where that stacks the weights of all experts; where it is in 4
        bits it is dequantized. What is in blocks of 8 bits is given as bfloat16. Raises UserError where the tensor is missing,
        cut short or no plain float, as other quantized weights are.
        """
        one = _ONE_OF_A_STACK.fullmatch(key) if key not in self._stored_as else None  # a stranger's names may have brackets
        name, number = (one[1], int(one[2])) if one else (key, None)
        if one and {name + mxfp4.BLOCKS, name + mxfp4.SCALES} <= self._stored_as.keys():
            blocks, scales = (self._stored(name + part, number) for part in (mxfp4.BLOCKS, mxfp4.SCALES))
            return mxfp4.dequantized(blocks, scales).t()
        tensor = self._stored(name, number)
        if self.is_in_8_bits(name):
            tensor = self._in_bfloat16(name, tensor, self._stored(name + hf_folder.SCALES))
        if not tensor.dtype.is_floating_point or tensor.itemsize < 2:
            what = f"holds {name} as {str(tensor.dtype).removeprefix('torch.')}, which means nothing without its scales"
            source = self.folder / self._file_of[self._stored_as[name]]
            raise UserError(what, source=source, remedy="give the model as it was before it was quantized")
        return tensor

    def is_in_8_bits(self, key: str) -> bool:
        """Whether it is stored in blocks of 8 bits, as config.json says, with a factor for each."""
        if self._blocks is None or not {key, key + hf_folder.SCALES} <= self._stored_as.keys():
            return False
        return self.stored_dtype(key) == hf_folder.FLOAT8

    def stored_dtype(self, key: str) -> str:
        """The precision of a tensor that there is, by safetensors' name for it; MXFP4 for what is in 4 bits."""
        stored = self._stored_as.get(key)
        if stored is None:
            return "MXFP4"
        return self._file(self._file_of[stored]).get_slice(stored).get_dtype()

    def _in_bfloat16(self, key: str, weight: Tensor, factors: Tensor) -> Tensor:
        """The matrix `key` times the factor of each block. Raises UserError where these are not as many as blocks."""
        assert self._blocks is not None
        rows, columns = map(min, zip(self._blocks, (*weight.shape, 1, 1), strict=False))
        due = [-(-size // block) for size, block in zip(weight.shape, self._blocks, strict=False)]
        if self._blocks == hf_folder.WHOLE and factors.numel() == 1:
            factors = factors.view(1, 1)
        if weight.dim() != 2 or list(factors.shape) != due:
            what = f"holds {key} {tuple(weight.shape)} in {_said(self._blocks)} with {tuple(factors.shape)} factors"
            raise UserError(what, source=self.folder, remedy="does config.json belong to these weights?")
        if not factors.isfinite().all():
            raise UserError(f"holds a factor of {key} that is no number", source=self.folder, remedy=hf_folder.COMPLETE)
        whole = torch.empty(weight.shape, dtype=torch.bfloat16)
        for number, of_row in enumerate(factors.float()):
            part = slice(number * rows, (number + 1) * rows)
            whole[part] = weight[part].float() * of_row.repeat_interleave(columns)[: weight.shape[1]]
        return whole

    def _stored(self, key: str, number: int | None = None) -> Tensor:
        """The tensor as it is stored, or what is at `number` on its first axis."""
        if key not in self._stored_as:
            raise missing_tensor(key, set(self._file_of), self.folder)
        stored = self._stored_as[key]
        name = self._file_of[stored]
        if self._mapped > _MAPPED_BYTES:
            self._open.clear()
            self._mapped = 0
        try:
            file = self._file(name)
            part = self._packed.get(key, number)
            tensor = file.get_tensor(stored) if part is None else file.get_slice(stored)[part]
        except (SafetensorError, IndexError) as error:
            source = self.folder / name
            raise UserError(f"cannot give {key} ({error})", source=source, remedy=hf_folder.COMPLETE) from None
        self._mapped += tensor.nbytes
        return tensor

    def _unpacked(self, key: str, name: str) -> list[str]:
        """The names of the experts' own weights in the tensor `key` of all of them, [experts, rows, columns] each."""
        experts, rows, _ = self._file(self._file_of[key]).get_slice(key).get_shape()
        block, _, kind = name.rpartition(".")
        parts = {"down_proj": slice(0, rows)}
        if kind == "gate_up_proj":
            parts = {"gate_proj": slice(0, rows // 2), "up_proj": slice(rows // 2, rows)}
        places = {f"{block}.{number}.{part}.weight": (number, of) for number in range(experts) for part, of in parts.items()}
        self._packed |= places
        return list(places)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = opened(self.folder / name, "pt")
        return self._open[name]


def _said(blocks: tuple[int, int]) -> str:
    return "one block" if blocks == hf_folder.WHOLE else f"blocks of {blocks}"


def _float8_blocks(folder: Path) -> tuple[int, int] | None:
    try:
        return hf_folder.float8_blocks(hf_folder.parsed_config((folder / "config.json").read_bytes()))
    except (*machine_errors.NOT_THERE, ValueError, AttributeError):  # whoever reads config.json says what is wrong with it
        return None


def missing_tensor(key: str, stored: set[str], folder: Path) -> UserError:
    """The error where `key` is not among the names `stored`: it guesses the reason from the names that are."""
    if key == "lm_head.weight":
        what = "holds no lm_head.weight, and by config.json it is not the embedding"
        return UserError(what, source=folder, remedy="set tie_word_embeddings to true there if the model shares the two")
    wrapped = sorted(name for name in stored if name.endswith(f".{key}"))
    if wrapped:
        prefix = wrapped[0].removesuffix(key)
        what = f"holds {wrapped[0]} for {key}: its names begin with {prefix}"
        return UserError(what, source=folder, remedy=_WRAPPERS.get(prefix, "save the model without what wraps it"))
    if key in (listed := hf_folder.index(folder)):
        what = f"lists {key} in {listed[key]}, which does not hold it"
        return UserError(what, source=folder / hf_folder.INDEX, remedy=hf_folder.COMPLETE)
    return UserError(f"holds no {key}", source=folder, remedy="is the download complete, and does config.json belong to it?")


_WRAPPERS = {
    "_orig_mod.": "save what torch.compile was given (model._orig_mod), not what it returned",
    "module.": "save the model within DataParallel or DDP (model.module)",
    "base_model.model.": "merge the adapters first (merge_and_unload in peft) and save that",
}


def _without_tower(key: str) -> str:
    """The name in a model of text alone. transformers saves one as a part of the larger model that it was loaded from."""
    return key.replace("model.language_model.", "model.", 1) if key.startswith("model.language_model.") else key


def _with_model(key: str) -> str:
    return key if key.startswith("lm_head.") else f"model.{key}"
