"""One policy has one digest, wherever and however it is stored, and any other policy has another one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo.checkpoint import weights_digest as digests
from nemotron_dpo.checkpoint.weights_digest import is_digest_of, weights_digest
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve, resolve_pretrained
from support import families, hybrid_folders, megatron_lm
from support.kept_kernels import with_kernels
from support.programs import execute_job

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

ONE = "model.safetensors"


@pytest.fixture(autouse=True)
def memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(with_kernels(tmp_path / "cache")))
    return tmp_path / "cache" / "nemotron-dpo" / "weights.json"


def digest(folder: Path) -> str:
    return weights_digest(resolve(folder))


def exported(source: Path, target: Path, form: str = "megatron", precision: str | None = None) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(resolve(source), target, form, precision)
    return target


def test_every_family_keeps_its_digest_in_megatrons_form(tmp_path: Path) -> None:
    seen = set()
    for name in families.FAMILIES:
        for tied in (False, True):
            folder = families.write_model(tmp_path / f"{name}-{tied}", name, tied=tied, dtype=torch.bfloat16)
            expected = digest(folder)
            assert digest(exported(folder, tmp_path / f"{name}-{tied}-megatron")) == expected, name
            seen.add(expected)
    assert len(seen) == 2 * len(families.FAMILIES)


def test_a_hybrid_keeps_its_digest_in_any_form(tmp_path: Path) -> None:
    """With a precision per tensor: the biases of its experts stay in float32."""
    for name, pattern in hybrid_folders.PATTERNS.items():
        folder = hybrid_folders.write_hybrid(tmp_path / name, pattern, dtype=torch.bfloat16)
        there = exported(folder, tmp_path / f"{name}-megatron")
        back = exported(there, tmp_path / f"{name}-hf", "hf")
        assert digest(there) == digest(back) == digest(folder), name


SAVE_DIVIDED = """
import sys
from pathlib import Path
from nemotron_dpo.policy import parallel
tensor, pipeline = map(int, sys.argv[3:])
parallel.initialize(parallel.Layout(tensor=tensor, pipeline=pipeline))
from nemotron_dpo.checkpoint import megatron
from nemotron_dpo.checkpoint.policy import open_policy
from nemotron_dpo.sources import resolve
megatron.save(open_policy(resolve(sys.argv[1]), None), Path(sys.argv[2]), 7, None)
parallel.shut_down()
"""


@pytest.mark.multiprocess
def test_how_a_policy_is_stored_does_not_count(llama: Path, untied_llama: Path, tmp_path: Path) -> None:
    """Copies, other names, other shards, another dtype of the same values, another format, ranks that wrote it."""
    base = shutil.copytree(untied_llama, tmp_path / "base")
    expected = digest(base)
    assert expected.startswith("tensors:")
    assert expected != digest(llama)
    forms = {"copied": shutil.copytree(base, tmp_path / "copied"), "moved": tmp_path / "moved"}
    shutil.copytree(base, tmp_path / "again").rename(forms["moved"])
    forms["imported"] = exported(base, tmp_path / "imported")
    forms["back"] = exported(forms["imported"], tmp_path / "back", "hf")
    weights = load_file(base / ONE)
    forms["sharded"] = shutil.copytree(base, tmp_path / "sharded")
    (forms["sharded"] / ONE).unlink()
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, forms["sharded"] / f"{number}.safetensors")
    where = {name: f"{number % 2}.safetensors" for number, name in enumerate(names)}
    (forms["sharded"] / f"{ONE}.index.json").write_text(json.dumps({"weight_map": where}))
    script = tmp_path / "save.py"
    script.write_text(SAVE_DIVIDED)
    for tensor, pipeline in ((2, 1), (1, 2)):
        forms[f"{tensor}x{pipeline}"] = tmp_path / f"{tensor}x{pipeline}"
        target = [str(base), str(forms[f"{tensor}x{pipeline}"]), str(tensor), str(pipeline)]
        done = execute_job(2, [sys.executable, str(script), *target])
        assert done.returncode == 0, done.stderr.decode()
    assert {name: digest(folder) for name, folder in forms.items()} == dict.fromkeys(forms, expected)


def test_values_count_and_their_dtype_does_not(untied_llama: Path, tmp_path: Path) -> None:
    half = exported(untied_llama, tmp_path / "half", "hf", "bfloat16")
    assert digest(half) != digest(untied_llama), "rounding makes another policy"
    wide = exported(half, tmp_path / "wide", "hf", "float32")
    mixed = shutil.copytree(wide, tmp_path / "mixed")
    weights = load_file(mixed / ONE)
    save_file({n: t if t.ndim == 1 else t.bfloat16() for n, t in weights.items()}, mixed / ONE, metadata={"format": "pt"})
    imported = exported(wide, tmp_path / "imported", "megatron", "bfloat16")
    assert {digest(folder) for folder in (half, wide, mixed, imported)} == {digest(half)}


def test_megatron_lms_padded_vocabulary_is_the_named_models(llama: Path, tmp_path: Path) -> None:
    root = megatron_lm.write(llama, tmp_path / "lm", megatron_lm.arguments(), {})
    assert weights_digest(resolve_pretrained(root, "megatron_lm", llama)) == digest(llama)
    assert digest(root) != digest(llama), "without its name the padding is part of the vocabulary"


def _one_bit(folder: Path) -> None:
    weights = load_file(folder / ONE)
    weights["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[5, 7] ^= 1
    save_file(weights, folder / ONE, metadata={"format": "pt"})


def _swapped(folder: Path) -> None:
    weights = load_file(folder / ONE)
    gate, up = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
    save_file({**weights, gate: weights[up], up: weights[gate]}, folder / ONE, metadata={"format": "pt"})


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def test_what_is_computed_counts_and_nothing_else(untied_llama: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    same = (_config(eos_token_id=7, use_cache=False), _config(max_position_embeddings=256), _config(_name_or_path="x"))
    other = (
        _one_bit,
        _swapped,
        _config(rms_norm_eps=1e-5),
        _config(rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        _config(rope_scaling=rope, rope_parameters=rope),
    )
    seen = []
    for number, change in enumerate((lambda folder: None, *same, *other)):
        folder = shutil.copytree(untied_llama, tmp_path / str(number))
        change(folder)
        seen.append(digest(folder))
    assert set(seen[: 1 + len(same)]) == {seen[0]}
    assert len(set(seen)) == 1 + len(other)


def test_a_digest_is_computed_once_and_anew_where_a_file_was_touched(
    untied_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memo: Path
) -> None:
    computed: list[object] = []
    compute = digests._computed
    monkeypatch.setattr(digests, "_computed", lambda source: computed.append(source) or compute(source))
    folder = shutil.copytree(untied_llama, tmp_path / "policy")

    def hashed(then: float) -> int:
        for path in folder.iterdir():
            os.utime(path, (then, then))
        computed.clear()
        digest(folder)
        digest(folder)
        return len(computed)

    assert hashed(1e9) == 1
    shutil.move(folder, tmp_path / "gone")
    shutil.move(tmp_path / "gone", folder)
    digest(folder)
    assert len(computed) == 1
    assert hashed(1.5e9) == 1
    before, state = digest(folder), (folder / ONE).stat()
    _one_bit(folder)
    shutil.copy(folder / ONE, folder / "new")  # as editors and rsync replace a file: of the same size and time, another inode
    (folder / "new").replace(folder / ONE)
    os.utime(folder / ONE, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (folder / ONE).stat().st_size == state.st_size
    assert digest(folder) != before
    os.utime(folder / ONE)  # it could change again within the same tick of the clock, so nothing is remembered
    computed.clear()
    digest(folder)
    digest(folder)
    assert len(computed) == 2
    memo.write_text("{damaged")
    assert digest(folder).startswith("tensors:")


def test_digests_of_files_are_those_of_earlier_versions(untied_llama: Path, tmp_path: Path) -> None:
    source = resolve(untied_llama)
    for name in (weights_digest(source), source.files_digest(), source.former_files_digest()):
        assert is_digest_of(name, source)
    for name in (None, "", "sha256:0", "tensors:0"):
        assert not is_digest_of(name, source)
    imported = resolve(exported(untied_llama, tmp_path / "imported"))
    assert not is_digest_of(source.files_digest(), imported), "files of another form cannot be told from other weights"


def test_damage_is_one_line(untied_llama: Path, tmp_path: Path) -> None:
    root = exported(untied_llama, tmp_path / "root")
    folder = next(root.glob("iter_*"))
    path = max(folder.glob("*.distcp"), key=lambda file: file.stat().st_size)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(UserError, match=r"distcp: is damaged in .*: copy it again"):
        digest(root)
    wrong = shutil.copytree(untied_llama, tmp_path / "wrong")
    _config(num_hidden_layers=3)(wrong)
    with pytest.raises(UserError, match=r"holds no model\.layers\.2\."):
        digest(wrong)
    shape = shutil.copytree(untied_llama, tmp_path / "shape")
    _config(num_key_value_heads=4)(shape)
    with pytest.raises(UserError, match=rf"^{shape}: .* cannot make .*linear_qkv.*: does config.json belong to these weights"):
        digest(shape)
