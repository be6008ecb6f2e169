"""`checkpoint_megatron`: a policy in NVIDIA's torch_dist format, with the small files that NVIDIA's tools expect beside it.

`save` fills a folder. The caller publishes it: the folder must not have its final name before `save` returns.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from nemotron_dpo import file_digests, hf_folder
from nemotron_dpo.checkpoint import adapters, carried, run_config, tokenizer_files, torch_dist, untrusted
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.lora import adapted_of, only_adapters
from nemotron_dpo.policy.model import PairPolicy
from nemotron_dpo.sources import TRACKER

_CONTENT = {"singleton_local_shards": False}


def save(model: PairPolicy, root: Path, iteration: int, tokenizer: Path | None, rest: Path | None = None) -> None:
    """Write `model` as the only iteration of the checkpoint `root`. Every rank calls it; rank 0 writes the small files.

    Of a model with adapters only the adapters are written. What is around a text model comes from the folder `rest`, None for
    that of the tokenizer. `root` must be empty or absent, on storage that all ranks share.
    Raises UserError where it cannot be written.
    """
    folder = root / f"iter_{iteration:07d}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    weights, adapted = _with_extra_states(model.sharded_state_dict(metadata=dict(_CONTENT))), adapted_of(model)  # type: ignore[operator] - a method that megatron-core's modules have
    state: dict[str, Any] = {"model": weights, "checkpoint_version": 3.0, "iteration": iteration}
    if adapted is not None:  # stored here too, so that the digest of the weight files covers it
        state |= {"model": only_adapters(weights), "adapted": asdict(adapted)}
    torch_dist.save(state, folder, _CONTENT)
    if dist.get_rank() == 0:
        run_config.write(model.architecture, folder)
        if adapted is not None:
            adapters.describe(adapted, folder)
        tokenizer_files.copy(tokenizer, folder / "tokenizer")
        if adapted is None:
            carried.keep(model.architecture, rest or tokenizer, folder / "tokenizer")
        torch_dist.write_tensors(_train_state(iteration), folder / "train_state.pt")
        shutil.copyfile(folder / "train_state.pt", root / "latest_train_state.pt")
        file_digests.write(folder)
        (root / TRACKER).write_text(str(iteration))
    dist.barrier()


def load(model: nn.Module, folder: Path) -> None:
    """Fill `model` (this rank's shard) from an iteration folder that was written with any parallel sizes.

    Of a model with adapters only the adapters are read. Raises UserError where the checkpoint is damaged or another model's.
    """
    metadata, common = untrusted.check(folder)
    is_adapted, content = adapted_of(model) is not None, dict(common.get("content_metadata") or {})
    wanted = model.sharded_state_dict(metadata=content)  # type: ignore[operator] - a method that megatron-core's modules have
    wanted = {key: value for key, value in wanted.items() if not key.endswith("_extra_state")}
    wanted = _renamed(only_adapters(wanted) if is_adapted else wanted, set(metadata.state_dict_metadata))
    _check_vocabulary(wanted, metadata, folder)
    for value in wanted.values():
        if isinstance(value, ShardedTensorFactory):
            _merge_in_place(value)
    state = torch_dist.load({"model": wanted}, folder)
    missing, unexpected = model.load_state_dict(state["model"], strict=False)
    missing = [key for key in missing if not key.endswith("_extra_state") and (".adapter." in key or not is_adapted)]
    if missing or unexpected:
        raise UserError(f"lacks {missing} and has {unexpected} besides", source=folder, remedy="is it of another model?")


def precisions(folder: Path) -> tuple[str | None, str | None]:
    """The precision that all stored weights share, and that of a recurrence's own parameters.

    Each is float32 where they differ, None where it has no such weights. Tensors with a precision of their own have no say.
    """
    metadata, _ = untrusted.check(folder)
    found = {
        key: str(stored.properties.dtype).removeprefix("torch.")
        for key, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata) and key.startswith(_MODEL) and ".adapter." not in key
    }
    weights = {kind for key, kind in found.items() if not hf_folder.OWN_PRECISION.search(key)}
    return _common(weights), _common({kind for key, kind in found.items() if hf_folder.STATES.search(key)})


def _common(kinds: set[str]) -> str | None:
    found = kinds & {"float32", "bfloat16", "float16"}
    return next(iter(found)) if len(found) == 1 else "float32" if found else None


_MODEL = ("decoder.", "embedding.", "output_layer.")  # other keys are those of an optimizer


def _merge_in_place(factory: ShardedTensorFactory) -> None:
    """Where gate and up were loaded into the parameter itself, return that. megatron-core would join copies of the two."""
    parameter, join = factory.data, factory.merge_fn

    def merge(parts: Any) -> Any:
        storage = parameter.untyped_storage().data_ptr()
        if isinstance(parts, list) and all(part.untyped_storage().data_ptr() == storage for part in parts):
            return parameter
        return join(parts)  # type: ignore[arg-type] - a factory's parts may be a list

    factory.merge_fn = merge


def _check_vocabulary(wanted: dict[str, Any], metadata: Metadata, folder: Path) -> None:
    """Refuse a stored vocabulary that is too small: megatron-core would load it. A larger one is Megatron-LM's padding."""
    for value in wanted.values():
        stored = metadata.state_dict_metadata.get(value.key)
        if isinstance(value, ShardedTensor) and value.allow_shape_mismatch and isinstance(stored, TensorStorageMetadata):
            rows, due = stored.size[0], value.global_shape[0]
            if rows < due:
                what = f"{value.key} has {rows:,} entries where the model has {due:,}"
                raise UserError(what, source=folder, remedy="is it of another model?")


def _renamed(wanted: dict[str, Any], stored: set[str]) -> dict[str, Any]:
    """Rename the keys of a layer's norms to those that the checkpoint has.

    Transformer Engine stores a norm with the linear layer after it. megatron-core's own layers mostly use that key too.
    """
    for value in wanted.values():
        if isinstance(value, ShardedTensor) and value.key not in stored:
            fitting = (value.key.replace(ours, theirs) for pair in _NORMS for ours, theirs in (pair, pair[::-1]))
            value.key = next((key for key in fitting if key in stored), value.key)
    return wanted


_NORMS = (
    (".self_attention.linear_q_up_proj.layer_norm_", ".self_attention.q_layernorm."),
    (".self_attention.linear_kv_up_proj.layer_norm_", ".self_attention.kv_layernorm."),
    (".self_attention.linear_qkv.layer_norm_", ".input_layernorm."),
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
    (".self_attention.in_proj.layer_norm_", ".input_layernorm."),
    (".mixer.in_proj.layer_norm_", ".norm."),
    ("decoder.final_norm.", "decoder.final_layernorm."),
)


def _with_extra_states(sharded: dict[str, Any]) -> dict[str, Any]:
    """Add the empty `_extra_state` objects that a Transformer Engine model needs to load our checkpoints.

    Each of its linear layers has one, and so does every norm that is not part of a linear layer. That of the output layer is
    in the checkpoints of megatron-core's hybrids, and left out of those of its GPTModel.
    """
    for value in sharded.values():
        if isinstance(value, ShardedObject) and value.key.endswith("_extra_state") and value.data is None:
            value.data = torch.empty(0, dtype=torch.uint8)
    norms = {name: value for name, value in sharded.items() if value.key.endswith(_OWN_NORMS)}
    for name, norm in norms.items():
        layers = norm.prepend_axis_num  # 1 where all layers are one tensor, whose first axis is the layer
        place = (norm.global_shape[:layers] or (1,), norm.global_offset[:layers] or (0,), norm.replica_id)
        key = norm.key.removesuffix("weight") + "_extra_state"
        extra = ShardedObject(key, torch.empty(0, dtype=torch.uint8), *place)
        sharded.setdefault(name.removesuffix("weight") + "_extra_state", extra)
        if norm.key == _LAST_OF_HYBRIDS and _OUTPUT + "weight" in sharded:
            key = _OUTPUT + "_extra_state"
            sharded.setdefault(key, ShardedObject(key, torch.empty(0, dtype=torch.uint8), *place))
    return sharded


_LAST_OF_HYBRIDS, _OUTPUT = "decoder.final_norm.weight", "output_layer."
_NAMED = (*(f"{name}_layernorm" for name in ("final", "q", "k", "input", "pre_mlp")), "post_layernorm", ".out_norm")
_OWN_NORMS = (*(f"{name}.weight" for name in _NAMED), _LAST_OF_HYBRIDS)


def _train_state(iteration: int) -> dict[str, torch.Tensor]:
    """What Megatron-Bridge's TrainState reads. For iteration 0 Bridge asserts that this file lies beside the tracker."""
    counts = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    return {
        "step": torch.tensor(iteration, dtype=torch.int32),
        **{name: torch.tensor(0, dtype=torch.int32) for name in counts},
        "floating_point_operations_so_far": torch.tensor(0.0, dtype=torch.float32),
        **{name: torch.tensor(False) for name in ("do_train", "do_valid", "do_test")},
    }
