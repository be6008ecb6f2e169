"""Damaged files are named in one line, flipped bits included, with integrity.json and without."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
from support.forged import change_metadata, flip, largest_part, put_object, saved

pytestmark = pytest.mark.usefixtures("megatron")


TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/additional_chat_templates/rag.jinja")


def refusal(folder: Path) -> str:
    from nemotron_dpo.checkpoint.policy import open_policy

    with pytest.raises(UserError) as caught:
        open_policy(resolve(folder), None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_file_is_listed_with_its_sha256(folder: Path) -> None:
    listing = json.loads((folder / "integrity.json").read_bytes())
    assert listing["algorithm"] == "sha256"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"integrity.json"}
    assert listing["files"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    assert {".metadata", "common.pt", "run_config.yaml", "__0_0.distcp", *TOKENIZER} <= files


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
        (cut, "run_config.yaml", "run_config.yaml: is damaged: its sha256 is not the one in integrity.json"),
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


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def put_there(path: Path) -> None:
    path.with_name("added_tokens.json").write_text('{"of a stranger": 9}')


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (changed, TOKENIZER[0], "tokenizer/tokenizer.json: is damaged: its sha256 is not the one in integrity.json: copy it"),
        (changed, TOKENIZER[2], "additional_chat_templates/rag.jinja: is damaged: its sha256"),
        (removed, TOKENIZER[1], "tokenizer/tokenizer_config.json: is missing, though integrity.json lists it"),
        (put_there, TOKENIZER[0], "tokenizer/added_tokens.json: is not listed in integrity.json, which lists the others"),
    ],
)
def test_a_changed_tokenizer_is_found_on_loading_and_on_tokenizing(
    damage: Callable[[Path], None], name: str, message: str, folder: Path
) -> None:
    from nemotron_dpo.preferences.tokenizer_folder import open_folder

    assert open_folder(str(folder)).load().encode("a").ids
    damage(folder / name)
    assert message in refusal(folder)
    with pytest.raises(UserError) as caught:
        open_folder(str(folder))
    assert message in str(caught.value)


def test_a_list_that_leaves_the_tokenizer_out_covers_the_rest(folder: Path) -> None:
    """As ours did, and megatron-core's own does."""
    from nemotron_dpo import file_digests
    from nemotron_dpo.checkpoint.policy import open_policy

    assert not file_digests.left_out(folder, "tokenizer")
    listing = json.loads((folder / "integrity.json").read_bytes())
    listing["files"] = {name: digest for name, digest in listing["files"].items() if "/" not in name}
    (folder / "integrity.json").write_text(json.dumps(listing))
    changed(folder / TOKENIZER[0])
    open_policy(resolve(folder), None)
    assert file_digests.left_out(folder, "tokenizer")


@pytest.mark.parametrize("name", ["/etc/hostname", "../other", "tokenizer/../../other"])
def test_a_list_names_nothing_outside_its_folder(name: str, folder: Path) -> None:
    (folder / "integrity.json").write_text(json.dumps({"algorithm": "sha256", "files": {name: "0"}}))
    assert f"names the file '{name}' outside the checkpoint" in refusal(folder)
