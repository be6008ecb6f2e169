"""Checkpoints as Megatron-LM writes them: arguments in the common state, padded vocabulary, either layout of keys and norms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import ModelSource, resolve, resolve_pretrained, with_hf_model
from support import families
from support.megatron_lm import PADDED, arguments, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("megatron")]


def same_weights(source: ModelSource, llama: Path, tmp_path: Path) -> bool:
    from nemotron_dpo.checkpoint.export import export

    export(source, tmp_path / "hf", "hf", None)
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    return all(torch.equal(before[key], after[key]) for key in before)


def plain_norms(sharded: dict) -> None:
    """Norms under the names of layers that no linear layer swallowed, as megatron-core's own layers once wrote them."""
    for value in sharded.values():
        value.key = value.key.replace(".self_attention.linear_qkv.layer_norm_", ".input_layernorm.")
        value.key = value.key.replace(".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm.")


@pytest.mark.parametrize("args", [True, False])
@pytest.mark.parametrize(
    ("content", "change"),
    [({"singleton_local_shards": True}, None), ({"singleton_local_shards": False}, None), ({}, None), ({}, plain_norms)],
)
def test_every_layout_is_read(args: bool, content: dict, change: Any, llama: Path, tmp_path: Path) -> None:
    root = write(llama, tmp_path / "lm", arguments() if args else None, content, change)
    source = resolve_pretrained(root, "megatron_lm", llama)
    assert source.path == root / "iter_0000005"
    assert source.iteration == 5
    assert same_weights(source, llama, tmp_path)


def test_arguments_alone_describe_the_model(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import read_architecture

    root = write(llama, tmp_path / "lm", arguments(), {})
    expected = replace(read_architecture(resolve(llama)), vocab_size=PADDED, bos_token_id=None, eos_token_id=None)
    assert read_architecture(resolve(root)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 3}, "num_layers is 3 in the checkpoint and 2 in the Hugging Face model"),
        ({"rotary_base": 500000}, "rotary_base is 500000.0 in the checkpoint and 10000.0 in"),
        ({"multi_latent_attention": True}, "multi_latent_attention: True is not supported"),
        ({"swiglu": False}, "activation_func 'torch.nn.functional.gelu' is not supported"),
        ({"hidden_size": None}, "describe no model"),
    ],
)
def test_arguments_of_another_model_are_refused(changes: dict, message: str, llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import read_architecture

    root = write(llama, tmp_path / "lm", arguments(**changes), {})
    with pytest.raises(UserError, match=message) as caught:
        read_architecture(resolve_pretrained(root, "megatron_lm", llama))
    assert str(caught.value).startswith(f"{root / 'iter_0000005'}: ")


def test_families_that_arguments_cannot_describe_are_refused(llama: Path, tmp_path: Path) -> None:
    """Norms behind each block, multipliers, layers that differ: Megatron-LM's command line has no words for them."""
    from nemotron_dpo.checkpoint.policy import read_architecture

    root = write(llama, tmp_path / "lm", arguments(), {})
    for family in ("olmo2", "olmo3", "granite", "gemma2", "gemma3_text"):
        named = families.write_model(tmp_path / family, family)
        with pytest.raises(UserError, match=f"Megatron-LM's arguments describe no {family} model"):
            read_architecture(resolve_pretrained(root, "megatron_lm", named))


def test_without_arguments_a_model_must_be_named(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import read_architecture

    root = write(llama, tmp_path / "lm", None, {})
    with pytest.raises(UserError, match="needs the name of its Hugging Face model"):
        read_architecture(resolve(root))


def test_too_few_vocabulary_entries_are_refused(llama: Path, tmp_path: Path) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from support import small

    larger = small.write_llama(tmp_path / "larger", vocab_size=PADDED + 2)
    source = resolve_pretrained(write(llama, tmp_path / "lm", arguments(), {}), "megatron_lm", larger)
    with pytest.raises(UserError, match=r"embedding.word_embeddings.weight has 128 entries where the model has 130"):
        open_policy(source, None)


def test_what_is_named_must_be_what_it_should(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no Megatron checkpoint"):
        resolve_pretrained(llama, "megatron_bridge", llama)
    with pytest.raises(UserError, match="is no checkpoint of Megatron-LM") as refused:
        with_hf_model(resolve(llama), llama)
    assert refused.value.field is None  # no config is there where --hf-model is an option
    root = write(llama, tmp_path / "lm", arguments(), {})
    with pytest.raises(UserError, match="is no Hugging Face model"):
        resolve_pretrained(root, "megatron_lm", root)


def test_the_highest_iteration_stands_where_no_tracker_does(llama: Path, tmp_path: Path) -> None:
    root = write(llama, tmp_path / "lm", arguments(), {})
    (root / "latest_checkpointed_iteration.txt").unlink()
    (root / "iter_0000004").mkdir()
    assert resolve(root).path.name == "iter_0000005"
    assert resolve(root / "iter_0000005").path.name == "iter_0000005"


def test_the_tokenizer_is_the_named_models(llama: Path, tmp_path: Path) -> None:
    source = resolve_pretrained(write(llama, tmp_path / "lm", arguments(), {}), "megatron_lm", llama)
    assert source.tokenizer_folder == llama
