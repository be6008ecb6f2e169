"""Rows and texts that no machine could tokenize, damaged tables, and texts that a tokenizer gives up on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.arrow_buffers import check_buffers
from nemotron_dpo.preferences.inputs import read_chunks
from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.tokenize_chunk import Settings, make_worker
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support.preference_rows import NOON, pairs, tokenize
from support.small_tokenizers import byte_level, merging, save

ROW = {"prompt": "xa", "chosen": "b", "rejected": "cd"}


def test_a_text_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    """Of a table no line is measured, and a template makes more of a row: the text itself is."""
    longer = "{% for m in messages %}{{ m.role * 10 }}{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant' * 10 }}{% endif %}"
    folder = save(tmp_path / "a", byte_level(), chat_template=longer, eos_token="</s>")
    row = {"prompt": "p" * 20, "chosen": "c" * 10, "rejected": "r" * 10}
    all_letters = 40 + 20 + 4 + 90 + (10 + 4) * 2  # user, assistant ten times, the row, the end of three turns
    too_long = ("text too long", f"has {all_letters} letters where {all_letters - 1} are the most (--max-line-bytes)")
    for most, told in ((all_letters, []), (all_letters - 1, [too_long])):
        worker = make_worker(Settings(open_folder(str(folder)), NOON, max_line_bytes=most))
        result = worker(Chunk("rows.parquet", 1, [row], "pair"))
        assert [(reject.reason, reject.message) for reject in result.rejects] == told, most


def test_a_cell_of_a_csv_that_is_too_long_names_its_row(tmp_path: Path) -> None:
    (path := tmp_path / "rows.csv").write_text(f"prompt,chosen\na,b\nc,{'d' * 50}\n")
    with pytest.raises(UserError, match=rf"^{path}:3: has a cell of more than 40 bytes \(--max-line-bytes\)$"):
        list(read_chunks([str(path)], 40))


def test_a_text_that_the_tokenizer_gives_up_on_is_a_broken_row(tmp_path: Path) -> None:
    """The regular expression goes back exponentially; Rust's library counts, and panics."""
    (folder := save(tmp_path, merging(), eos_token="</s>")).joinpath("tokenizer.json").write_text(json.dumps(_backtracking()))
    result = tokenize(folder, ROW, {**ROW, "chosen": "a" * 40 + "b"}, ROW)
    assert [(reject.line, reject.reason) for reject in result.rejects] == [(2, "tokenizer error")]
    assert result.rejects[0].message.startswith("the tokenizer gives up on it: ")
    assert [row["source_line"] for row in pairs(result)] == [1, 3]


def _backtracking() -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    return {**json.loads(merging().to_str()), "pre_tokenizer": split}


OUTSIDE = pa.py_buffer(b"\0\0\0\0\xff\0\0\0\x02\0\0\0")  # offsets 0, 255, 2
TEXTS = pa.Array.from_buffers(pa.string(), 2, [None, OUTSIDE, pa.py_buffer(b"ab")])
NOT_UTF8 = pa.array([b"\xff"]).view(pa.string())
MAP = pa.map_(pa.string(), pa.list_(pa.struct([("a", pa.string())])))


def test_buffers_that_do_not_fit_are_found_at_any_depth_before_anything_reads_them() -> None:
    ends = pa.array([0, 2], pa.int32())
    damaged = [TEXTS, pa.ListArray.from_arrays(ends, TEXTS), pa.StructArray.from_arrays([TEXTS], ["a"])]
    index = pa.array([0, 9], pa.int32())
    damaged.append(pa.DictionaryArray.from_arrays(index, pa.array(["a"]), safe=False))
    for column in damaged:
        with pytest.raises(pa.ArrowException):
            check_buffers(pa.RecordBatch.from_arrays([column], ["a"]))
    sound = [NOT_UTF8, pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), NOT_UTF8), pa.array([[("k", [{"a": "v"}])]], MAP)]
    sound += [
        pa.array(["a"]).dictionary_encode(),
        pa.array([[1.5]], pa.list_(pa.float32(), 1)),
        pa.array(["\u20ac"], pa.large_string()),
    ]
    check_buffers(pa.RecordBatch.from_arrays(sound, [str(number) for number in range(len(sound))]))
