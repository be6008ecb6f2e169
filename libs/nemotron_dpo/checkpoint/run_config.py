"""`run_config.yaml` of a checkpoint_megatron: the model's architecture in Megatron-Bridge's terms.

Megatron-Bridge instantiates what the file's `model` section names. We only read its fields: nothing named there is imported
or called. The section `nemotron_dpo`, which Bridge ignores, stores what a provider has no field for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from nemotron_dpo import documents, file_digests
from nemotron_dpo.checkpoint.families import config
from nemotron_dpo.checkpoint.families.wrappers import WRAPPERS
from nemotron_dpo.checkpoint.field_kinds import checked
from nemotron_dpo.checkpoint.provider import beside_provider, from_provider, none_of_bridge, to_provider
from nemotron_dpo.checkpoint.provider_parts import precision, read_dtype
from nemotron_dpo.checkpoint.sizes import refuse_absurd
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.sublayers.experts import Experts
from nemotron_dpo.policy.sublayers.gated_delta import GatedDelta
from nemotron_dpo.policy.sublayers.mamba import Mamba

NAME = "run_config.yaml"
_WHOLE = "hf_config"  # the content of config.json, of what no provider's fields say exactly
_NO_MODEL = (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError)
_REMEDY = "a checkpoint of Megatron-LM needs the name of its Hugging Face model instead"


def write(architecture: Architecture, folder: Path) -> None:
    """Write the file into a checkpoint's iteration folder. Raises UserError where it could not be read as what it is."""
    saved = {"fully_parallel_save": False, "save_optim": False, "save_rng": False}  # Bridge's training looks these up
    model, own = _sections(architecture)
    (folder / NAME).write_text(yaml.safe_dump({"checkpoint": saved, "model": model, "nemotron_dpo": own}, sort_keys=True))


def describes(folder: Path) -> bool:
    """Whether the iteration folder has the file."""
    return has_file(folder / NAME)


def read(folder: Path) -> Architecture:
    """The architecture of an iteration folder.

    Raises UserError where the file is missing or damaged, or describes what is not supported.
    """
    path = folder / NAME
    if has_file(path):
        file_digests.check(folder, NAME)
    try:
        sections = documents.read_yaml(path)
        refuse_absurd(sections["model"])
        return checked(_read(sections["model"], sections.get("nemotron_dpo") or {}))
    except FileNotFoundError:
        raise UserError("is missing", source=path, remedy=_REMEDY) from None
    except UserError as error:
        error.source = str(path)
        raise
    except _NO_MODEL as error:
        what = f"does not describe a model ({type(error).__name__}: {error})"
        raise UserError(what.replace("\n", " "), source=path) from None


def _sections(architecture: Architecture) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says of the architecture, to Bridge and beside: a provider's fields where these say it exactly."""
    own = _own(architecture)
    try:
        told = to_provider(architecture), {**own, **beside_provider(architecture)}
        if _says(told, architecture):
            return told
    except UserError:  # no provider has fields for it, or what it says is read by none
        pass
    whole = {**none_of_bridge(architecture), **precision(architecture.dtype)}, {**own, _WHOLE: config.write(architecture)}
    if not _says(whole, architecture):
        raise UserError(f"this {architecture.family} cannot be described in a checkpoint", remedy="tell us of its config.json")
    return whole


def _says(sections: tuple[dict[str, Any], dict[str, Any]], architecture: Architecture) -> bool:
    """Whether they are read as this architecture, but for a coefficient of no auxiliary loss, which may be null or zero."""
    try:
        return with_coefficients(_read(*sections)) == with_coefficients(architecture)
    except _NO_MODEL:
        return False


def with_coefficients(architecture: Architecture) -> Architecture:
    """The same with zero where a mixture has no coefficient of an auxiliary loss, which some files cannot tell from it."""
    layers = []
    for layer in architecture.layers:
        part = layer.feed_forward
        if isinstance(part, Experts):
            router = replace(part.router, aux_loss_coeff=part.router.aux_loss_coeff or 0.0)
            layer = replace(layer, feed_forward=replace(part, router=router))
        layers.append(layer)
    return replace(architecture, layers=tuple(layers))


def _read(model: dict[str, Any], own: dict[str, Any]) -> Architecture:
    around, family = own.get("around"), own.get("family")
    if around is None and family is not None and family in WRAPPERS:  # as our first versions wrote a Gemma 3 that sees images
        around, own = family, {**own, "family": next(iter(WRAPPERS[family].texts.values()))}
    if around is not None and around not in WRAPPERS:
        raise UserError(f"a text model within a {around!r} is not supported", remedy=f"within {', '.join(WRAPPERS)} it is")
    return replace(_read_text(model, own), around=around)


def _read_text(model: dict[str, Any], own: dict[str, Any]) -> Architecture:
    if _WHOLE not in own:
        return from_provider(model, own)
    whole, states = config.from_config(own[_WHOLE], Path(_WHOLE)), bool(own.get("states_in_float32"))
    return replace(whole, dtype=read_dtype(model), family=own["family"], states_in_float32=states)


def _own(architecture: Architecture) -> dict[str, Any]:
    names = ("family", "embedding_scale", "bos_token_id", "eos_token_id", "pad_token_id")
    windows = {attention.window for attention in architecture.attentions if attention.window is not None}
    window = {"window": windows.pop()} if len(windows) == 1 else {}
    chunks = {layer.mixer.chunk_size for layer in architecture.layers if isinstance(layer.mixer, Mamba)}
    hybrid = {"chunk_size": chunks.pop()} if chunks else {}
    recurs = any(isinstance(layer.mixer, Mamba | GatedDelta) for layer in architecture.layers)
    hybrid |= {"states_in_float32": architecture.states_in_float32} if recurs else {}
    around = {"around": architecture.around} if architecture.around else {}
    return {**{name: getattr(architecture, name) for name in names}, **around, **window, **hybrid}
