"""Run rows through the tokenization of one chunk and look at the outcome in plain Python values."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.row_formats import recognise
from nemotron_dpo.preferences.tokenize_chunk import Result, Settings, Worker, make_worker
from nemotron_dpo.preferences.tokenizer_folder import open_folder

NOON = datetime.datetime(2026, 1, 31, 12)


def tokenize(folder: Path, *rows: dict[str, Any], row_format: str | None = None, **settings: Any) -> Result:
    """The Result of `rows`, written as JSON lines first, with `settings` of the tokenization."""
    worker = make_worker(Settings(open_folder(str(folder)), NOON, **settings), num_shown=len(rows))
    return tokenize_by(worker, *rows, row_format=row_format)


def tokenize_by(worker: Worker, *rows: dict[str, Any], row_format: str | None = None) -> Result:
    """The Result of `rows`, written as JSON lines first, by one that has loaded its tokenizer."""
    lines = [orjson.dumps(row) for row in rows]
    return worker(Chunk("rows.jsonl", 1, lines, row_format or recognise(rows[0], worker.settings.keys)))


def pairs(result: Result) -> list[dict[str, Any]]:
    """The written rows."""
    return [row for batch in result.batches for row in batch.to_pylist()]


def only_pair(folder: Path, row: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The one pair of `row`; fails with the reject's message where there is none."""
    return pair_of(tokenize(folder, row, **settings))


def pair_of(result: Result) -> dict[str, Any]:
    """Its one pair; fails with the reject's message where there is none."""
    assert not result.rejects, result.rejects[0].message
    (pair,) = pairs(result)
    return pair


def only_reject(folder: Path, row: dict[str, Any], **settings: Any) -> tuple[str, str, bool]:
    """(reason, message, drop) of a row that yields no pair."""
    return reject_of(tokenize(folder, row, **settings))


def reject_of(result: Result) -> tuple[str, str, bool]:
    """(reason, message, drop) of its one row, which yields no pair."""
    assert not pairs(result)
    (reject,) = result.rejects
    return reject.reason, reject.message, reject.drop
