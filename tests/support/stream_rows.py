"""A few rows for tests of streams: two tokens a list, the row's number as its line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from nemotron_dpo.streams import TOKENIZED_PAIRS, StreamInfo, open_reader, open_writer

INFO = StreamInfo("tokenized_pairs", "preference-tokenize", "9.9", {"input": "sha256:00"}, {"max_length": 8})


def batch(count: int, start: int = 0) -> pa.RecordBatch:
    numbers = range(start, start + count)
    lists = pa.array([[n, n + 1] for n in numbers], pa.list_(pa.int32()))
    flags = pa.array([False] * count)
    ids = pa.array([n.to_bytes(16, "big") for n in numbers], pa.binary(16))
    names = pa.array([("", "prefs.jsonl", None)[n % 3] for n in numbers], pa.string())
    files = pa.array([("a.jsonl", None)[n % 2] for n in numbers], pa.string())
    rewards = (pa.array([x + n if n % 2 else None for n in numbers], pa.float32()) for x in (0.5, -1.0))
    columns = [ids, pa.array(numbers, pa.int64()), lists, lists, lists, flags, flags, names, *rewards, files]
    return pa.RecordBatch.from_arrays(columns, schema=TOKENIZED_PAIRS)


def write(path: Path, *batches: pa.RecordBatch, info: StreamInfo = INFO) -> Path:
    with open_writer(path, info) as writer:
        for rows in batches:
            writer.write(rows)
    return path


def lines_read(path: Path, *accept: str) -> list[int]:
    with open_reader(path, *(accept or ("tokenized_pairs",))) as reader:
        return reader.read_all()["source_line"].to_pylist()


def unannounced(info: StreamInfo) -> pa.Schema:
    """The schema of a stream without checksums, as earlier versions wrote it."""
    described = info.attach(TOKENIZED_PAIRS)
    return described.with_metadata({key: value for key, value in described.metadata.items() if key != b"crc32"})
