"""A checkpoint from a stranger runs nothing, wherever it hides a pickle, and is refused in one line."""

from __future__ import annotations

import enum
import json
import pathlib
import pickle
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
from support.forged import Payload, change_metadata, put_object, saved
from support.small_tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("megatron")

EMBEDDING = "embedding.word_embeddings.weight"


def metadata_itself(folder: Path, payload: Payload) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(payload))


def inside_metadata(folder: Path, payload: Payload) -> None:
    change_metadata(folder, lambda metadata: setattr(metadata, "planner_data", payload))


def metadata_of_a_rank(folder: Path, payload: Payload) -> None:
    (folder / ".metadata").write_bytes(b"")
    (folder / "__0.metadata").write_bytes(pickle.dumps(payload))


def common(folder: Path, payload: Payload) -> None:
    (folder / "common.pt").write_bytes(saved({"content_metadata": payload}))


def common_as_plain_pickle(folder: Path, payload: Payload) -> None:
    (folder / "common.pt").write_bytes(pickle.dumps(payload))


def common_among_the_shards(folder: Path, payload: Payload) -> None:
    (folder / "common.pt").unlink()
    put_object(folder, "common_state/shard_0_1", saved([{"args": payload}]))


def weight_called_an_object(folder: Path, payload: Payload) -> None:
    put_object(folder, EMBEDDING, saved(payload))


def inside_a_weight(folder: Path, payload: Payload) -> None:
    data = saved(payload)

    def change(metadata) -> None:
        (index,) = [index for index in metadata.storage_data if index.fqn == EMBEDDING]
        info = metadata.storage_data[index]
        path = folder / info.relative_path
        info.offset, info.length = path.stat().st_size, len(data)
        path.write_bytes(path.read_bytes() + data)

    change_metadata(folder, change)


@pytest.mark.parametrize(
    ("hide", "message"),
    [
        (metadata_itself, ".metadata: cannot be read safely (it names posix.mkdir)"),
        (inside_metadata, ".metadata: cannot be read safely (it names posix.mkdir)"),
        (metadata_of_a_rank, "__0.metadata: is not part of a Megatron checkpoint"),
        (common, "common.pt: cannot be read safely (it names posix.mkdir)"),
        (common_as_plain_pickle, "common.pt: cannot be read safely"),
        (common_among_the_shards, "__0_0.distcp: cannot be read safely (it names posix.mkdir)"),
        (weight_called_an_object, f".metadata: calls the tensor {EMBEDDING} a pickled object"),
        (inside_a_weight, "cannot be loaded"),
    ],
)
def test_a_hidden_pickle_never_runs(hide: Callable[[Path, Payload], None], message: str, folder: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    marker = tmp_path / "ran"
    (folder / "integrity.json").unlink()
    hide(folder, Payload(marker))
    with pytest.raises(UserError) as caught:
        open_policy(resolve(folder), None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_what_other_versions_of_python_write_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Early 3.11 pickles members of enumerations as getattr(class, name), 3.13 paths as pathlib._local's."""
    from megatron.core.transformer.enums import AttnBackend

    from nemotron_dpo.checkpoint import untrusted

    (folder / "integrity.json").unlink()
    with monkeypatch.context() as other:
        other.setattr(enum.Enum, "__reduce_ex__", lambda member, protocol: (getattr, (type(member), member.name)))
        other.setitem(sys.modules, "pathlib._local", pathlib)
        other.setattr(pathlib.PosixPath, "__module__", "pathlib._local")
        state = {"args": Namespace(attention_backend=AttnBackend.fused, load=Path("/models"))}
        (folder / "common.pt").write_bytes(saved(state))
        change_metadata(folder, lambda metadata: setattr(metadata.storage_meta, "checkpoint_id", Path("/models")))
    for name in (b"getattr", b"pathlib._local"):
        assert name in (folder / ".metadata").read_bytes()
        assert name in (folder / "common.pt").read_bytes()
    metadata, common = untrusted.check(folder)
    assert metadata.storage_meta is not None
    assert (metadata.storage_meta.checkpoint_id, common) == (Path("/models"), state)


def test_getattr_gives_members_of_enumerations_alone(folder: Path) -> None:
    from torch.distributed.checkpoint.metadata import Metadata

    from nemotron_dpo.checkpoint import untrusted

    class Asked:
        def __reduce__(self):
            return getattr, (Metadata, "__init__")

    common = (folder / "common.pt").read_bytes()
    for name, data in (("common.pt", saved({"args": Asked()})), (".metadata", pickle.dumps(Asked()))):
        (folder / "common.pt").write_bytes(common)
        (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: cannot be read safely \(it names "):
            untrusted.check(folder)


@pytest.mark.parametrize(
    "name",
    ["train_state.pt", "../latest_train_state.pt", "rng.pt", "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2"],
)
def test_what_is_not_needed_is_not_read(name: str, folder: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    marker = tmp_path / "ran"
    (folder / "integrity.json").unlink()
    if name.endswith(".pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    else:
        put_object(folder, name, saved([Payload(marker)]))
    open_policy(resolve(folder), None)
    assert not marker.exists()


def test_code_beside_a_hugging_face_model_is_not_run(llama: Path, tmp_path: Path) -> None:
    """`auto_map` names classes of Python files in the folder, which transformers imports where it is told to trust them."""
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.preferences.tokenizer_folder import open_folder

    folder, marker = Path(shutil.copytree(llama, tmp_path / "hf")), tmp_path / "ran"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Config: pass\nclass Tokenizer: pass\n")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "evil.Config"}}))
    byte_level().save(str(folder / "tokenizer.json"))
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tokenizer", "auto_map": auto_map}))
    open_policy(resolve(folder), None)
    assert open_folder(str(folder)).load().encode("lazy").ids
    assert not marker.exists()


def test_an_object_that_is_asked_for_is_looked_at_first(folder: Path, tmp_path: Path) -> None:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from nemotron_dpo.checkpoint import torch_dist

    marker = tmp_path / "ran"
    (folder / "integrity.json").unlink()
    wanted = ShardedObject("rng_state", None, (1,), (0,))
    put_object(folder, wanted.unique_key, saved([Payload(marker)]))
    with pytest.raises(UserError, match=r"names posix\.mkdir"):
        torch_dist.load({"rng_state": wanted}, folder)
    assert not marker.exists()
    put_object(folder, wanted.unique_key, saved([{"seed": 7}]))
    assert torch_dist.load({"rng_state": wanted}, folder)["rng_state"] == {"seed": 7}


def test_the_payload_does_run_where_nobody_looks(folder: Path, tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    marker = tmp_path / "ran"
    inside_metadata(folder, Payload(marker))
    FileSystemReader(folder).read_metadata()
    assert marker.is_dir()


@pytest.mark.parametrize("name", ["../outside.distcp", "/etc/hostname"])
def test_files_outside_the_checkpoint_are_not_opened(name: str, folder: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    def change(metadata) -> None:
        next(iter(metadata.storage_data.values())).relative_path = name

    change_metadata(folder, change)
    with pytest.raises(UserError, match="outside the checkpoint"):
        open_policy(resolve(folder), None)


def names_no_place(metadata) -> None:
    index = next(index for index in metadata.storage_data if index.fqn.startswith("common_state/"))
    del metadata.storage_data[index]


def names_a_place_before_the_file(metadata) -> None:
    next(iter(metadata.storage_data.values())).offset = -8


def names_places_by_text(metadata) -> None:
    metadata.storage_data = {index.fqn: info for index, info in metadata.storage_data.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (names_no_place, r"\.metadata: names 0 places for common_state/shard_0_1"),
        (names_a_place_before_the_file, r"\.metadata: is damaged \(.* has no place\)"),
        (names_places_by_text, r"\.metadata: is damaged \(.* has no place\)"),
    ],
)
def test_metadata_that_misplaces_things_is_one_line(change: Callable, message: str, folder: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    (folder / "integrity.json").unlink()
    (folder / "common.pt").unlink()
    put_object(folder, "common_state/shard_0_1", saved([{"content_metadata": {}}]))
    change_metadata(folder, change)
    with pytest.raises(UserError, match=message) as caught:
        open_policy(resolve(folder), None)
    assert "\n" not in str(caught.value)
