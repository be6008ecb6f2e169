"""Folders of models with gated delta nets against transformers: logits, weights there and back, and what is left out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import resolve, resolve_adapters
from support import delta_nets, programs, small
from support.delta_nets import MODELS, write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


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


def test_logits_equal_transformers(tmp_path: Path) -> None:
    for name in MODELS:
        folder = write_model(tmp_path / name, name)
        pairs = small.random_pairs(1, seed=3, longest=60)
        row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
        with torch.inference_mode():
            ours = open_model(folder).all_logits(row)[: row.segments[0].rejected]
        ids = torch.cat([torch.as_tensor(part, dtype=torch.int64) for part in (pairs.prompts[0], pairs.chosen[0])])
        theirs = delta_nets.logits(folder, ids)
        assert theirs.std() > 0.1  # else anything would be close
        assert (ours - theirs).abs().max() <= 1e-4, name


FORMS = [
    ("experts", FLOAT32, None),
    ("experts", BFLOAT16, BFLOAT16),
    ("mixed", BFLOAT16, FLOAT32),
    ("dense", FLOAT16, FLOAT16),
    ("recurrence", BFLOAT16, BFLOAT16),
    ("3.5", BFLOAT16, FLOAT32),
    ("3.5 experts", BFLOAT16, BFLOAT16),
]


@pytest.mark.parametrize(("name", "dtype", "states"), FORMS)
def test_there_and_back_is_bit_equal(name: str, dtype: torch.dtype, states: torch.dtype | None, tmp_path: Path) -> None:
    """Weights of the norm of heads below one half too, which less one have no place in bfloat16; those of float32 lose a bit."""
    folder = write_model(tmp_path / "hf", name, dtype=dtype, states=states)
    norms = [
        tensor for key, tensor in load_file(folder / "model.safetensors").items() if key.endswith("linear_attn.norm.weight")
    ]
    assert min(tensor.min().item() for tensor in norms) < 0.5
    verify = 0 if dtype is FLOAT16 else 2  # the float16 that is written is computed with in float32
    root = exported(folder, tmp_path / "megatron", "megatron", verify=verify)
    back = exported(root, tmp_path / "back", "hf", verify=verify)
    if dtype is FLOAT32:
        one, other = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
        differing = {key for key, tensor in one.items() if not torch.equal(tensor, other[key])}
        assert all(key.endswith(".linear_attn.norm.weight") for key in differing)
        assert all((one[key] - other[key]).abs().max() <= 2**-24 for key in differing)
        return
    assert_same_weights(folder, back)
    ids = torch.arange(3, 43)
    assert torch.equal(delta_nets.logits(folder, ids), delta_nets.logits(back, ids))
    assert json.loads((back / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("states", [BFLOAT16, FLOAT32])
def test_a_trained_norm_is_written_as_what_it_multiplied_with(states: torch.dtype, tmp_path: Path) -> None:
    """Its float32 weight moves between what bfloat16 has; where a folder has it in float32, it is written so."""
    from nemotron_dpo.checkpoint import megatron

    model = open_model(write_model(tmp_path / "hf", "dense", dtype=BFLOAT16, states=states), "bfloat16")
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if name.endswith("out_norm.weight")}
    pairs = small.random_pairs(2, seed=3, longest=40)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    model(row).sum().backward()
    for name, parameter in model.named_parameters():
        if name in before:
            assert parameter.grad is not None
            parameter.data.sub_(0.03 * parameter.grad.sign())
            assert not torch.equal((parameter + 1).bfloat16().float(), parameter + 1)
    megatron.save(model, tmp_path / "trained", 1, None)
    written = load_file(exported(tmp_path / "trained", tmp_path / "back", "hf", verify=2) / "model.safetensors")
    norms = [tensor for key, tensor in written.items() if key.endswith("linear_attn.norm.weight")]
    assert {tensor.dtype for tensor in norms} == {states}
    assert len(norms) == len(before)


def test_config_there_and_back_says_the_same(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for name in MODELS:
        folder = write_model(tmp_path / name, name)
        back = exported(folder, tmp_path / f"{name}-back", "hf")
        before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (folder, back))
        unread = {"_name_or_path", "initializer_range", "transformers_version", "decoder_sparse_step", "mlp_only_layers"}
        if name.startswith("3.5"):
            unread = unread - {"decoder_sparse_step", "mlp_only_layers"} | (
                {"intermediate_size"} if "experts" in name else set()
            )
        elif name != "experts":
            unread |= {key for key in delta_nets.EXPERTS if "intermediate" in key or name != "mixed"}
            unread |= {"norm_topk_prob", "router_aux_loss_coef"} if name != "mixed" else set()
            unread |= {"num_attention_heads", "num_key_value_heads", "head_dim"} if name == "recurrence" else set()
        else:
            unread.add("intermediate_size")  # that of dense layers, of which there are none
        assert {key for key in before.keys() - unread if before[key] != after.get(key)} == set(), name


def test_forms_of_qwen3_5_are_the_same_weights(tmp_path: Path) -> None:
    """Experts in one tensor, as Qwen publishes them, and names within the model of text and pictures."""
    folder = write_model(tmp_path / "plain", "3.5 experts")
    tensors, other = load_file(folder / "model.safetensors"), tmp_path / "other"
    shutil.copytree(folder, other)
    block = "model.layers.{}.mlp.experts."
    packed = {key: tensor for key, tensor in tensors.items() if ".experts." not in key}
    for layer in map(block.format, range(2)):
        parts = {name: [tensors[f"{layer}{n}.{name}_proj.weight"] for n in range(8)] for name in ("gate", "up", "down")}
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        packed |= {f"{layer}gate_up_proj": torch.stack(gate_up), f"{layer}down_proj": torch.stack(parts["down"])}
    within = {key.replace("model.", "model.language_model."): tensor for key, tensor in packed.items()}
    save_file(within, other / "model.safetensors", metadata={"format": "pt"})
    assert_same_weights(exported(folder, tmp_path / "1", "hf"), exported(other, tmp_path / "2", "hf"))
    assert torch.equal(delta_nets.logits(folder, torch.arange(3, 43)), delta_nets.logits(other, torch.arange(3, 43)))
    key = "model.layers.0.mlp.experts.3.up_proj.weight"
    save_file({**within, key: tensors[key]}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"holds {key} twice: as .* and as"):
        open_model(other)


def test_keys_on_disk_are_those_of_megatron_core(tmp_path: Path) -> None:
    """As its GatedDeltaNet with Transformer Engine stores them: 2 key heads of 8, 4 value heads of 12."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for name, number in (("recurrence", 0), ("mixed", 1)):
        root = exported(write_model(tmp_path / f"{name}-hf", name), tmp_path / name, "megatron")
        stored = FileSystemReader(root / "iter_0000000").read_metadata().state_dict_metadata
        place = f"decoder.layers.{number}.self_attention."
        shapes = {key: tuple(meta.size) for key, meta in stored.items() if isinstance(meta, TensorStorageMetadata)}
        sizes = {"query": 16, "key": 16, "value": 48}
        assert {key.removeprefix(place): shape for key, shape in shapes.items() if key.startswith(place)} == {
            **{f"in_proj.weight.{part}": (rows, 32) for part, rows in {**sizes, "z": 48, "beta": 4, "alpha": 4}.items()},
            **{f"conv1d.weight.{part}": (rows, 1, 4) for part, rows in sizes.items()},
            **dict.fromkeys(("A_log", "dt_bias"), (4,)),
            "in_proj.layer_norm_weight": (32,),
            "out_norm.weight": (12,),
            "out_proj.weight": (32, 48),
        }
        extra = {re.sub(r"/shard.*", "", key) for key in stored if "_extra_state" in key}
        assert {f"{place}out_norm._extra_state", "decoder.final_layernorm._extra_state"} <= extra
    assert shapes["decoder.layers.0.self_attention.linear_qkv.weight"] == (
        192,
        32,
    )  # 2 groups of 2 queries and gates, key, value
    assert shapes["decoder.layers.1.mlp.shared_experts.gate_weight"] == (1, 32)
    assert shapes["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"] == (8, 48, 32)


def test_a_digest_is_that_of_the_weights_in_any_form(tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.weights_digest import weights_digest

    for name in ("mixed", "recurrence"):
        folder = write_model(tmp_path / name, name, dtype=BFLOAT16)
        root = exported(folder, tmp_path / f"{name}-megatron", "megatron")
        digests = {weights_digest(resolve(each)) for each in (folder, root, exported(root, tmp_path / f"{name}-2", "hf"))}
        assert len(digests) == 1
        tensors = load_file(folder / "model.safetensors")
        key = next(key for key in tensors if key.endswith("linear_attn.norm.weight"))
        save_file({**tensors, key: tensors[key] * 2}, folder / "model.safetensors", metadata={"format": "pt"})
        assert weights_digest(resolve(folder)) not in digests


def test_what_predicts_several_tokens_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", "dense")
    plain = exported(folder, tmp_path / "plain", "hf")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "mtp.fc.weight": torch.ones(32, 64)}, folder / "model.safetensors", metadata={"format": "pt"})
    done = programs.check("ckpt-export", folder, "-o", tmp_path / "without", "--to", "hf")
    assert_same_weights(plain, tmp_path / "without")
    assert b"hf: 1 tensors of layers that predict several tokens ahead (mtp.*) are left out, as in transformers" in done.stderr


DELTA = "model.layers.0.linear_attn."
DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({f"{DELTA}in_proj_ba.weight": (4, 32)}, r"in_proj_qkvz.weight \(128, 32\) and .*in_proj_ba.weight \(4, 32\) cannot make"),
    ({f"{DELTA}A_log": None}, f"holds no {DELTA}A_log"),
    ({f"{DELTA}norm.weight": (4,)}, rf"{DELTA}norm.weight \(4,\) cannot make"),
    ({f"{DELTA}conv1d.bias": (80,)}, f"holds {DELTA}conv1d.bias, which a qwen3_next of its config.json does not have"),
]


def test_weights_that_are_not_the_models_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", "recurrence")
    before = load_file(folder / "model.safetensors")
    for changes, message in DAMAGE:
        kept = {key: tensor for key, tensor in before.items() if key not in changes}
        added = {key: torch.zeros(shape) for key, shape in changes.items() if shape}
        save_file({**kept, **added}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message) as caught:
            open_model(folder)
        assert "\n" not in str(caught.value)


def test_peft_computes_with_our_adapters_what_we_do(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (configs/pins.txt has it)")
    from nemotron_dpo.checkpoint import megatron
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.policy.lora import Adapted, Base, adapt, adapters
    from nemotron_dpo.policy.lora_targets import Lora

    known = ("in_proj", "out_proj", "linear_qkv", "linear_proj")
    for name, targets in (("3.5", ()), ("dense", known), ("dense", ())):
        folder, work, ids = tmp_path / name, tmp_path / f"{name} {len(targets)}", torch.arange(3, 43)[None]
        model = open_model(folder if folder.exists() else write_model(folder, name), "float32")
        base = Base(str(folder), weights_digest(resolve(folder)))
        adapt(model, Adapted(Lora(dim=3, alpha=6, target_modules=targets), base))
        torch.manual_seed(5)
        for layer in adapters(model).values():
            torch.nn.init.normal_(layer.adapter.linear_out.weight, std=0.3)
        megatron.save(model, work / "adapters", 1, None)
        if name == "dense" and not targets:
            with pytest.raises(UserError, match=r"of model.layers.0.mlp.gate_proj, which peft leaves out .*: --to hf merges"):
                exported(work / "adapters", work / "lost", "peft")
            continue
        merged = exported(work / "adapters", work / "merged", "hf")
        written = exported(work / "adapters", work / "peft", "peft")
        assert_same_weights(merged, exported(written, work / "again", "hf"))
        with delta_nets.loaded(folder) as plain, delta_nets.loaded(merged) as ours, torch.inference_mode():
            before = plain(ids).logits
            theirs = peft.PeftModel.from_pretrained(plain, written).eval()
            assert (theirs(ids).logits - ours(ids).logits).abs().max() <= 1e-4
            assert (before - ours(ids).logits).abs().max() > 0.1


def test_the_text_tower_of_a_model_of_pictures_is_what_transformers_loads_and_saves(tmp_path: Path) -> None:
    """And the whole model computes the same of a text."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    kind, settings = MODELS["3.5"]
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
    text = {**delta_nets.SIZES, **settings, "model_type": kind, "rope_parameters": {"mrope_section": [1, 1, 0], **ROPE}}
    torch.manual_seed(1)
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision, tie_word_embeddings=False)
    )
    whole.save_pretrained(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "text")
    pairs = small.random_pairs(1, seed=3, longest=60)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ids = torch.cat([torch.as_tensor(part, dtype=torch.int64) for part in (pairs.prompts[0], pairs.chosen[0])])
    with torch.inference_mode():
        ours, same = (open_model(tmp_path / of).all_logits(row)[: row.segments[0].rejected] for of in ("text", "whole"))
        theirs = whole.eval()(input_ids=ids[None], use_cache=False).logits[0]
    assert theirs.std() > 0.1
    assert torch.equal(ours, same)
    assert (ours - theirs).abs().max() <= 1e-3  # its recurrence goes by chunks here


ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True}
