"""Folders of hybrids against transformers: logits, weights there and back with a precision per tensor, what is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import resolve, resolve_adapters
from support import hybrid_folders, programs, small
from support.hybrid_folders import PATTERNS, write_hybrid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
BIAS = "backbone.layers.1.mixer.gate.e_score_correction_bias"


def open_model(folder: Path, precision: str | None = None) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy

    return open_policy(resolve(folder), precision)


def exported(source: Path, target: Path, form: str, precision: str | None = None, verify: int = 0) -> Path:
    from nemotron_dpo.checkpoint.export import export

    export(resolve_adapters(source, None), target, form, precision, verify)
    return target


def assert_same_weights(before: Path, after: Path) -> None:
    one, other = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("name", PATTERNS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    folder = write_hybrid(tmp_path / "hf", PATTERNS[name])
    pairs = small.random_pairs(1, seed=3, longest=60)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    with torch.inference_mode():
        ours = open_model(folder).all_logits(row)[: row.segments[0].rejected]
    ids = torch.cat([torch.as_tensor(part, dtype=torch.int64) for part in (pairs.prompts[0], pairs.chosen[0])])
    theirs = hybrid_folders.logits(folder, ids)
    assert theirs.std() > 0.1  # else anything would be close
    assert (ours - theirs).abs().max() <= 1e-4


FORMS = [
    ("dense", FLOAT32, None),
    ("dense", BFLOAT16, FLOAT32),
    ("recurrence", BFLOAT16, BFLOAT16),
    ("experts", BFLOAT16, BFLOAT16),
    ("experts", BFLOAT16, FLOAT32),
    ("experts", FLOAT16, FLOAT32),
]


@pytest.mark.parametrize(("name", "dtype", "states"), FORMS)
def test_there_and_back_is_bit_equal(name: str, dtype: torch.dtype, states: torch.dtype | None, tmp_path: Path) -> None:
    folder = write_hybrid(tmp_path / "hf", PATTERNS[name], dtype=dtype, states=states)
    verify = 0 if dtype is FLOAT16 else 2  # the float16 that is written is computed with in float32
    root = exported(folder, tmp_path / "megatron", "megatron", verify=verify)
    back = exported(root, tmp_path / "back", "hf", verify=verify)
    assert_same_weights(folder, back)
    ids = torch.arange(3, 43)
    assert torch.equal(hybrid_folders.logits(folder, ids), hybrid_folders.logits(back, ids))
    written = json.loads((back / "config.json").read_text())
    assert written["dtype"] == str(dtype).removeprefix("torch.")
    assert (written["hybrid_override_pattern"], written["chunk_size"]) == (PATTERNS[name], 16)


def test_a_precision_that_is_asked_for_rounds_no_bias_and_no_states(tmp_path: Path) -> None:
    """With a rounded bias routers pick other experts; A_log, D and dt_bias stay what they are in the source."""
    folder = write_hybrid(tmp_path / "hf", PATTERNS["experts"])
    before = load_file(folder / "model.safetensors")
    root = exported(folder, tmp_path / "megatron", "megatron", "bfloat16")
    after = load_file(exported(root, tmp_path / "bfloat16", "hf") / "model.safetensors")
    assert not torch.equal(before[BIAS], before[BIAS].bfloat16().float())
    for key, tensor in after.items():
        own = key.endswith((*hybrid_folders.STATES, "e_score_correction_bias"))
        assert torch.equal(tensor, before[key] if own else before[key].bfloat16()), key
        assert tensor.dtype is (FLOAT32 if own else BFLOAT16), key
    model = open_model(root)
    assert {tensor.dtype for name, tensor in model.named_parameters() if "mixer.A_log" in name} == {FLOAT32}
    half = write_hybrid(tmp_path / "half", PATTERNS["experts"], dtype=BFLOAT16, states=BFLOAT16)
    whole = load_file(exported(half, tmp_path / "whole", "hf", "float32") / "model.safetensors")
    assert {tensor.dtype for tensor in whole.values()} == {FLOAT32}
    assert all(
        torch.equal(tensor, whole[key].to(tensor.dtype)) for key, tensor in load_file(half / "model.safetensors").items()
    )


def test_layers_are_numbered_and_stacked_parts_apart(tmp_path: Path) -> None:
    """As megatron-core's MambaStack of Transformer Engine layers stores them: 8 heads of 8, 4 groups of 16 states."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for pattern in ("M", "EM"):
        root = exported(write_hybrid(tmp_path / f"{pattern}-hf", pattern), tmp_path / pattern, "megatron")
        stored = FileSystemReader(root / "iter_0000000").read_metadata().state_dict_metadata
        place = f"decoder.layers.{len(pattern) - 1}.mixer."
        shapes = {key: tuple(meta.size) for key, meta in stored.items() if isinstance(meta, TensorStorageMetadata)}
        mixer = {key.removeprefix(place): shape for key, shape in shapes.items() if key.startswith(place)}
        parts = {"z": 64, "x": 64, "B": 64, "C": 64, "dt": 8}
        assert mixer == {
            **{f"in_proj.weight.{part}": (rows, 32) for part, rows in parts.items()},
            **{f"conv1d.weight.{part}": (64, 1, 4) for part in "xBC"},
            **{f"conv1d.bias.{part}": (64,) for part in "xBC"},
            **dict.fromkeys(hybrid_folders.STATES, (8,)),
            "in_proj.layer_norm_weight": (32,),
            "norm.weight": (64,),
            "out_proj.weight": (32, 64),
        }
        assert shapes["decoder.final_norm.weight"] == (32,)
        extra = {re.sub(r"/shard.*", "", key) for key in stored if "_extra_state" in key}
        assert {"decoder.final_norm._extra_state", "output_layer._extra_state"} <= extra
    assert shapes["decoder.layers.0.mlp.router.expert_bias"] == (8,)
    assert shapes["decoder.layers.0.pre_mlp_layernorm.weight"] == (32,)
    assert shapes["decoder.layers.0.mlp.experts.experts.linear_fc1.weight"] == (8, 24, 32)
    assert shapes["decoder.layers.0.mlp.shared_experts.linear_fc1.weight"] == (40, 32)


def test_what_predicts_several_tokens_is_left_out_as_in_transformers(tmp_path: Path) -> None:
    folder = write_hybrid(tmp_path / "hf", PATTERNS["dense"])
    plain = exported(folder, tmp_path / "plain", "hf")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "mtp.layers.0.norm.weight": torch.ones(32)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    ahead = {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"}
    (folder / "config.json").write_text(json.dumps({**config, **ahead}))
    done = programs.check("ckpt-export", folder, "-o", tmp_path / "without", "--to", "hf")
    assert_same_weights(plain, tmp_path / "without")
    assert b"hf: 1 tensors of layers that predict several tokens ahead (mtp.*) are left out, as in transformers" in done.stderr


DAMAGE = [
    (
        {"backbone.layers.0.mixer.in_proj.weight": (8, 32)},
        r"backbone.layers.0.mixer.in_proj.weight \(8, 32\) cannot make decoder",
    ),
    ({"backbone.layers.0.mixer.A_log": None}, "holds no backbone.layers.0.mixer.A_log"),
    ({BIAS: None}, "holds no backbone.layers.1.mixer.gate.e_score_correction_bias"),
    ({"lm_head.weight": None}, "holds no lm_head.weight"),
    ({"backbone.layers.0.mixer.in_proj.bias": (264,)}, "holds backbone.layers.0.mixer.in_proj.bias, which a nemotron_h of"),
]


def test_weights_that_are_not_the_models_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_hybrid(tmp_path / "hf", "ME")
    before = load_file(folder / "model.safetensors")
    for changes, message in DAMAGE:
        kept = {key: tensor for key, tensor in before.items() if key not in changes}
        added = {key: torch.zeros(shape) for key, shape in changes.items() if shape}
        save_file({**kept, **added}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message) as caught:
            open_model(folder)
        assert "\n" not in str(caught.value)


def adapted(folder: Path, root: Path, **settings: Any) -> Path:
    """A checkpoint of random adapters over the hybrid in `folder`."""
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.policy.lora import Adapted, Base, adapt, adapters
    from nemotron_dpo.policy.lora_targets import Lora

    model = open_model(folder, "float32")
    adapt(model, Adapted(Lora(dim=3, alpha=6, **settings), Base(str(folder), weights_digest(resolve(folder)))))
    torch.manual_seed(5)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
    megatron.save(model, root, 1, None)
    return root


def test_peft_computes_with_our_adapters_what_we_do(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (configs/pins.txt has it)")
    folder, ids = write_hybrid(tmp_path / "hf", PATTERNS["dense"]), torch.arange(3, 43)[None]
    targets = ("in_proj", "linear_qkv", "linear_proj", "linear_fc1")
    for name, more in (("known", ()), ("all", ("out_proj",))):  # which peft itself refuses for this family
        root = adapted(folder, tmp_path / name, target_modules=targets + more)
        merged = exported(root, tmp_path / f"{name}-merged", "hf")
        written = exported(root, tmp_path / f"{name}-peft", "peft")
        assert_same_weights(merged, exported(written, tmp_path / f"{name}-again", "hf"))
        if more:
            with pytest.raises(ValueError, match="Module 'out_proj' is incompatible with Mamba-based models"):
                peft.PeftModel.from_pretrained(hybrid_folders.load(folder), written)
            continue
        theirs = peft.PeftModel.from_pretrained(hybrid_folders.load(folder), written).eval()
        with torch.inference_mode():
            ours, plain = hybrid_folders.load(merged)(ids).logits, hybrid_folders.load(folder)(ids).logits
            assert (theirs(ids).logits - ours).abs().max() <= 1e-4
            assert (plain - ours).abs().max() > 0.1


def test_adapters_of_experts_are_merged_and_given_to_peft_by_nobody(tmp_path: Path) -> None:
    """transformers holds all experts of a layer in one tensor, so that peft would leave such adapters out without a word."""
    folder = write_hybrid(tmp_path / "hf", "ME")
    root = adapted(folder, tmp_path / "adapters", target_modules=("linear_fc1",))
    before, after = (
        load_file(folder / "model.safetensors"),
        load_file(exported(root, tmp_path / "hf-2", "hf") / "model.safetensors"),
    )
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    experts = {f"experts.{number}" for number in range(8)} | {"shared_experts"}
    assert changed == {f"backbone.layers.1.mixer.{name}.up_proj.weight" for name in experts}
    with pytest.raises(UserError, match="has adapters of experts, for which transformers has no modules"):
        exported(root, tmp_path / "peft", "peft")
    assert not (tmp_path / "peft").exists()
