"""What a multimodal model has around its text model: kept beside a checkpoint's tokenizer, and put back into what is exported.

The text model alone is computed and trained. Its neighbours, a vision tower and what leads from it into the text model, keep
every bit and their precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemotron_dpo import hf_folder
from nemotron_dpo.checkpoint.families import FAMILIES
from nemotron_dpo.checkpoint.families.family import Wrapper
from nemotron_dpo.checkpoint.hf_files import Planned, write_file
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture

WEIGHTS, CONFIG = "carried.safetensors", "carried.json"


@dataclass(frozen=True)
class Rest:
    """The config of the whole model, and its tensors that are not the text model's: name -> (file, name there)."""

    config: dict[str, Any]
    places: dict[str, tuple[Path, str]]

    def plan(self) -> list[Planned]:
        """All of these tensors, in the order of `tensors`."""
        return [Planned(name, tensor.shape, tensor.dtype) for name, tensor in self._read()]

    def tensors(self) -> Iterator[Tensor]:
        """One after the other, as they are stored."""
        return (tensor for _, tensor in self._read())

    def config_around(self, text: dict[str, Any], wrapper: Wrapper) -> dict[str, Any]:
        """The config of the whole model with this text model, which states the precision of both."""
        own = {key: value for key, value in text.items() if key not in ("architectures", "dtype", "torch_dtype")}
        own, precision = {**own, "model_type": wrapper.text_type}, {key: text[key] for key in ("dtype", "torch_dtype")}
        return {**self.config, "text_config": own, "tie_word_embeddings": text["tie_word_embeddings"], **precision}

    def write(self, folder: Path) -> None:
        """Keep it in the existing `folder`."""
        write_file(folder / WEIGHTS, self.plan(), self.tensors())
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n")

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        for name, (path, stored) in self.places.items():
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(stored)


def wrapper_of(architecture: Architecture) -> Wrapper | None:
    """What the architecture's model is within; None where it is a text model."""
    return FAMILIES[architecture.family].wrapper


def keep(architecture: Architecture, source: Path | None, folder: Path) -> None:
    """Keep in `folder` what the model in `source` has around its text model, if there is any."""
    wrapper = wrapper_of(architecture)
    if wrapper is not None and (rest := _find(wrapper, source)) is not None:
        folder.mkdir(exist_ok=True)
        rest.write(folder)


def required(wrapper: Wrapper, source: Path | None) -> Rest:
    """What the model in `source` has around its text model. Raises UserError where that is not there."""
    rest = _find(wrapper, source)
    if rest is None:
        what = f"has none of the {', '.join(wrapper.rest)} that the model has besides its text model ({WEIGHTS})"
        raise UserError(what, source=source, remedy="export from a checkpoint whose tokenizer folder has that file")
    assert source is not None
    refuse_missing(wrapper, rest.places, source)
    return rest


def refuse_missing(wrapper: Wrapper, stored: Iterable[str], folder: Path) -> None:
    """Raise UserError where no tensor of the folder, which hold the names `stored`, begins as one of the rest must.

    Exported, such a model would be taken for one that sees, and given random weights to see with.
    """
    names = [wrapper.rest_name(name) for name in stored]
    for beginning in wrapper.rest:
        if not any(name.startswith(beginning) for name in names):
            remedy = f"is the download complete? The text model alone is a {wrapper.text_type}, whose names begin with model."
            raise UserError(f"holds no {beginning}*, which its config.json has", source=folder, remedy=remedy)


def _find(wrapper: Wrapper, source: Path | None) -> Rest | None:
    """From the folder of a checkpoint's tokenizer, or a Hugging Face folder."""
    if source is None:
        return None
    if (source / CONFIG).is_file() and (source / WEIGHTS).is_file():
        config, files = source / CONFIG, [source / WEIGHTS]
    elif (source / "config.json").is_file():
        config, files = source / "config.json", hf_folder.weight_files(source)
    else:
        return None
    try:
        parsed = hf_folder.parsed_config(config.read_bytes())
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", source=config) from None
    stored = [(path, name) for path in files for name in _names(path) if wrapper.is_rest(name)]
    return Rest(parsed, {wrapper.rest_name(name): (path, name) for path, name in stored})


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot be read ({error})", source=path, remedy=hf_folder.COMPLETE) from None
