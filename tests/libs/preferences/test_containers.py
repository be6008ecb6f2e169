"""What files of any kind give: their rows with the right numbers, or one line that says what they are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.inputs import limit_rows, read_chunks
from nemotron_dpo.preferences.problems import NOT_READ
from nemotron_dpo.preferences.splits import is_blank

ROWS = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
TABLE = pa.Table.from_pylist([{**row, "when": 1 << 60} for row in ROWS])
TABLE = TABLE.set_column(3, "when", TABLE.column(3).cast(pa.int64()).combine_chunks().view(pa.timestamp("us")))


def parquet(table: pa.Table, **options: Any) -> bytes:
    pq.write_table(table, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


def arrow(new: Callable[..., Any], table: pa.Table = TABLE) -> bytes:
    with new(buffer := io.BytesIO(), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()


STREAM = arrow(pa.ipc.new_stream)
READ = {
    "lines.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "array.json": b"[" + b",".join(LINES.splitlines()) + b"]",
    "array with a BOM.json": b"\xef\xbb\xbf\n[\n" + b" , ".join(LINES.splitlines()) + b"\n]\n",
    "pretty.json": b"\xef\xbb\xbf" + b"\r\n".join(orjson.dumps(row, option=orjson.OPT_INDENT_2) for row in ROWS),
    "array.json.gz": gzip.compress(b"[" + b",".join(LINES.splitlines()) + b"]"),
    "lines.jsonl.bz2": bz2.compress(LINES[:20]) + bz2.compress(LINES[20:]),
    "lines.jsonl.xz": lzma.compress(LINES),
    "lines.jsonl.zst": pa.compress(LINES, "zstd", asbytes=True),
    "misnamed.csv": LINES,
    "cells.csv": b'prompt,chosen,rejected,gone\r\nq0,a,b,\r\n\r\nq1,a,b,\r\n"q2",a,b,\r\n',
    "cells.tsv.gz": gzip.compress(b"\xef\xbb\xbfprompt\tchosen\trejected\nq0\ta\tb\nq1\ta\tb\nq2\ta\tb\n"),
    "table.parquet": parquet(TABLE, row_group_size=2),
    "table.arrow": arrow(pa.ipc.new_file),
    "stream.arrow": STREAM,
}


def read(path: Path, content: bytes, limit: int | None = None) -> list[tuple[int, Any]]:
    """(number, row) of all rows; a table's columns but for "when"."""
    path.write_bytes(content)
    chunks = limit_rows(read_chunks([str(path)], 1 << 20, {"prompt", "chosen", "rejected"}), limit)
    numbered = [pair for chunk in chunks for pair in enumerate(chunk.rows, chunk.first_line)]
    return [(number, plain(row)) for number, row in numbered if not is_blank(row)]


def plain(row: Any) -> Any:
    """A row of a table without what was not read, or the JSON of a line."""
    if isinstance(row, dict):
        return {name: value for name, value in row.items() if value is not NOT_READ}
    return orjson.loads(row.removeprefix(b"\xef\xbb\xbf"))


def test_every_kind_gives_the_same_numbered_rows(tmp_path: Path) -> None:
    """A record of a CSV has the number of its first line."""
    numbers = {"cells.csv": (2, 4, 5), "cells.tsv.gz": (2, 3, 4)}
    for name, content in READ.items():
        for limit in (None, 1, 3):
            due = list(zip(numbers.get(name, (1, 2, 3)), ROWS, strict=True))
            assert read(tmp_path / name, content, limit) == due[:limit], name


def test_columns_that_are_not_read_are_there_without_their_values(tmp_path: Path) -> None:
    table = TABLE.append_column("none", pa.nulls(len(ROWS), pa.string())).append_column("PROMPT", pa.array([7] * len(ROWS)))
    for name, content in {"t.parquet": parquet(table), "t.arrow": arrow(pa.ipc.new_stream, table)}.items():
        (tmp_path / name).write_bytes(content)
        (first, *_) = read_chunks([str(tmp_path / name)], 99, {"prompt"})
        seen = {"prompt": "q0", "PROMPT": 7, **dict.fromkeys(("chosen", "rejected", "when"), NOT_READ)}
        unknown = {"none": NOT_READ} if name == "t.parquet" else {}  # the column is not looked at, so nor are its nulls
        assert first.rows[0] == seen | unknown, name


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 2, ["prompt", "prompt"])
    for content in (parquet(table), arrow(pa.ipc.new_stream, table), arrow(pa.ipc.new_file, table)):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(UserError, match='"prompt" is the name of more than one column'):
            list(read_chunks([str(tmp_path / "t")], 99, {"prompt"}))


def tar() -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        (entry := tarfile.TarInfo("rows.jsonl")).size = len(LINES)
        archive.addfile(entry, io.BytesIO(LINES))
    return buffer.getvalue()


BYTES_OF_A_PAGE = bytearray(parquet(TABLE, write_page_checksum=True, compression="none"))
BYTES_OF_A_PAGE[BYTES_OF_A_PAGE.index(b"q0")] = ord("r")
REFUSED = {
    "empty": (b"", "is empty"),
    "empty array": (b" []\n", "is empty"),
    "empty.parquet": (b"", "has no bytes, so it is no Parquet or Arrow file"),
    "no rows": (parquet(TABLE.slice(0, 0)), "is empty"),
    "open.csv": (b'a,b\n1,2\n1,"2', "is cut or damaged after line 2: unexpected end of data"),
    "nameless.tsv": (b"a\t\n", "has a column without a name: name all columns in the first line"),
    "twice.csv.gz": (gzip.compress(b"a,a\n"), '"a" is the name of more than one column: rename or drop one'),
    "semicolons.csv": (b"prompt;chosen\na;b\n", "has one column, whose name has ';' in it: put commas between cells in .csv, tabs in .tsv"),
    "latin.csv": (b"a,b\n1,2\n1,\xe9\n", "is not valid UTF-8: iconv -t UTF-8"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS, not the data: git lfs pull"),
    "page": (b"<!DOCTYPE html>\n<html>", "is a web page, not the data: download the file itself"),
    "zip": (b"PK\x03\x04rest", "is a zip archive: unpack it"),
    "utf-16": ("\ufeff{}".encode("utf-16-le"), "is UTF-16 text: iconv -f UTF-16 -t UTF-8"),
    "tar": (tar(), "is a tar archive: unpack it"),
    "tar.gz": (gzip.compress(tar()), "is a tar archive: unpack it"),
    "parquet.gz": (gzip.compress(parquet(TABLE)), "is compressed twice, or a compressed table: decompress it"),
    "gz.gz": (gzip.compress(gzip.compress(LINES)), "is compressed twice, or a compressed table: decompress it"),
    "stream cut between batches": (STREAM[:-8], "is cut or damaged after row 3: the stream has no end"),
    "two streams": (STREAM * 2, "is cut or damaged after row 3: more follows after the end of the stream"),
    "cut bz2": (bz2.compress(LINES)[:-5], "is cut or damaged after line 3: Compressed file ended before the end-of-stream "
        "marker was reached"),
    "cut xz": (lzma.compress(LINES)[:-9], "is cut or damaged after line 3: Compressed file ended before the end-of-stream "
        "marker was reached"),
    "cut array": (b"[" + LINES.splitlines()[0] + b",{", "is cut or damaged after row 1: its JSON array has no end"),
    "a flipped bit": (bytes(BYTES_OF_A_PAGE), "is cut or damaged after row 0: could not verify page integrity, CRC checksum "
        "verification failed for page_ordinal 0"),
}  # fmt: skip


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, (content, expected) in REFUSED.items():
        with pytest.raises(UserError) as caught:
            read(tmp_path / name, content)
        assert str(caught.value) == f"{tmp_path / name}: {expected}"


def test_a_record_of_another_width_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "x.csv", b"prompt,chosen\na,b\na,b,c\n")
    assert str(caught.value) == (
        f"{tmp_path}/x.csv:3: has 3 cells where the first line names 2 columns: quote cells that hold the separator"
    )


def test_cells_are_text_and_empty_ones_absent(tmp_path: Path) -> None:
    found = read(tmp_path / "x.csv", b'prompt,chosen,rejected\n1,NA,"two\nlines, ""quoted"""\nnull,,true\n')
    assert found == [
        (2, {"prompt": "1", "chosen": "NA", "rejected": 'two\nlines, "quoted"'}),
        (4, {"prompt": "null", "rejected": "true"}),
    ]


def test_empty_files_among_others_are_empty_chunks(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, (b"", LINES, b"[]"), strict=True):
        path.write_bytes(content)
    chunks = read_chunks([str(path) for path in paths], 99)
    assert [(Path(chunk.source).name, len(chunk.rows)) for chunk in chunks] == [("a", 0), ("b", 3), ("c", 0)]
    with pytest.raises(UserError, match="are all empty"):
        list(read_chunks([str(paths[0]), str(paths[2])], 99))
