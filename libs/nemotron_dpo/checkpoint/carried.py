"""What a multimodal model has around its text model: kept beside a checkpoint's tokenizer, and put back into what is exported.

The text model alone is computed and trained. Its neighbours, a vision tower and what leads from it into the text model, keep
every bit and their precision.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nemotron_dpo import hf_folder
from nemotron_dpo.checkpoint.families import config, wrapper_of
from nemotron_dpo.checkpoint.families.wrappers import Wrapper, with_text
from nemotron_dpo.checkpoint.hf_files import Weights
from nemotron_dpo.checkpoint.hf_shards import WRITTEN, Planned, write_file
from nemotron_dpo.checkpoint.run_config import with_coefficients
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file, refuse_link_outside
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.weights_file import opened

WEIGHTS, CONFIG = "carried.safetensors", "carried.json"
_OF_ITS_OWN = "export from a checkpoint whose tokenizer folder has the files that were kept with it"


@dataclass(frozen=True)
class Rest:
    """The config of the whole model, its file, and its tensors that are not the text model's: name -> (file, name there)."""

    config: dict[str, Any]
    file: Path
    places: dict[str, tuple[Path, str]]

    def plan(self) -> list[Planned]:
        """All of these tensors, in the order of `tensors`."""
        return [Planned(name, tensor.shape, tensor.dtype) for name, tensor in self._read()]

    def tensors(self) -> Iterator[Tensor]:
        """One after the other, as they are stored."""
        return (tensor for _, tensor in self._read())

    def config_around(self, text: Architecture) -> dict[str, Any]:
        """The config of the whole model, as it was but for the precision. Raises UserError where its text model is another."""
        whole = with_text(self.config, dtype=text.dtype, tied=text.tied_embeddings)
        read = config.from_config(whole, self.file)
        read = replace(read, dtype=text.dtype, states_in_float32=text.states_in_float32)
        if with_coefficients(read) != with_coefficients(text):
            raise UserError("is around another text model than the one that is written", source=self.file, remedy=_OF_ITS_OWN)
        return whole

    def write(self, folder: Path) -> None:
        """Keep it in the existing `folder`."""
        write_file(folder / WEIGHTS, self.plan(), self.tensors())
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n")

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        for name, (path, stored) in self.places.items():
            with opened(path, "pt") as file:
                yield name, file.get_tensor(stored)


def keep(architecture: Architecture, source: Path | None, folder: Path) -> None:
    """Keep in `folder` what the model in `source` has around its text model, if there is any."""
    wrapper = wrapper_of(architecture)
    if wrapper is not None and (rest := _find(wrapper, source)) is not None:
        folder.mkdir(exist_ok=True)
        rest.write(folder)


def required(wrapper: Wrapper, source: Path | None) -> Rest:
    """What the model in `source` has around its text model. Raises UserError where that is not there."""
    rest = _find(wrapper, source)
    if rest is None or not rest.places:
        what = f"has none of the {', '.join(wrapper.rest)} that the model has besides its text model ({WEIGHTS})"
        raise UserError(what, source=source, remedy=_OF_ITS_OWN)
    return rest


def refuse_incomplete(wrapper: Wrapper, folder: Path, stored: Collection[str]) -> None:
    """Raise UserError where a Hugging Face folder holds nothing of a wrapper's part, or less than its index lists.

    Exported, such a model would be taken for one that sees, and be given random weights to see with. `stored` are the names of
    all tensors that there are.
    """
    rest = {wrapper.rest_name(name) for name in stored if wrapper.is_rest(name)}
    modules = [part for part in wrapper.rest if part.endswith(".")]  # others are single tensors, which not every model has
    if empty := [part for part in modules if not any(name.startswith(wrapper.rest_prefix + part) for name in rest)]:
        what = f"holds nothing of {', '.join(empty)}, which its config.json puts around the text model"
        raise UserError(what, source=folder, remedy=f"{hf_folder.COMPLETE} Save the text model alone where there is no more")
    listed = {wrapper.rest_name(name): name for name in hf_folder.index(folder) if wrapper.is_rest(name)}
    if missing := sorted(listed.keys() - rest):
        what = f"lists {listed[missing[0]]}, which no file holds"
        raise UserError(what, source=folder / hf_folder.INDEX, remedy=hf_folder.COMPLETE)


def refuse_quantized(wrapper: Wrapper, weights: Weights) -> None:
    """Raise UserError where what is around a text model is quantized, which the config.json that is written does not say."""
    for name in filter(wrapper.is_rest, weights.keys()):
        if (kind := weights.stored_dtype(name)) not in WRITTEN:
            what = f"holds {name}, which is around the text model, as {kind}: it cannot be carried through"
            raise UserError(what, source=weights.folder, remedy="give the model as it was before it was quantized")


def _find(wrapper: Wrapper, source: Path | None) -> Rest | None:
    """From the folder of a checkpoint's tokenizer, or a Hugging Face folder."""
    if source is None:
        return None
    if has_file(source / CONFIG) and has_file(source / WEIGHTS):
        for name in (CONFIG, WEIGHTS):
            refuse_link_outside(source / name, source)
        described, files = source / CONFIG, [source / WEIGHTS]
    elif (source / "config.json").is_file():
        described, files = source / "config.json", hf_folder.weight_files(source)
    else:
        return None
    try:
        parsed = hf_folder.parsed_config(described.read_bytes())
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", source=described) from None
    stored = [(path, name) for path in files for name in _names(path) if wrapper.is_rest(name)]
    return Rest(parsed, described, {wrapper.rest_name(name): (path, name) for path, name in stored})


def _names(path: Path) -> list[str]:
    with opened(path, "pt") as file:
        return sorted(file.keys())
