"""The random policy: an HF folder that transformers itself loads, the same bytes every time; the committed sample pairs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy

DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data"
FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "hf"
    write_policy([DATA / "train.jsonl"], path)
    return path


def test_same_pairs_same_bytes(folder: Path, tmp_path: Path):
    write_policy([DATA / "train.jsonl"], tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in FILES)


def test_size_by_hand(folder: Path):
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    attention = 128 * 128 + 2 * 64 * 128 + 128 * 128
    layer = attention + 3 * 384 * 128 + 2 * 128
    assert sum(weight.size for weight in weights.values()) == vocab * 128 + 4 * layer + 128
    assert vocab == 1024


@pytest.mark.slow
def test_transformers_loads_it(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Who bakes bread?"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nWho bakes bread?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_committed_pairs_are_what_the_generator_writes():
    generator = runpy.run_path(str(configs_root().parent / "pipelines" / "sample_pairs.py"))
    for name, rows in generator["sample_pairs"](seed=7).items():
        lines = (DATA / f"{name}.jsonl").read_bytes().decode("ascii").splitlines()
        assert [json.loads(line) for line in lines] == rows


def test_no_fact_of_validation_is_in_training():
    rows = {name: [json.loads(line) for line in (DATA / f"{name}.jsonl").open()] for name in ("train", "validation")}
    assert (len(rows["train"]), len(rows["validation"])) == (320, 64)
    known = {row["chosen"].split(". ")[1] for row in rows["train"]}
    assert not known & {row["chosen"].split(". ")[1] for row in rows["validation"]}
    assert all(row["chosen"] != row["rejected"] for part in rows.values() for row in part)
