"""Read the pickles of a torch_dist checkpoint without letting them run code: a checkpoint is untrusted input.

torch and megatron-core unpickle without restriction in two places: `.metadata` (pickle.load) and byte objects (torch.load
without weights_only). A forged `.metadata` may even call a weight a byte object. So `check` reads both through allow-lists
first and raises where they hold anything else: what megatron-core reads afterwards is known to be harmless. The common state
(`common.pt`, or from megatron-core 0.19 on an object among the shards) is returned as read here. torch reads tensors with
weights_only. `train_state.pt` and other runs' optimizer state are never read.
"""

from __future__ import annotations

import enum
import io
import pickle
import re
from argparse import Namespace
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, NoReturn

import orjson
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from nemotron_dpo.errors import UserError

_DCP = "torch.distributed.checkpoint"
_MCORE = "megatron.core.dist_checkpointing.strategies.torch"
_CLASSES = frozenset(
    tuple(name.rsplit(" ", 1))
    for name in (
        *(
            f"{_DCP}.metadata {name}"
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        *(
            f"{_DCP}.planner {name}"
            for name in ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
        ),
        *(f"{_DCP}.filesystem {name}" for name in ("_StorageInfo", "_StoragePrefix")),
        *(f"{_MCORE} {name}" for name in ("MCoreMetadata", "MCoreSavePlan")),
        "collections OrderedDict",
        "pathlib PosixPath",
        "torch Size",
        "torch.serialization _get_layout",
    )
)
_COMMON_OBJECT = "common_state/shard_0_1"  # of megatron-core 0.19 and later


def _member(kind: Any, name: str) -> enum.Enum:
    """A member of an enumeration, as early versions of Python 3.11 (such as Debian 12's) pickle it: getattr(kind, name)."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind[name]


# names that other versions of Python give to the same objects
_ALIASES = {"builtins.getattr": _member, "pathlib._local.PosixPath": PosixPath}
# allowed besides torch's own and those that megatron-core registers
_HARMLESS = [Namespace, SimpleNamespace, PosixPath, *((value, name) for name, value in _ALIASES.items())]


class _MetadataUnpickler(pickle.Unpickler):
    """Allows the classes of torch's checkpoint metadata and no others."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        if alias := _ALIASES.get(f"{module_name}.{global_name}"):
            return alias
        if (module_name, global_name) in _CLASSES:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def check(folder: Path, wanted: Any = None) -> tuple[Metadata, dict[str, Any]]:
    """(metadata, common state) of a torch_dist folder. All that loading `wanted` would unpickle has been checked.

    `wanted` is the sharded state dict that is to be loaded; None checks no objects. Raises UserError where the checkpoint is
    damaged or incomplete, lacks part of `wanted`, or holds objects that checkpoints do not have.
    """
    _check_backend(folder)
    for path in folder.glob("__*.metadata"):  # metadata of one rank: torch falls back to it, and megatron-core never writes it
        _refuse(path, "is not part of a Megatron checkpoint")
    metadata = read_metadata(folder)
    _check_shards(metadata, folder)
    _check_wanted(wanted, metadata, folder)
    return metadata, _read_common(metadata, folder)


def read_metadata(folder: Path) -> Metadata:
    """`.metadata` through the allow-list. Raises UserError where it is missing, damaged or names another class."""
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except FileNotFoundError:
        raise UserError("is missing", source=path, remedy="is the copy complete?") from None
    except OSError:
        raise
    except Exception as error:  # unpickling a damaged file raises anything
        _refuse(path, f"cannot be read safely ({_line(error)})")
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        _refuse(path, "is not a checkpoint's metadata")
    return metadata


def _check_backend(folder: Path) -> None:
    path = folder / "metadata.json"
    try:
        kind = orjson.loads(path.read_bytes())["sharded_backend"]
    except FileNotFoundError:
        raise UserError("is missing", source=path, remedy="is the copy complete?") from None
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        _refuse(path, f"is damaged ({_line(error)})")
    if kind != "torch_dist":
        _refuse(path, f"names the format {kind!r}; only torch_dist is read")


def _check_shards(metadata: Metadata, folder: Path) -> None:
    """Refuse metadata whose files are missing, too short or outside the folder, or that calls a tensor a byte object."""
    ends: dict[str, int] = {}
    try:
        for index, info in metadata.storage_data.items():
            if not isinstance(index, MetadataIndex) or min(info.offset, info.length) < 0:
                raise TypeError(f"{index} has no place")
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        for key, kind in metadata.state_dict_metadata.items():
            if isinstance(kind, BytesStorageMetadata) and "/shard_" not in key:
                _refuse(folder / ".metadata", f"calls the tensor {key} a pickled object")
    except (AttributeError, TypeError) as error:
        _refuse(folder / ".metadata", f"is damaged ({_line(error)})")
    for name, end in sorted(ends.items()):
        path = folder / name
        if Path(name).name != name:
            _refuse(folder / ".metadata", f"names the file {name!r} outside the checkpoint")
        if not path.is_file():
            raise UserError("is missing", source=path, remedy="is the copy complete?")
        if path.stat().st_size < end:
            what = f"is cut short ({path.stat().st_size:,} of {end:,} bytes)"
            raise UserError(what, source=path, remedy="is the copy complete?")


def _check_wanted(wanted: Any, metadata: Metadata, folder: Path) -> None:
    """Refuse a checkpoint that lacks part of `wanted`, or whose byte objects for it are not harmless."""
    leaves = list(nested_values(wanted or {}))
    for factory in [leaf for leaf in leaves if isinstance(leaf, ShardedTensorFactory)]:
        leaves += nested_values({"": factory.build()})
    objects = {leaf.unique_key for leaf in leaves if isinstance(leaf, ShardedObject)}
    tensors = {leaf.key for leaf in leaves if isinstance(leaf, ShardedTensor)}
    missing = sorted((objects | tensors) - metadata.state_dict_metadata.keys())
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"lacks {missing[0]}{others}", source=folder, remedy="is it of another model?")
    for key in sorted(objects):
        _load_object(metadata, folder, key)


def _read_common(metadata: Metadata, folder: Path) -> dict[str, Any]:
    path = folder / "common.pt"
    if path.is_file():
        common = _load_safely(path.read_bytes(), path)
    elif _COMMON_OBJECT in metadata.state_dict_metadata:
        common = _load_object(metadata, folder, _COMMON_OBJECT)[0]
    else:
        raise UserError("is missing", source=path, remedy="is the copy complete?")
    if not isinstance(common, dict):
        _refuse(path, "is not a checkpoint's common state")
    return common


def _load_object(metadata: Metadata, folder: Path, key: str) -> Any:
    """Read one byte object, from where torch would read it."""
    found = [info for index, info in metadata.storage_data.items() if index.fqn == key]
    if len(found) != 1:
        _refuse(folder / ".metadata", f"names {len(found)} places for {key}")
    info = found[0]
    path = folder / info.relative_path
    if getattr(info, "transform_descriptors", None):
        _refuse(path, f"holds {key} in a form that is not read")
    with path.open("rb") as file:
        file.seek(info.offset)
        return _load_safely(file.read(info.length), path)


def _load_safely(data: bytes, path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on whatever its unpickler raised
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else _line(error)
        _refuse(path, f"cannot be read safely ({reason})")


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(what, source=path, remedy="use only checkpoints from those you trust") from None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
