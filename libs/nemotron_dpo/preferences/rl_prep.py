"""Find the shards that the step data_prep/rl_prep of NVIDIA Nemotron wrote, from its manifest.

    <output_dir>/manifest.json                                     {"train": path, "val": path, "test": path, ...}
    <output_dir>/runs/<hash>/datasets/<name>__<split>/<hash>/      shard_*.jsonl, receipts/shard_*.json, plan.json

The manifest names only the first shard of each split, but a split consists of all shards in that shard's folder. rl_prep writes
a receipt for each shard. Where a receipt is missing or unfinished, a part of the split is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError

MANIFEST = "manifest.json"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # the manifest's names -> those of `datasets`


def find_manifest(path: Path) -> Path | None:
    """The manifest of rl_prep that `path` is or, as a folder, holds; None where there is none."""
    manifest = path / MANIFEST if path.is_dir() else path
    if manifest.name != MANIFEST or not manifest.is_file():
        return None
    try:
        content = _read(manifest)
    except UserError:  # another program's manifest.json
        return None
    return manifest if all(isinstance(content.get(split), str) for split in _SPLITS) else None


def manifest_splits(manifest: Path) -> list[str]:
    """The splits for which the manifest names a shard, under the names of `datasets`."""
    content = _read(manifest)
    return [name for split, name in _SPLITS.items() if content[split]]


def manifest_files(manifest: Path, split: str) -> list[str]:
    """The paths of all shards of `split` that have rows, in the order of their numbers.

    Raises UserError where the manifest has no such split, or where a shard is missing or unfinished.
    """
    named = {name: _read(manifest)[its] for its, name in _SPLITS.items()}.get(split)
    if not named:
        raise UserError(f"has no split {split}, but {', '.join(manifest_splits(manifest))}", source=manifest)
    first = _found(Path(named), manifest)
    receipts = sorted((first.parent / "receipts").glob("shard_*.json"))
    files = _received(receipts, first.parent) if receipts else _beside(first)
    for missing in (file for file in files if not file.is_file()):
        raise UserError("is not there, though its receipt is", source=missing, remedy="run data_prep/rl_prep again")
    return [str(file) for file in files]


def _found(named: Path, manifest: Path) -> Path:
    """The shard at the path `named` or, where the manifest's folder was moved, at the same place below it.

    Raises UserError where the shard is at neither place.
    """
    if named.is_file():
        return named
    below = named.parts[named.parts.index("runs") :] if "runs" in named.parts else (named.name,)
    moved = manifest.parent.joinpath(*below)
    if not moved.is_file():
        raise UserError(f"names {named}, which is not there", source=manifest)
    return moved


def _received(receipts: list[Path], folder: Path) -> list[Path]:
    contents = [(receipt, _read(receipt)) for receipt in receipts]
    for receipt, content in contents:
        if content.get("status") != "completed":
            raise UserError("says that its shard is not finished", source=receipt, remedy="run data_prep/rl_prep again")
    planned = _read(folder / "plan.json").get("num_shards") if (folder / "plan.json").is_file() else None
    if isinstance(planned, int) and planned != len(receipts):
        message = f"{len(receipts)} of {planned} shards are there"
        raise UserError(message, source=folder, remedy="run data_prep/rl_prep again")
    with_rows = [content for _, content in contents if content.get("stats", {}).get("num_records", 0)]
    return [folder / str(content.get("output_file")) for content in with_rows]


def _beside(first: Path) -> list[Path]:
    """The shards of a folder without receipts: the files whose names match that of the shard `first`."""
    suffix = "".join(first.suffixes)
    return sorted(first.parent.glob(f"shard_*{suffix}")) if first.name.startswith("shard_") else [first]


def _read(path: Path) -> dict[str, Any]:
    import orjson

    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"is broken JSON: {error.msg}", source=path) from None
    return value if isinstance(value, dict) else {}
