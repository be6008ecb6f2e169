"""`run_config.yaml` of a checkpoint_megatron: the model's architecture in Megatron-Bridge's terms.

Megatron-Bridge instantiates what the file's `model` section names. We only read its fields: nothing named there is imported
or called. The section `nemotron_dpo`, which Bridge ignores, stores what a provider has no field for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nemotron_dpo import documents
from nemotron_dpo.checkpoint.provider import beside_provider, from_provider, to_provider
from nemotron_dpo.checkpoint.sizes import refuse_absurd
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.mamba import Mamba

NAME = "run_config.yaml"
_REMEDY = "a checkpoint of Megatron-LM needs the name of its Hugging Face model instead"


def write(architecture: Architecture, folder: Path) -> None:
    """Write the file into a checkpoint's iteration folder."""
    saved = {"fully_parallel_save": False, "save_optim": False, "save_rng": False}  # Bridge's training looks these up
    sections = {"checkpoint": saved, "model": to_provider(architecture), "nemotron_dpo": _extra(architecture)}
    (folder / NAME).write_text(yaml.safe_dump(sections, sort_keys=True))


def describes(folder: Path) -> bool:
    """Whether the iteration folder has the file."""
    return (folder / NAME).is_file()


def read(folder: Path) -> Architecture:
    """The architecture of an iteration folder.

    Raises UserError where the file is missing or damaged, or describes what is not supported.
    """
    path = folder / NAME
    try:
        sections = documents.read_yaml(path)
        refuse_absurd(sections["model"])
        return from_provider(sections["model"], sections.get("nemotron_dpo") or {})
    except FileNotFoundError:
        raise UserError("is missing", source=path, remedy=_REMEDY) from None
    except UserError as error:
        error.source = str(path)
        raise
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        what = f"does not describe a model ({type(error).__name__}: {error})"
        raise UserError(what.replace("\n", " "), source=path) from None


def _extra(architecture: Architecture) -> dict[str, Any]:
    names = ("family", "embedding_scale", "bos_token_id", "eos_token_id", "pad_token_id")
    windows = {attention.window for attention in architecture.attentions if attention.window is not None}
    window = {"window": windows.pop()} if len(windows) == 1 else {}
    chunks = {layer.mixer.chunk_size for layer in architecture.layers if isinstance(layer.mixer, Mamba)}
    hybrid = {"chunk_size": chunks.pop()} if chunks else {}
    recurs = any(isinstance(layer.mixer, Mamba | GatedDelta) for layer in architecture.layers)
    hybrid |= {"states_in_float32": architecture.states_in_float32} if recurs else {}
    return {**{name: getattr(architecture, name) for name in names}, **beside_provider(architecture), **window, **hybrid}
