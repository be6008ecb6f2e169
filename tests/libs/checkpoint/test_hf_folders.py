"""Hugging Face folders as transformers 4.40 to 5 and people write them: transformers' log-probs, or a refusal by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.rows import pack_row
from nemotron_dpo.sources import resolve
from support import families, small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]

Change = Callable[[Path], object]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LINEAR = {"rope_type": "linear", "factor": 4.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama whose log-probs depend on where tokens stand, float32."""
    return families.write_model(tmp_path_factory.mktemp("models") / "base", "llama", tied=True)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / SINGLE)


def put(folder: Path, tensors: dict[str, Tensor], name: str = SINGLE) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})


def renamed(name: Callable[[str], str]) -> Change:
    return lambda folder: put(folder, {name(key): tensor.clone() for key, tensor in weights(folder).items()})


def cast(dtype: Callable[[str], torch.dtype]) -> Change:
    return lambda folder: put(folder, {key: tensor.to(dtype(key)) for key, tensor in weights(folder).items()})


def config(drop: tuple[str, ...] = (), **changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        said = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in said.items() if key not in drop}))

    return change


def rope(old: Any = None, new: Any = None, **beside: Any) -> Change:
    """config.json with these rope_scaling and rope_parameters; None leaves the field out."""
    said = {key: value for key, value in {"rope_scaling": old, "rope_parameters": new, **beside}.items() if value is not None}

    def change(folder: Path) -> None:
        config(drop=("rope_scaling", "rope_parameters", "rope_theta"))(folder)
        config(**said)(folder)

    return change


def index(folder: Path, where: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def sharded(folder: Path, lie: Callable[[dict[str, str]], object] = lambda where: None, factor: float = 1) -> None:
    """The weights in two files; `lie` changes what the index says of them."""
    tensors = weights(folder)
    half = len(tensors) // 2
    where = {key: ONE if number < half else TWO for number, key in enumerate(tensors)}
    for name in (ONE, TWO):
        put(folder, {key: factor * tensors[key] for key in tensors if where[key] == name}, name)
    lie(where)
    index(folder, where)


def moved(folder: Path, lie: Callable[[dict[str, str]], object] = lambda where: None) -> None:
    sharded(folder, lie)
    (folder / SINGLE).unlink()


def in_turn(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def swap_first(where: dict[str, str]) -> None:
    where[next(iter(where))] = TWO


ALIKE: dict[str, Change] = {
    "as it is": lambda folder: None,
    "two files and their index": moved,
    "an index that names the wrong file": lambda folder: moved(folder, lie=swap_first),
    "an index that leaves a tensor out": lambda folder: moved(folder, lie=lambda where: where.popitem()),
    "an index of the one file": lambda folder: index(folder, dict.fromkeys(weights(folder), SINGLE)),
    "an index that lists a head which no file has": lambda folder: index(
        folder, dict.fromkeys([*weights(folder), "lm_head.weight"], SINGLE)
    ),
    "a left-over index without its files": lambda folder: index(folder, dict.fromkeys(weights(folder), ONE)),
    "left-over files without an index": lambda folder: [sharded(folder, factor=0.5), (folder / INDEX).unlink()],
    "other forms of the weights": lambda folder: [
        put(folder, {key: 0 * tensor for key, tensor in weights(folder).items()}, "consolidated.safetensors"),
        torch.save({}, folder / "pytorch_model.bin"),
    ],
    "names without model.": renamed(lambda key: key.removeprefix("model.")),
    "bfloat16 under a config of float32": cast(lambda key: torch.bfloat16),
    "several precisions": cast(lambda key: torch.float32 if "norm" in key else torch.bfloat16),
    "dtype auto": config(dtype="auto", torch_dtype="auto"),
    "dtype with torch.": config(dtype="torch.float32"),
    "no dtype": config(drop=("dtype", "torch_dtype")),
    "both dtypes, which disagree": config(dtype="float32", torch_dtype="bfloat16"),
    "rope of transformers 4": rope(rope_theta=500000.0),
    "rope of transformers 4 with nulls": rope(rope_theta=500000.0, rope_scaling=None),
    "rope of transformers 5": rope(new={"rope_type": "default", "rope_theta": 500000.0}),
    "rope of transformers 5 without a type": rope(new={"rope_theta": 500000.0}),
    "rope of transformers 5 by its older name": rope(new={"type": "default", "rope_theta": 500000.0}),
    "theta beside rope_parameters": rope(new={"rope_type": "default"}, rope_theta=500000.0),
    "no rope at all": rope(),
    "llama3 rope of transformers 4": rope(old={"rope_type": "llama3", **LLAMA3}, rope_theta=500000.0),
    "llama3 rope by its older name": rope(old={"type": "llama3", **LLAMA3}, rope_theta=500000.0),
    "llama3 rope of transformers 5": rope(new={"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}),
    "llama3 rope in both": rope(
        old={"rope_type": "llama3", **LLAMA3},
        new={"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3},
        rope_theta=500000.0,
    ),
    "what transformers does not look at": config(clip_qkv=8.0, no_rope_layers=[1, 0], auto_map={"AutoModel": "x.X"}),
}


def test_log_probs_are_those_of_transformers(base: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    pairs = small.random_pairs(1, seed=3, longest=30)
    row = pack_row(pairs.prompts, pairs.chosen, pairs.rejected)
    ids = torch.from_numpy(np.concatenate([pairs.prompts[0], pairs.chosen[0]]).astype(np.int64))
    seen = []
    for number, (name, change) in enumerate(ALIKE.items()):
        folder = shutil.copytree(base, tmp_path / str(number))
        change(folder)
        with torch.inference_mode():
            ours = open_policy(resolve(folder), "float32").all_logits(row)[: row.segments[0].rejected].log_softmax(-1)
        theirs = families.logits(folder, ids).log_softmax(-1)
        assert (ours - theirs).abs().max() <= 1e-4, name
        seen.append(theirs)
    assert (seen[list(ALIKE).index("rope of transformers 4")] - seen[0]).abs().max() > 1e-2  # a wrong theta would show


ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
REFUSED: dict[str, tuple[Change, str]] = {
    "two sets": (
        lambda folder: sharded(folder, factor=0.5),
        f"holds two sets of weights: {SINGLE}, which transformers reads, and {INDEX} with {ONE} and 1 more: remove the one",
    ),
    "no index": (
        lambda folder: [moved(folder), (folder / INDEX).unlink()],
        f"has no {INDEX}, which is to say what is in {ONE} and 1 more",
    ),
    "a tensor twice": (
        lambda folder: [moved(folder), put(folder, {**load_file(folder / ONE), **load_file(folder / TWO)}, TWO)],
        f"is in {ONE} as well as in {TWO}",
    ),
    "a tensor that only the index has": (
        lambda folder: [moved(folder), put(folder, dict(list(load_file(folder / TWO).items())[1:]), TWO)],
        f"{INDEX}: lists model.layers.",
    ),
    "torch.compile": (renamed(lambda key: f"_orig_mod.{key}"), "its names begin with _orig_mod.: save what torch.compile was"),
    "DataParallel": (renamed(lambda key: f"module.{key}"), "its names begin with module.: save the model within DataParallel"),
    "peft": (renamed(lambda key: f"base_model.model.{key}"), "its names begin with base_model.model.: merge the adapters"),
    "another wrapper": (
        renamed(lambda key: f"policy.{key}"),
        "its names begin with policy.: save the model without what wraps",
    ),
    "untied without a head": (
        config(tie_word_embeddings=False),
        "holds no lm_head.weight, and by config.json it is not the embedding: set tie_word_embeddings to true",
    ),
    "tied in words": (config(tie_word_embeddings="false"), "does not describe a model (tie_word_embeddings is 'false')"),
    "another name": (lambda folder: (folder / SINGLE).rename(folder / "weights.safetensors"), "and not weights.safetensors"),
    "float64": (cast(lambda key: torch.float64), "as float64, which would be rounded: save the model in float32"),
    "adapters beside it": (
        lambda folder: (folder / "adapter_config.json").write_text(json.dumps(ADAPTER)),
        "holds a model and adapters of peft for it",
    ),
    "weights that the config names": (config(transformers_weights="other.safetensors"), "transformers_weights 'other.safe"),
    "compressed": (config(compression_config={"format": "int"}), "compression_config of any kind is not supported"),
    "a text model within": (config(text_config={"tie_word_embeddings": False}), "text_config of any kind is not supported"),
    "linear in rope_scaling beside a default": (
        rope(old=LINEAR, new={"rope_type": "default", "rope_theta": 10000.0}),
        "rope type is 'linear' (rope_scaling.rope_type) and 'default' (rope_parameters.rope_type): leave the right one",
    ),
    "linear in rope_parameters beside a default": (
        rope(old={"type": "default"}, new={**LINEAR, "rope_theta": 10000.0}, rope_theta=10000.0),
        "rope type is 'default' (rope_scaling.type) and 'linear' (rope_parameters.rope_type)",
    ),
    "linear by its older name, without its factor": (
        rope(new={"type": "linear", "rope_theta": 10000.0}),
        "lacks 'factor'",
    ),
    "two types in one": (
        rope(old={"type": "linear", "rope_type": "default"}),
        "rope type is 'default' (rope_scaling.rope_type)",
    ),
    "two thetas": (
        rope(new={"rope_type": "default", "rope_theta": 10000.0}, rope_theta=5e5),
        "rope_theta is 10000.0 (rope_parameters.rope_theta) and 500000.0 (rope_theta)",
    ),
    "a theta that transformers 5 drops": (
        rope(old={"type": "llama3", **LLAMA3}, new={"type": "llama3", "rope_theta": 5e5, **LLAMA3}),
        "rope_theta is in rope_parameters alone: write it beside rope_scaling",
    ),
    "two factors": (
        rope(old={"type": "llama3", **LLAMA3}, new={"type": "llama3", **LLAMA3, "factor": 32.0}),
        "factor is 8.0 (rope_scaling.factor) and 32.0 (rope_parameters.factor)",
    ),
    "two original lengths": (
        rope(old={"type": "llama3", **LLAMA3}, original_max_position_embeddings=4096),
        "original_max_position_embeddings is 8192 (rope_scaling.original_max_position_embeddings) and 4096",
    ),
    "no factor": (rope(old={"type": "llama3", **LLAMA3, "factor": None}), "lacks 'factor'"),
    "rope by kinds of layers": (
        rope(new={"full_attention": {"rope_type": "default", "rope_theta": 5e5}}),
        "rope_parameters of its own for full_attention is not supported",
    ),
}


def test_what_cannot_be_honoured_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy

    for number, (name, (change, message)) in enumerate(REFUSED.items()):
        folder = shutil.copytree(base, tmp_path / str(number))
        change(folder)
        with pytest.raises(UserError) as caught:
            open_policy(resolve(folder), "float32")
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value), name


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# what the weights are, what config.json says of them -> what is written
PRECISIONS: dict[str, tuple[Change, Change, torch.dtype]] = {
    "float32 under bfloat16": (cast(lambda key: F32), config(dtype="bfloat16", torch_dtype="bfloat16"), F32),
    "bfloat16 under nothing": (cast(lambda key: BF16), config(drop=("dtype", "torch_dtype")), BF16),
    "bfloat16 under float32": (cast(lambda key: BF16), config(dtype="float32"), BF16),
    "float16 under auto": (cast(lambda key: F16), config(dtype="auto"), F16),
    "two precisions": (cast(lambda key: F32 if "norm" in key else BF16), config(dtype="bfloat16"), F32),
    "two halves": (cast(lambda key: F16 if "norm" in key else BF16), config(dtype="bfloat16"), F32),
}


def test_weights_keep_their_precision_whatever_the_config_says(base: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.export import export

    for number, (name, (kept, said, due)) in enumerate(PRECISIONS.items()):
        folder = shutil.copytree(base, tmp_path / str(number))
        in_turn(kept, said)(folder)
        for form in ("megatron", "hf"):
            export(resolve(folder), tmp_path / f"{number}-{form}", form, None)
        export(resolve(tmp_path / f"{number}-megatron"), tmp_path / f"{number}-back", "hf", None)
        for written in (tmp_path / f"{number}-hf", tmp_path / f"{number}-back"):
            before, after = weights(folder), weights(written)
            assert {tensor.dtype for tensor in after.values()} == {due}, name
            assert all(torch.equal(before[key].to(due), after[key]) for key in after), name
            assert json.loads((written / "config.json").read_text())["dtype"] == str(due).removeprefix("torch."), name


def test_the_tensors_of_a_checkpoint_say_its_precision(base: Path, tmp_path: Path) -> None:
    """As where a Hugging Face model is named for weights that were trained in another precision."""
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.checkpoint.policy import read_architecture

    stored = {name: tmp_path / name / "iter_0000000" for name in ("float32", "bfloat16")}
    for name in stored:
        export(resolve(base), tmp_path / name, "megatron", name)
    said = {name: (folder / "run_config.yaml").read_text() for name, folder in stored.items()}
    for name, other in zip(stored, reversed(stored), strict=True):
        (stored[name] / "run_config.yaml").write_text(said[other])
        (stored[name] / "integrity.json").unlink()
        assert read_architecture(resolve(stored[name])).dtype == name


def test_a_rotary_buffer_of_old_checkpoints_is_no_weight(base: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import read_architecture

    folder = shutil.copytree(base, tmp_path / "old")
    cast(lambda key: BF16)(folder)
    put(folder, {**weights(folder), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert read_architecture(resolve(folder)).dtype == "bfloat16"


def test_the_digest_counts_what_is_read_and_no_more(base: Path, tmp_path: Path) -> None:
    same: tuple[Change, ...] = (
        config(transformers_version="4.40.0", use_cache=False, eos_token_id=7, dtype="bfloat16"),
        lambda folder: (folder / "config.json").write_text(
            json.dumps(json.loads((folder / "config.json").read_text()), indent=7)
        ),
        lambda folder: put(folder, {"a": torch.ones(2)}, "consolidated.safetensors"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: index(folder, dict.fromkeys(weights(folder), ONE)),
    )
    other: tuple[Change, ...] = (
        lambda folder: put(folder, {**weights(folder), "model.norm.weight": torch.ones(32)}),
        config(rms_norm_eps=1e-5),
        config(rope_scaling=LINEAR),
        config(num_key_value_heads=4),
    )
    digests = []
    for number, change in enumerate((lambda folder: None, *same, *other)):
        folder = shutil.copytree(base, tmp_path / str(number))
        change(folder)
        digests.append(resolve(folder).files_digest())
    first, alike, changed = digests[0], digests[1 : 1 + len(same)], digests[1 + len(same) :]
    assert set(alike) == {first}
    assert first not in changed
    assert len(set(changed)) == len(other)


def test_sizes_beyond_any_model_are_refused_before_a_layer_is_made(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint import run_config
    from nemotron_dpo.checkpoint.families import config

    described = json.loads((llama / "config.json").read_text())
    for key, value in (
        ("num_hidden_layers", 10**12),
        ("num_hidden_layers", 10_001),
        ("hidden_size", 2**50),
        ("vocab_size", -(10**13)),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**described, key: value}))
        with pytest.raises(UserError, match=rf'config\.json: "{key}" is .*, and no model has more than '):
            config.read(tmp_path)
    (tmp_path / "run_config.yaml").write_text("model: {num_layers: 1000000000000}\n")
    with pytest.raises(UserError, match=r'"num_layers" is 1e\+12, and no model has more than 10,000'):
        run_config.read(tmp_path)
