"""Reads CSV and TSV files: the first record names the columns, every cell is text, and an empty cell is absent.

Numbers, dates and words such as "NA" stay text, so that a response is never taken for something else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import orjson

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import Chunk, TooLong, in_chunks

_SUFFIXES = {".csv": ",", ".tsv": "\t"}
_OTHER_SIGNS = (";", "\t", "|", ",")  # that may have been meant where a file seems to have one column
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def delimiter(name: str) -> str | None:
    """The character that separates cells in the file `name`, by its suffix; None where it is neither CSV nor TSV."""
    bare = name.lower()
    for packed in _COMPRESSED:
        bare = bare.removesuffix(packed)
    return next((sign for suffix, sign in _SUFFIXES.items() if bare.endswith(suffix)), None)


def csv_chunks(text: io.BufferedReader, name: str, sign: str, max_line_bytes: int) -> Iterator[Chunk]:
    """The records of a file as JSON objects, each at the number of its first line; `sign` separates cells.

    Raises UserError where the names are missing or repeated, a record has more or fewer cells than there are names, quotes
    are not closed, or the text is not UTF-8.
    """
    csv.field_size_limit(max_line_bytes)
    return in_chunks(_rows(csv.reader(io.TextIOWrapper(text, "utf-8", newline=""), delimiter=sign, strict=True), name), name)


def _rows(records: Any, name: str) -> Iterator[bytes | TooLong]:
    """A row for each line of the csv.reader `records`: an empty one, which is none, where no record begins."""
    before = told = 0  # lines before the record, and rows so far
    try:
        names = next(records, [])
        _check_names(names, name)
        before = records.line_num
        for cells in records:
            if cells:  # an empty line is no record
                if len(cells) != len(names):
                    message = f"has {len(cells)} cells where the first line names {len(names)} columns"
                    raise UserError(message, source=name, line=before + 1, remedy="quote cells that hold the separator")
                yield from repeat(b"", before - told)
                yield orjson.dumps({column: cell for column, cell in zip(names, cells, strict=True) if cell})
                told = before + 1
            before = records.line_num
    except csv.Error as error:
        if "field limit" in str(error):
            what = f"has a cell of more than {csv.field_size_limit()} bytes (--max-line-bytes)"
            raise UserError(what, source=name, line=before + 1) from None
        raise UserError(f"is cut or damaged after line {before}: {error}", source=name) from None
    except UnicodeDecodeError:
        raise UserError("is not valid UTF-8", source=name, remedy="iconv -t UTF-8") from None


def _check_names(names: list[str], name: str) -> None:
    if not all(column.strip() for column in names):
        raise UserError("has a column without a name", source=name, remedy="name all columns in the first line")
    other = next((sign for sign in _OTHER_SIGNS if len(names) == 1 and sign in names[0]), None)
    if other is not None:
        remedy = "put commas between cells in .csv, tabs in .tsv"
        raise UserError(f"has one column, whose name has {other!r} in it", source=name, remedy=remedy)
    repeated = next((column for column in names if names.count(column) > 1), None)
    if repeated is not None:
        raise UserError("is the name of more than one column", source=name, field=repeated, remedy="rename or drop one")
