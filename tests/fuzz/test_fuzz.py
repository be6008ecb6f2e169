"""Odd inputs of every kind that strangers hand to us end in a value or in one line, and soon; and what once did not."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import types

from fuzz.attempts import attempt, judged
from fuzz.edits import Edits
from fuzz.inputs import ALL
from fuzz.inputs.models import as_safetensors

INPUTS = 12  # of each kind: the long search is `run.py`
MEMORY = 1 << 19  # KiB


@pytest.mark.parametrize("name", ALL)
def test_odd_inputs(name: str, tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(INPUTS):
        (folder := tmp_path / str(number)).mkdir()
        failure = attempt(ALL[name], number, folder)
        assert failure is None, (number, failure)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def test_a_number_makes_one_input_and_others_make_others():
    sound = {"a": [1, 2, {"b": "text"}], "c": None}
    made = [Edits(number).content(sound, ALL["config.json"].written) for number in range(40)]
    assert made == [Edits(number).content(sound, ALL["config.json"].written) for number in range(40)]
    assert len(set(made)) > 30
    assert Edits(3).content(b"plain", ALL["stream"].written) != Edits(4).content(b"plain", ALL["stream"].written)


def _null_not_nullable(nested: Callable[[pa.Field], pa.DataType]) -> bytes:
    """A stream of rows with a column `nested` of a field of nulls that says it has none, as pyarrow reads and makes not."""
    values, field = pa.nulls(1), pa.field("a", pa.null(), metadata={"a": "b"})
    rows = pa.record_batch([values.cast(nested(field))], schema=pa.schema([pa.field("odd", nested(field))]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    sound = bytearray(sink.getvalue())
    for place in (place for place, value in enumerate(sound) if value == 1):
        odd = bytes(sound[:place] + b"\0" + sound[place + 1 :])
        try:
            kind = pa.ipc.open_stream(odd).schema.field(0).type
        except (pa.ArrowException, OSError, IndexError):  # what else is 1
            continue
        if kind.num_fields == 1 and types.is_null(kind.field(0).type) and not kind.field(0).nullable:
            return odd
    raise AssertionError("no byte says whether the field may be null")


# What the long search found: the kind, and what is changed of its first sound input, or the input itself.
DEEP = b"[" * 3000
FOUND: list[tuple[str, Any]] = [
    ("metrics.jsonl", b'{"step": 1, "train/loss": "low"}\n[1]\n7\n{"step": null, "train/loss": 1}\n{"step": true, "train/loss": 1}\n'),
    ("metrics.jsonl", b'{"step": 1, "train/loss": 1, "train/accuracy": {"a": 1}}\n{"step": -1, "validation-default/loss": 0.5}\n'),
    ("metrics.jsonl", b'{"step": 1, "train/loss": 1}\n{"step": 1, "validation-default/loss": 1, "validation-default/accuracy": 7, "validation-default/num_valid_samples": -3}\n'),
    ("metrics.jsonl", b'{"step": 1, "train/loss": 1}\n{"step": 1, "validation-default/loss": 1, "validation-default/accuracy": 0.5, "validation-default/num_valid_samples": 1.7e308}\n'),
    ("rows.stream", _null_not_nullable(lambda field: pa.struct([field]))),
    ("rows.stream", _null_not_nullable(pa.list_)),
    ("job.yaml", b"a: !!int abc\n"),
    ("job.yaml", b"a: " + DEEP),
    ("step.toml", b'[step]\nid = 1\nname = "n"\ncategory = "c"\ndescription = "d"\n'),
    ("step.toml", b'consumes = 3\n[step]\nid = "a"\nname = "n"\ncategory = "c"\ndescription = "d"\n'),
    ("step.toml", b'[step]\nid = "a"\nname = "n"\ncategory = "c"\ndescription = "d"\n[[parameters]]\ndefault = 1\n'),
    *(("theirs.yaml", {key: value}) for key, value in (
        ("per_device_train_batch_size", 0), ("per_device_train_batch_size", 0.5), ("gradient_accumulation_steps", "auto"), ("max_steps", 10**400),
        ("eval_steps", "often"), ("eval_steps", 0), ("loss_weights", "a"), ("loss_weights", [{}]), ("report_to", 5), ("report_to", [["wandb"]]),
        ("max_samples", float("inf")), ("warmup_steps", float("nan")), ("seed", [1]), ("beta", "\udcff"), ("lora_target_modules", 3),
        ("loss_weights", [10**400]), ("dataset_name", ["a"]), ("model_name_or_path", {"a": 1}), ("loss_type", [None]), ("lr_scheduler_type", ["linear"]),
    )),
    ("theirs.yaml", b"rl: {}\nbase_model: m\n"),
    ("theirs.yaml", b"rl: dpo\nbase_model: m\nevals_per_epoch: [1]\nadapter: [lora]\n"),
    ("config.yaml", b"data: {train: {dataset_name: [a]}}\n"),
    ("config.yaml", b'policy: {model_name: "\\udcff"}\n'),
    ("config.yaml", b"2147483648\n...\n"),
    ("config.yaml", b"defaults: [default]\ndata: {train: {dataset_name: {a: 1}}}\n"),
    ("config.yaml", b"defaults: ${a}\n"),
    ("config.yaml", b"dpo: ${a}\n"),
    ("config.yaml", b"data: {validation: {a: '${b}'}, train: {path: c, split_from_train: '${b}'}}\n"),
    ("config.yaml", b"defaults: default\ndata: {validation: {a: '${b}'}, train: {path: c, split_from_train: '${b}'}}\n"),
    ("config.yaml", b"data:\n  validation:\n    pro\tmpt_file: held_out.jsonl\n"),
    ("config.yaml", b"defaults: default\ndpo: {preference_loss: '${a}'}\n"),
    ("config.json", b"[" * 3000 + b"Infinity"),
    ("config.json", b'{"a": Infinity, "b": "\xff"}'),
    ("run_config.yaml", b"model: {num_layers: " + b"9" * 400 + b"}\n"),
    ("run_config.yaml", b"model: {num_layers: .inf}\npeft: {dim: .inf}\nnemotron_dpo: {base_weights_digest: a}\ncheckpoint: {pretrained_checkpoint: b}\n"),
    ("adapter_config.json", DEEP),
    ("integrity.json", {"files": {"a" * 300: "00"}}),
    *(
        ("safetensors", as_safetensors({name: {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}))
        for name in ("a[b", "a[1]", "[", "a[]", "[2]")
    ),
    ("safetensors index", {"weight_map": {"a.weight": "a" * 300}}),
    ("tokenizer.json", b'{"model": {"type": "BPE", "continuing_subword_prefix": "${a}", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}'),
    *(("tokenizer.json", b'{"model": {"type": "BPE", "unk_token": "%s", "vocab": {"x": 0, "a": 1}, "merges": []}}' % text) for text in (b"-1", b"c")),
    ("tokenizer.json", b'{"model": {"type": "WordLevel", "unk_token": "-1", "vocab": {"x": 0}}}'),
    *(("tokenizer_config.json", {key: value}) for key, value in (
        ("tokenizer_class", 1.5), ("fast_tokenizer_files", 3), ("chat_template", [{"name": ["a"], "template": "b"}]), ("eos_token", {"content": "a", "special": "yes"}),
        ("chat_template", [{"name": "default", "template": "b"}, {"name": "tool_use", "template": 1}]), ("added_tokens_decoder", {"9": {"content": "q", "lstrip": [1]}}),
    )),
    ("tokenizer_config.json", b'{"chat_template": "\\udcff", "a": NaN}'),
    ("chat template", b"{{ " + b"{a: " * 5000),
    ("chat template", b"{{ m" + b".a" * 5000 + b" }}"),
    ("stream info", {"version": [3]}),
    ("stream info", {"schema": ["tokenized_pairs"]}),
]  # fmt: skip


def test_what_the_long_search_found(tmp_path: Path):
    for number, (name, odd) in enumerate(FOUND):
        target = ALL[name]
        content = odd if isinstance(odd, bytes) else target.written({**target.sound()[0], **odd})
        (folder := tmp_path / str(number)).mkdir()
        failure = judged(target, content, folder)
        assert failure is None, (name, odd, failure)
