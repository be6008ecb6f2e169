"""Load an HF folder into this rank's share of a model, and write a whole model as an HF folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from nemotron_dpo import file_digests, hf_folder
from nemotron_dpo.checkpoint import hf_shards, integrity, tokenizer_files
from nemotron_dpo.checkpoint.carried import refuse_incomplete, refuse_quantized, required
from nemotron_dpo.checkpoint.families import config, rules, wrapper_of
from nemotron_dpo.checkpoint.hf_files import Weights
from nemotron_dpo.checkpoint.hf_shards import SHARD_BYTES, Planned
from nemotron_dpo.checkpoint.hf_weights import Rule
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture, Layer
from nemotron_dpo.policy.model import PairPolicy

_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# a parameter's layer number and expert number in the whole model, as far as it has them
Place = tuple[int, ...]


def open_weights(folder: Path, architecture: Architecture) -> Weights:
    """The tensors of `folder` by the names that the rules of the architecture's family have for them."""
    wrapper = wrapper_of(architecture)
    return Weights(folder, wrapper.text_name if wrapper else None)


def load(model: PairPolicy, folder: Path) -> None:
    """Fill `model` (this rank's part of a policy) from the safetensors in `folder`, one parameter at a time.

    Raises UserError where a file is missing or damaged, or a tensor is missing, of another shape or not part of the model.
    """
    integrity.verify_listed(folder)
    architecture = model.architecture
    weights = open_weights(folder, architecture)
    if wrapper := wrapper_of(architecture):
        refuse_incomplete(wrapper, folder, weights.keys())
        refuse_quantized(wrapper, weights)
    for name, parameter, rule, place in placed(model):
        parts = [weights.read(key.format(*place)) for key in rule.hf]
        try:
            layer = layer_at(architecture, place)
            shard = _shard(rule.merge(layer, parts), parameter, rule, name, layer)
        except RuntimeError:
            shard = None
        if shard is None or shard.shape != parameter.shape:
            shapes = " and ".join(f"{key.format(*place)} {tuple(p.shape)}" for key, p in zip(rule.hf, parts, strict=True))
            what = f"{shapes} cannot make {name} {tuple(parameter.shape)}"
            raise UserError(what, source=folder, remedy="does config.json belong to these weights?")
        with torch.no_grad():
            parameter.copy_(shard)
    _refuse_leftovers(weights, architecture)
    _refuse_second_embedding(weights, architecture)


def save(
    model: PairPolicy,
    folder: Path,
    dtype: torch.dtype,
    tokenizer: Path | None,
    shard_bytes: int = SHARD_BYTES,
    rest: Path | None = None,
) -> None:
    """Write `model` (whole, TP = PP = EP = 1) into the existing folder as config.json, safetensors and tokenizer files.

    Weights are streamed into files of at most `shard_bytes`. What is around a text model comes from the folder `rest`, None for
    that of the tokenizer. Raises UserError where it is not there, or files cannot be written.
    """
    architecture = replace(model.architecture, dtype=str(dtype).removeprefix("torch."))
    plan, tensors, wrapper = _plan(model, dtype), _tensors(model), wrapper_of(architecture)
    if wrapper is None:
        written = config.write(architecture)
    else:
        around = required(wrapper, rest or tokenizer)
        written = around.config_around(architecture)
        plan = [replace(planned, name=wrapper.stored_name(planned.name)) for planned in plan] + around.plan()
        tensors = chain(tensors, around.tensors())
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    hf_shards.write(folder, plan, tensors, shard_bytes)
    file_digests.write(folder, "*.safetensors*")  # which carry no checksums; the index is among them
    tokenizer_files.copy(tokenizer, folder)


def _plan(model: PairPolicy, dtype: torch.dtype) -> list[Planned]:
    """All HF tensors, in the order in which `_tensors` yields them."""
    plan: list[Planned] = []
    for _, parameter, rule, place in placed(model):
        parts = rule.split(layer_at(model.architecture, place), torch.empty_like(parameter, device="meta"))
        own = parameter.dtype if rule.own_precision else dtype
        kind = torch.float32 if rule.is_state and model.architecture.states_in_float32 else own
        for key, part in zip(rule.hf, parts, strict=True):
            stacked = _num_stacked(model.architecture, key, place)
            if stacked is None:
                plan.append(Planned(key.format(*place), part.shape, kind))
            elif place[1] == stacked - 1:
                plan.append(Planned(_without_place(key.format(*place)), (stacked, *part.shape), kind))
    return plan


def _tensors(model: PairPolicy) -> Iterator[Tensor]:
    waiting: dict[str, list[Tensor]] = {}  # of tensors that stack all experts, what there is of the first ones
    for _, parameter, rule, place in placed(model):
        parts = rule.split(layer_at(model.architecture, place), parameter.detach())
        for key, part in zip(rule.hf, parts, strict=True):
            stacked = _num_stacked(model.architecture, key, place)
            if stacked is None:
                yield part
                continue
            of_experts = waiting.setdefault(_without_place(key.format(*place)), [])
            of_experts.append(part)
            if len(of_experts) == stacked:
                yield torch.stack(waiting.pop(_without_place(key.format(*place))))


def _num_stacked(architecture: Architecture, key: str, place: Place) -> int | None:
    """How many experts' weights the tensor of a rule's `key` stacks; None where it is of one parameter."""
    return architecture.layers[place[0]].num_experts if key.endswith("[{}]") else None


def _without_place(key: str) -> str:
    """The name of the tensor that stacks the weights of all experts, of which `key` names one's."""
    return key.partition("[")[0]


def placed(model: PairPolicy) -> Iterator[tuple[str, Tensor, Rule, Place]]:
    """(name, parameter, its rule, its place) for every parameter that this rank holds, and every buffer that has a rule."""
    architecture = model.architecture
    by_name = {rule.megatron: rule for rule in rules(architecture)}
    biases = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith(".expert_bias"))
    for name, parameter in (*model.named_parameters(), *biases):
        layer = re.match(r"decoder\.layers\.\d+", name)
        expert = re.search(r"\.local_experts\.(\d+)\.", name)
        place: list[int] = []
        if layer:
            place.append(model.get_submodule(layer[0]).layer_number - 1)  # type: ignore[arg-type, operator] - megatron-core's layers have a number
        if expert:
            place.append(_first_expert(architecture.layers[place[0]]) + int(expert[1]))
        pattern = re.sub(r"(layers|local_experts)\.\d+\.", r"\1.{}.", name)
        if pattern == "output_layer.weight" and architecture.tied_embeddings:  # the last pipeline stage's own copy
            pattern = "embedding.word_embeddings.weight"
        yield name, parameter, by_name[pattern], tuple(place)


def layer_at(architecture: Architecture, place: Place) -> Layer | None:
    return architecture.layers[place[0]] if place else None


def _first_expert(layer: Layer) -> int:
    """The number of the first of the layer's experts that this rank holds."""
    ranks = parallel_state.get_expert_model_parallel_world_size()
    return parallel_state.get_expert_model_parallel_rank() * (layer.num_experts // ranks)


def _shard(full: Tensor, parameter: Tensor, rule: Rule, name: str, layer: Layer | None) -> Tensor:
    """This rank's shard of `full`. Where parts are stacked (gate over up), its shard of each."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    if ".local_experts." in name:
        group: Any = parallel_state.get_expert_tensor_parallel_group()
    else:
        group = parallel_state.get_tensor_model_parallel_group()
    size, rank = group.size(), group.rank()
    axis = parameter.partition_dim  # type: ignore[attr-defined] - megatron-core's mark on a parameter
    if rule.halves or rule.parts:
        parts = full.chunk(2, axis) if rule.parts is None else full.split(list(rule.parts(layer).values()), axis)
        return torch.cat([part.chunk(size, axis)[rank] for part in parts], axis)
    return full.chunk(size, axis)[rank]


def _refuse_leftovers(weights: Weights, architecture: Architecture) -> None:
    """Raise UserError where the folder holds weights that no rule reads: the stored model computes something else."""
    known = {key.format(*place) for rule in rules(architecture) for place in places(architecture, rule) for key in rule.hf}
    known = {_without_place(key) for key in known}
    wrapper, unread = wrapper_of(architecture), hf_folder.is_unread(weights.folder)
    in_8_bits = {key for key in known if weights.is_in_8_bits(key)}
    factors = {key + hf_folder.SCALES for key in in_8_bits}
    factors |= {key.removesuffix(".weight") + hf_folder.ACTIVATION_SCALE for key in in_8_bits}
    unknown = weights.keys() - known - factors - {_OUTPUT}
    left = sorted(key for key in unknown if not unread(key) and not (wrapper and wrapper.is_rest(key)))
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        what = f"holds {left[0]}{more}, which a {architecture.family} of its config.json does not have"
        raise UserError(what, source=weights.folder, remedy="does config.json belong to these weights?")


def places(architecture: Architecture, rule: Rule) -> Iterator[Place]:
    """Where in the whole model there are parameters of this rule."""
    _, _, within = rule.megatron.partition("layers.{}.")
    if not within:
        yield ()
    for number, layer in enumerate(architecture.layers if within else ()):
        if layer.has(within):
            yield from ((number, expert) for expert in range(layer.num_experts if "{}" in within else 1))


def _refuse_second_embedding(weights: Weights, architecture: Architecture) -> None:
    """Raise UserError where config.json ties the output layer to the embedding and the two stored tensors differ.

    transformers 4 would take the embedding, transformers 5 the output layer. Which of them was trained, nobody can tell.
    """
    if not architecture.tied_embeddings or not {_OUTPUT} <= weights.keys():
        return
    stored, embedding = weights.read(_OUTPUT), weights.read(_EMBEDDING)
    if stored.dtype != embedding.dtype or not torch.equal(stored, embedding):
        what = f"holds an {_OUTPUT} that differs from the embedding to which config.json ties it"
        raise UserError(what, source=weights.folder, remedy="set tie_word_embeddings to false there, or remove the tensor")
