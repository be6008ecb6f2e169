"""Damaged files are named in one line, flipped bits included, with integrity.json and without."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forged import change_metadata, flip, largest_part, put_object, saved
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve

pytestmark = pytest.mark.usefixtures("megatron")


def refusal(folder: Path) -> str:
    from nemotron_dpo.checkpoint.policy import open_policy

    with pytest.raises(UserError) as caught:
        open_policy(resolve(folder), None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_file_is_listed_with_its_sha256(folder: Path) -> None:
    listing = json.loads((folder / "integrity.json").read_bytes())
    assert listing["algorithm"] == "sha256"
    files = {path.name for path in folder.iterdir() if path.is_file()} - {"integrity.json"}
    assert listing["files"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    assert {".metadata", "common.pt", "run_config.yaml", "__0_0.distcp"} <= files


@pytest.mark.parametrize("listed", [True, False])
def test_a_flipped_bit_in_a_weight_is_found(listed: bool, folder: Path) -> None:
    path, offset = largest_part(folder)
    if not listed:  # as older tools write them: the CRCs of the archives tell
        (folder / "integrity.json").unlink()
    flip(path, offset)
    place = "its sha256 is not the one in integrity.json" if listed else "in embedding.word_embeddings.weight (Bad CRC-32"
    assert f"{path}: is damaged" in refusal(folder)
    assert place in refusal(folder)


def test_the_intact_checkpoint_loads_either_way(folder: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    open_policy(resolve(folder), None)
    (folder / "integrity.json").unlink()
    open_policy(resolve(folder), None)


@pytest.mark.parametrize("name", ["metadata.json", "train_state.pt"])
def test_a_changed_listed_file_is_named(name: str, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    assert refusal(folder).startswith(f"{folder / name}: is damaged: its sha256")


def removed(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (removed, "__0_0.distcp", "__0_0.distcp: is missing: is the copy complete?"),
        (cut, "__0_0.distcp", "__0_0.distcp: is cut short ("),
        (emptied, "__0_0.distcp", "__0_0.distcp: is cut short (0 of "),
        (cut, "common.pt", "common.pt: cannot be read safely"),
        (removed, "common.pt", "common.pt: is missing"),
        (cut, ".metadata", ".metadata: cannot be read safely"),
        (emptied, "metadata.json", "metadata.json: is damaged"),
        (removed, "metadata.json", "metadata.json: is missing"),
        (removed, "run_config.yaml", "run_config.yaml: is missing"),
        (cut, "run_config.yaml", "run_config.yaml: does not describe a model"),
        (emptied, "integrity.json", "integrity.json: is damaged"),
    ],
)
def test_damage_is_one_clear_line(damage: Callable[[Path], None], name: str, message: str, folder: Path) -> None:
    damage(folder / name)
    assert message in refusal(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    (folder / "integrity.json").unlink()
    change_metadata(folder, lambda metadata: metadata.state_dict_metadata.pop("decoder.final_layernorm.weight"))
    assert refusal(folder) == f"{folder}: lacks decoder.final_layernorm.weight: is it of another model?"


def test_the_common_state_among_the_shards_is_read(folder: Path) -> None:
    """As megatron-core 0.19 and later leave it, which write no common.pt."""
    from nemotron_dpo.checkpoint.policy import open_policy

    common = (folder / "common.pt").read_bytes()
    (folder / "integrity.json").unlink()
    (folder / "common.pt").unlink()
    change_metadata(folder, lambda metadata: metadata.state_dict_metadata.pop("common_state/shard_0_1", None))
    assert "common.pt: is missing" in refusal(folder)
    put_object(folder, "common_state/shard_0_1", saved([torch.load(io.BytesIO(common), weights_only=True)]))
    open_policy(resolve(folder), None)
