"""Checkpoints of adapters: saved, opened merged over their base, refused where that has changed, and written for peft."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from nemotron_dpo.checkpoint.weights_digest import weights_digest
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import resolve, resolve_adapters
from support import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

SETTINGS = [{}, {"target_modules": ("*.layers.1.*.linear_qkv", "linear_fc2")}]


def trained(base: Path, precision: str = "float32", **settings: Any):
    """A model over `base`, its adapters' B random."""
    from nemotron_dpo.checkpoint import adapters
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy import lora

    source = resolve(base)
    model = open_policy(source, precision)
    over = adapters.base_of(source, weights_digest(source))
    lora.adapt(model, lora.Adapted(lora.Lora(dim=4, alpha=6, **settings), over))
    random = torch.Generator().manual_seed(5)
    for layer in lora.adapters(model).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.1, generator=random)
    return model


def saved(root: Path, base: Path, precision: str = "float32", **settings: Any):
    """The trained model and the source of its checkpoint."""
    from nemotron_dpo.checkpoint import megatron

    model = trained(base, precision, **settings)
    megatron.save(model, root, 3, None)
    return model, resolve(root)


def logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids [1, S], logits [S, V]) of one prompt and its chosen response."""
    pairs = small.random_pairs(1, seed=3)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    with torch.no_grad():
        return ids[None], model.all_logits(row)[: row.segments[0].rejected]


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_saved_opens_merged_or_as_it_was(settings: dict, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import adapters

    model, source = saved(tmp_path / "root", llama, **settings)
    expected = logits(model)[1]
    again = open_policy(source, None, merged=False)
    assert adapters(again).keys() == adapters(model).keys()
    assert torch.equal(logits(again)[1], expected)
    merged = open_policy(source, None)
    assert not adapters(merged)
    assert (logits(merged)[1] - expected).abs().max() <= 1e-5


def test_adapters_over_a_megatron_checkpoint_and_over_other_adapters(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.checkpoint.policy import open_policy

    export(resolve(llama), tmp_path / "base", "megatron", None)
    saved(tmp_path / "first", tmp_path / "base")
    second, source = saved(tmp_path / "second", tmp_path / "first")
    assert (logits(open_policy(source, None))[1] - logits(second)[1]).abs().max() <= 1e-5


def test_a_bfloat16_merge_is_done_in_float32(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import adapters

    model, source = saved(tmp_path / "root", llama, "bfloat16")
    merged = dict(open_policy(source, None).named_parameters())
    for name, layer in adapters(model).items():
        a, b = (weight.detach().double() for weight in (layer.adapter.linear_in.weight, layer.adapter.linear_out.weight))
        exact = layer.to_wrap.get_parameter("weight").double() + 1.5 * b @ a
        assert merged[f"{name}.weight"].dtype is torch.bfloat16
        assert (merged[f"{name}.weight"].double() - exact).abs().max() <= 2**-8 * exact.abs().max()
        changed = (merged[f"{name}.weight"] != exact.bfloat16()).double().mean()
        assert changed <= 0.01  # only what float32 and float64 round apart


def test_the_digest_covers_the_scale(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.policy.lora import Adapted, Base, Lora

    model = trained(llama)
    for alpha in (6, 7):
        model.adapted = Adapted(Lora(dim=4, alpha=alpha), Base("base", "digest"))  # type: ignore[assignment] - to torch any attribute is a tensor or a module
        megatron.save(model, tmp_path / str(alpha), 0, None)
    digests = {weights_digest(resolve(tmp_path / str(alpha))) for alpha in (6, 7)}
    assert len(digests) == 2


def test_a_base_that_is_gone_or_changed_is_refused(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    base = Path(shutil.copytree(llama, tmp_path / "base"))
    source = saved(tmp_path / "root", base)[1]
    small.write_llama(base, seed=9)
    with pytest.raises(UserError, match=r"holds adapters over .*/base, whose weights have changed \(tensors:.* is due\)"):
        open_policy(source, None)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"root.*holds adapters over .*/base, which is gone: put it back, or name it with"):
        open_policy(source, None)


def test_a_base_that_was_moved_is_named_and_another_is_refused_by_its_digest(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    base = Path(shutil.copytree(llama, tmp_path / "base"))
    model, _ = saved(tmp_path / "root", base)
    moved = base.rename(tmp_path / "moved")
    merged = open_policy(resolve_adapters(tmp_path / "root", str(moved)), None)
    assert (logits(merged)[1] - logits(model)[1]).abs().max() <= 1e-5
    other = small.write_llama(tmp_path / "other", seed=9)
    with pytest.raises(
        UserError, match=r"over other weights than those of .*/other \(tensors:.* is due\): name their own base"
    ):
        open_policy(resolve_adapters(tmp_path / "root", str(other)), None)


def test_adapters_without_a_digest_of_their_base_need_it_named(llama: Path, tmp_path: Path) -> None:
    """As Megatron-Bridge writes them: a peft section and the base's place."""
    from nemotron_dpo.checkpoint import adapters
    from nemotron_dpo.checkpoint.policy import open_policy

    model, source = saved(tmp_path / "root", llama)
    assert not adapters.names_no_weights(source)
    path = source.path / "run_config.yaml"
    said = yaml.safe_load(path.read_text())
    del said["nemotron_dpo"]["base_weights_digest"]
    path.write_text(yaml.safe_dump(said))
    (source.path / "integrity.json").unlink()
    with pytest.raises(UserError, match="does not say by digest over which weights its adapters were trained: name their base"):
        open_policy(source, None)
    named = resolve_adapters(tmp_path / "root", str(llama))
    assert adapters.names_no_weights(named)
    assert (logits(open_policy(named, None))[1] - logits(model)[1]).abs().max() <= 1e-5


def test_adapters_that_name_their_base_by_the_former_digest_open(llama: Path, tmp_path: Path) -> None:
    """sha256 over a line for each of config.json and model.safetensors as they stand: what adapters were saved with before."""
    from nemotron_dpo.checkpoint.policy import open_policy

    source = saved(tmp_path / "root", llama)[1]
    files = [(name, hashlib.sha256((llama / name).read_bytes()).hexdigest()) for name in ("config.json", "model.safetensors")]
    former = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in files).encode()).hexdigest()
    path = source.path / "run_config.yaml"
    path.write_text(path.read_text().replace(weights_digest(resolve(llama)), f"sha256:{former}"))
    (source.path / "integrity.json").unlink()
    open_policy(source, None)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("peft", "_target_", "megatron.bridge.peft.dora.DoRA", "DoRA is not supported, LoRA is"),
        ("peft", "dim", None, "does not describe adapters"),
        ("checkpoint", "pretrained_checkpoint", None, "does not describe adapters"),
    ],
)
def test_a_damaged_description_is_named(section: str, key: str, value: Any, message: str, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import adapters

    source = saved(tmp_path / "root", llama)[1]
    path = source.path / "run_config.yaml"
    said = yaml.safe_load(path.read_text())
    said[section] = {**said[section], key: value} if value else {k: v for k, v in said[section].items() if k != key}
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(UserError, match=r"run_config\.yaml: is damaged: its sha256 is not the one in integrity\.json"):
        adapters.read(source)
    (source.path / "integrity.json").unlink()
    with pytest.raises(UserError, match=message):
        adapters.read(source)


@pytest.mark.parametrize("settings", SETTINGS)
def test_peft_loads_the_exported_folder(settings: dict, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    peft = pytest.importorskip("peft", reason="peft is not installed (configs/pins.txt has it)")
    model, source = saved(tmp_path / "root", llama, **settings)
    export(source, tmp_path / "peft", "peft", None)
    ids, expected = logits(model)
    theirs = peft.PeftModel.from_pretrained(small.load_llama.__wrapped__(llama), tmp_path / "peft").eval()
    with torch.no_grad():
        assert (theirs(ids).logits[0] - expected).abs().max() <= 1e-5
        merged = theirs.merge_and_unload()
        assert (merged(ids).logits[0] - expected).abs().max() <= 1e-5
    export(source, tmp_path / "merged", "hf", None)
    ours, theirs = load_file(tmp_path / "merged" / "model.safetensors"), merged.state_dict()
    assert all((ours[key] - theirs[key]).abs().max() <= 1e-6 for key in ours)


def test_a_whole_policy_has_no_adapters_to_export(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    with pytest.raises(UserError, match="holds no adapters: --to hf"):
        export(resolve(llama), tmp_path / "peft", "peft", None)
    assert not (tmp_path / "peft").exists()
