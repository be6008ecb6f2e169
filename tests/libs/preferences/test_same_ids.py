"""The same rows give the same ids from every container: JSON lines, a JSON array, Parquet, Arrow, and what `datasets` saves.

Keys of an object come in the order of the table's columns, and a null in an object is one that nobody wrote: Arrow keeps no
more, so the rows here have their keys in that order and no such nulls.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_dpo.preferences.inputs import expand, read_chunks
from nemotron_dpo.preferences.recognition import with_row_formats
from nemotron_dpo.preferences.row_formats import Keys, columns_read
from nemotron_dpo.preferences.tokenize_chunk import Settings, Worker, make_worker
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support.preference_rows import NOON
from support.small_tokenizers import byte_level, save

# prints all that a row can bring: tools, variables, calls, roles and contents
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% if style is defined %}<|system|>{{ style | tojson }}{{ flag is defined }}<|end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{{ m.content or '' }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = st.text(st.sampled_from("ab \u00e9\n\"{['"), max_size=5)
Kinds = dict[str, Any]


def inner(text: pa.DataType, listed: Callable[[Any], Any], depth: int = 2) -> pa.StructType:
    """An object of any depth up to `depth`, as what `objects` draws."""
    fields = [("count", pa.int64()), ("flag", pa.bool_()), ("names", listed(text)), ("text", text)]
    if depth:
        fields += [("under", inner(text, listed, depth - 1)), ("uppers", listed(inner(text, listed, depth - 1)))]
    return pa.struct(fields)


def objects(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    some: dict[str, Any] = {
        "count": st.integers(-9, 9), "flag": st.booleans(), "names": st.lists(st.none() | TEXT, max_size=2), "text": TEXT,
    }  # fmt: skip
    if depth:
        some |= {"under": objects(depth - 1), "uppers": st.lists(objects(depth - 1), max_size=2)}
    return st.fixed_dictionaries({}, optional=some).map(lambda found: dict(sorted(found.items())))


def messages(role: str) -> st.SearchStrategy[dict[str, Any]]:
    said = st.fixed_dictionaries({"role": st.just(role), "content": TEXT})
    called = st.fixed_dictionaries({"role": st.just(role), "tool_calls": st.lists(objects(1), min_size=1, max_size=2)})
    return said | called if role == "assistant" else said


TURNS = st.lists(st.tuples(messages("user"), messages("assistant")), max_size=1).flatmap(
    lambda pairs: messages("user").map(lambda last: [*itertools.chain(*pairs), last])
)
VARIABLES = objects(1).map(lambda found: {"flag": True, "style": found} if "flag" in found else {"style": found})
EXTRA = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.none() | st.lists(objects(), max_size=2),
        "chat_template_kwargs": st.none() | VARIABLES,
        "system": TEXT,
        "images": st.lists(TEXT, max_size=1),
        "note": TEXT,
    },
)
STRINGS = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT})
ANSWERS = st.lists(messages("assistant"), min_size=1, max_size=1)
MESSAGES = st.fixed_dictionaries({"prompt": TURNS, "chosen": ANSWERS, "rejected": ANSWERS})
# whole conversations, with their prompt beside them, with null in its place, or without
WHOLE = st.tuples(MESSAGES, st.sampled_from(["beside", "null", "absent"])).map(
    lambda drawn: {
        **({"prompt": drawn[0]["prompt"] if drawn[1] == "beside" else None} if drawn[1] != "absent" else {}),
        "chosen": drawn[0]["prompt"] + drawn[0]["chosen"],
        "rejected": drawn[0]["prompt"] + drawn[0]["rejected"],
    }
)


def sets_of(rows: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.tuples(rows, EXTRA).map(lambda both: {**both[0], **both[1]}), min_size=1, max_size=4)


def schema(rows: list[dict[str, Any]], text: pa.DataType, listed: Callable[[Any], Any], tools: pa.DataType) -> pa.Schema:
    message = pa.struct([("role", text), ("content", text), ("tool_calls", listed(inner(text, listed, 1)))])
    turns = text if isinstance(rows[0]["chosen"], str) else listed(message)
    fields = {"when": pa.timestamp("ns"), "prompt": turns, "chosen": turns, "rejected": turns, "tools": tools}
    kwargs = pa.struct([("flag", pa.bool_()), ("style", inner(text, listed, 1))])
    others = {"system": text, "note": text, "images": listed(text)}
    return pa.schema([*fields.items(), ("chat_template_kwargs", kwargs), *others.items()])


def plain_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema(rows, pa.string(), pa.list_, pa.list_(inner(pa.string(), pa.list_))))


def viewed_table(rows: list[dict[str, Any]]) -> pa.Table:
    tools = pa.list_view(inner(pa.string_view(), pa.list_view))
    return pa.Table.from_pylist(rows, schema(rows, pa.string_view(), pa.list_view, tools))


def large_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Large types, and tools as `datasets` keeps objects that differ: lists of JSON."""
    table = pa.Table.from_pylist(
        [{**row, "tools": None} for row in rows], schema(rows, pa.large_string(), pa.large_list, pa.null())
    )
    tools = [row.get("tools") for row in rows]
    texts = pa.array([None if t is None else [json.dumps(tool) for tool in t] for t in tools], pa.large_list(pa.string()))
    stored = pa.LargeListArray.from_arrays(texts.offsets, texts.values.cast(pa.json_()), mask=texts.is_null())
    return table.set_column(table.schema.get_field_index("tools"), "tools", stored)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def save_to_disk(table: pa.Table, folder: Path) -> None:
    folder.mkdir()
    write_stream(table, folder / "data-00000-of-00001.arrow")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')


def write_all(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "lines").write_text("\n".join(lines))
    (folder / "array").write_text(json.dumps(rows, indent=1))
    (folder / "pretty").write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    for name, table in (("plain", plain_table(rows)), ("large", large_table(rows))):
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
        save_to_disk(table, folder / f"{name}_saved")
        write_file(table, folder / f"{name}.arrow")
    write_file(viewed_table(rows), folder / "viewed.arrow")
    return sorted(folder.iterdir())


@functools.cache
def worker() -> Worker:
    folder = save(Path(tempfile.mkdtemp()), byte_level(), chat_template=TEMPLATE, eos_token="<|im_end|>")
    return make_worker(Settings(open_folder(str(folder)), NOON))


def outcome(path: Path) -> list[Any]:
    """Each row's pair id, or the reason why there is none."""
    chunks = read_chunks(expand([str(path)]), 1 << 20, columns_read(Keys()))
    results = [worker()(chunk) for chunk in with_row_formats(chunks, "auto", Keys(), 1 << 20)]
    pairs = [(row["source_line"], row["pair_id"]) for r in results for batch in r.batches for row in batch.to_pylist()]
    return sorted([*pairs, *((reject.line, reject.reason) for r in results for reject in r.rejects)], key=lambda p: p[0])


@settings(max_examples=60, deadline=None)
@given(rows=sets_of(STRINGS) | sets_of(MESSAGES | WHOLE))
@pytest.mark.slow
def test_any_container_gives_the_same_ids(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {path.name: outcome(path) for path in write_all(rows, Path(folder))}
    assert [line for line, _ in outcomes["lines"]] == list(range(1, len(rows) + 1))
    for name, found in outcomes.items():
        assert found == outcomes["lines"], name
