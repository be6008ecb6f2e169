"""Rows of preferences."""

from __future__ import annotations

import datetime
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.target import Target, as_is, as_json, as_lines, put


def _rows() -> list[Any]:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    said = {"role": "assistant", "content": "a b"}
    other = {"role": "assistant", "content": "a c"}
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
    human = "\n\nHuman: q\n\nAssistant:"
    return [
        [{"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 1.5, "rejected_score": -2, "id": 7}],
        [{"prompt": turns, "chosen": [said], "rejected": [other], "tools": [tool], "chat_template_kwargs": {"a": 1}}],
        [{"prompt": parts, "chosen": [call], "rejected": other, "score_chosen": 3, "score_rejected": 1}],
        [{"chosen": [*turns, said], "rejected": [*turns, other], "source": "x", "margin": 2}],
        [{"chosen": human + " yes", "rejected": human + " no"}, {"chosen": human + " 1", "rejected": human + " 2"}],
        [{"context": turns, "completions": [{"rank": 0, "completion": [said]}, {"rank": 1, "completion": [other]}]}],
        [{"context": "q", "response1": "a", "response2": "b", "overall_preference": -2}],
        [
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            }
        ],
        [{"instruction": "i", "input": "x", "output": ["a", "b"], "system": "s", "history": [["q", "a"]]}],
        [
            {
                "prompt": json.dumps(turns),
                "chosen": json.dumps([said]),
                "rejected": json.dumps([other]),
                "tools": json.dumps([tool]),
            }
        ],
    ]


@functools.cache
def _worker() -> Any:
    from nemotron_dpo.preferences.tokenize_chunk import Settings, make_worker
    from nemotron_dpo.preferences.tokenizer_folder import open_folder
    from support.chat_templates import CHATML
    from support.small_tokenizers import byte_level, save

    folder = tempfile.mkdtemp()
    try:
        save(Path(folder), byte_level(), chat_template=CHATML, bos_token="<s>", eos_token="<|im_end|>")
        return make_worker(Settings(open_folder(folder), datetime.datetime(2026, 1, 1), max_line_bytes=1 << 16), num_shown=1)
    finally:
        shutil.rmtree(folder)


def _tokenized(path: Path) -> int:
    from nemotron_dpo.preferences.inputs import read_chunks
    from nemotron_dpo.preferences.recognition import with_row_formats
    from nemotron_dpo.preferences.row_formats import Keys, columns_read

    chunks = read_chunks([str(path)], 1 << 16, columns_read(Keys()))
    return sum(_worker()(chunk).num_rows for chunk in with_row_formats(chunks, "auto", Keys(), 1 << 16))


def _arrow_rows(kind: str) -> Callable[[], list[Any]]:
    def sound() -> list[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        made = []
        for rows in _rows()[:7]:
            buffer, table = (
                io.BytesIO(),
                pa.Table.from_pylist(
                    [{k: v for k, v in row.items() if k not in ("chat_template_kwargs", "tools")} for row in rows]
                ),
            )
            if kind == "parquet":
                pq.write_table(table, buffer)
            else:
                with (
                    pa.ipc.new_stream(buffer, table.schema)
                    if kind == "stream"
                    else pa.ipc.new_file(buffer, table.schema) as out
                ):
                    out.write_table(table)
            made.append(buffer.getvalue())
        return made

    return sound


def _csv() -> list[Any]:
    return [b'prompt,chosen,rejected,score\n"p ""q""",c,r,1\np2,"a\nb",d,2\n', b"prompt\tchosen\trejected\np\tc\tr\n"]


def _of_rows(name: str) -> Callable[[Path, bytes], object]:
    return lambda folder, content: _tokenized(put(folder, name, content))


TARGETS = (
    Target("rows.jsonl", _rows, as_lines, _of_rows("rows.jsonl")),
    Target("rows.json", _rows, as_json, _of_rows("rows.json")),
    Target("rows.csv", _csv, as_is, _of_rows("rows.csv")),
    Target("rows.parquet", _arrow_rows("parquet"), as_is, _of_rows("rows.parquet")),
    Target("rows.arrow", _arrow_rows("file"), as_is, _of_rows("rows.arrow")),
    Target("rows.stream", _arrow_rows("stream"), as_is, _of_rows("rows.arrow")),
)
