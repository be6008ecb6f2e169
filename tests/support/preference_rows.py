"""Run rows through the tokenization of one chunk and look at the outcome in plain Python values."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import orjson

from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.row_formats import Keys, recognise
from nemotron_dpo.preferences.tokenize_chunk import Result, Settings, make_worker
from nemotron_dpo.preferences.tokenizer_folder import open_folder

NOON = datetime.datetime(2026, 1, 31, 12)


def tokenize(folder: Path, *rows: dict[str, Any], row_format: str | None = None, **settings: Any) -> Result:
    """The Result of `rows`, written as JSON lines first, with `settings` of the tokenization."""
    worker = make_worker(Settings(open_folder(str(folder)), NOON, **settings), num_shown=len(rows))
    lines = [orjson.dumps(row) for row in rows]
    return worker(Chunk("rows.jsonl", 1, lines, row_format or recognise(rows[0], settings.get("keys", Keys()))))


def pairs(result: Result) -> list[dict[str, Any]]:
    """The written rows."""
    return [row for batch in result.batches for row in batch.to_pylist()]


def only_pair(folder: Path, row: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The one pair of `row`; fails with the reject's message where there is none."""
    result = tokenize(folder, row, **settings)
    assert not result.rejects, result.rejects[0].message
    (pair,) = pairs(result)
    return pair


def only_reject(folder: Path, row: dict[str, Any], **settings: Any) -> tuple[str, str, bool]:
    """(reason, message, drop) of a row that yields no pair."""
    result = tokenize(folder, row, **settings)
    assert not pairs(result)
    (reject,) = result.rejects
    return reject.reason, reject.message, reject.drop
