"""A manifest of data_prep/rl_prep stands for all shards; the folders are laid out as its recipe (rl.py) writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.data_sources import all_files, resolve_data


def lay_out(folder: Path, *, suffix: str = ".jsonl", **splits: int) -> Path:
    """A run with that many shards of each split, of which the manifest names the first; the third is empty."""
    manifest = {"train": "", "val": "", "test": "", "mode": "resolve", "run_hash": "r0"}
    for split, num_shards in splits.items():
        shards = folder / "runs" / "r0" / "datasets" / f"blend__{split}" / "p0"
        (shards / "receipts").mkdir(parents=True)
        (shards / "plan.json").write_text(json.dumps({"num_shards": num_shards, "plan_hash": "p0"}))
        for n in range(num_shards):
            (shards / f"shard_{n:06d}{suffix}").write_text("" if n == 2 else "{}\n")
            receipt: dict[str, object] = {"status": "completed", "plan_hash": "p0", "output_file": f"shard_{n:06d}{suffix}"}
            receipt |= {"stats": {"num_records": int(n != 2)}}
            (shards / "receipts" / f"shard_{n:06d}.json").write_text(json.dumps(receipt))
        manifest[split] = str(shards / f"shard_000000{suffix}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def found(name: Path, split: str | None = None) -> list[str]:
    return [Path(file).parent.parent.name + "/" + Path(file).name for file in all_files(resolve_data([str(name)], split))]


def refusal(name: Path, split: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        found(name, split)
    return str(caught.value)


def test_a_manifest_and_its_folder_stand_for_all_shards_with_rows(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "out", train=4, val=1)
    train = [f"blend__train/shard_00000{n}.jsonl" for n in (0, 1, 3)]
    for name in (folder, folder / "manifest.json"):
        assert found(name, "train") == train
        assert found(name, "train[:1]") == train
        assert found(name, "validation") == ["blend__val/shard_000000.jsonl"]
        assert "names several splits, which are not mixed: train, validation" in refusal(name)
        assert refusal(name, "test").endswith("has no split test, but train, validation")
    assert found(lay_out(tmp_path / "alone", train=2)) == train[:2]


def test_a_folder_that_was_moved_is_still_read(tmp_path: Path) -> None:
    lay_out(tmp_path / "there", train=2, suffix=".jsonl.zst")
    shutil.move(tmp_path / "there", tmp_path / "here")
    files = all_files(resolve_data([str(tmp_path / "here")], "train"))
    assert [Path(file).relative_to(tmp_path / "here").name for file in files] == [
        "shard_000000.jsonl.zst",
        "shard_000001.jsonl.zst",
    ]


def test_a_part_of_a_split_is_not_taken_for_all_of_it(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, train=2)
    shards = tmp_path / "runs" / "r0" / "datasets" / "blend__train" / "p0"
    receipt = shards / "receipts" / "shard_000001.json"
    whole = receipt.read_text()
    receipt.write_text(json.dumps({**json.loads(whole), "status": "running"}))
    assert refusal(folder, "train").startswith(f"{receipt}: says that its shard is not finished")
    receipt.unlink()
    assert refusal(folder, "train").startswith(f"{shards}: 1 of 2 shards are there")
    receipt.write_text(whole)
    (shards / "shard_000001.jsonl").unlink()
    assert "shard_000001.jsonl: is not there, though its receipt is" in refusal(folder, "train")


def test_shards_without_receipts_are_told_by_their_names(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, train=2)
    shutil.rmtree(tmp_path / "runs" / "r0" / "datasets" / "blend__train" / "p0" / "receipts")
    assert found(folder, "train") == [f"blend__train/shard_00000{n}.jsonl" for n in (0, 1)]
