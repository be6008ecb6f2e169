"""Texts of pairs, decoded from the token streams that a run read, by its own tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemotron_dpo.errors import UserError
from nemotron_dpo.report.document import ScoredToken
from nemotron_dpo.report.run_folder import RunFolder
from nemotron_dpo.report.visible import visible
from nemotron_dpo.step_folders import step_folders
from nemotron_dpo.streams import open_reader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROMPT_CHARACTERS, RESPONSE_CHARACTERS = 1500, 2500
_index_in = pc.index_in  # type: ignore[attr-defined] - pyarrow's stubs do not know the functions it generates
_MOST_TOKENS = 4000  # of a part that is decoded at all: 1 MB of text would be cut anyway


@dataclass(frozen=True)
class PairText:
    """The three parts of a pair, safe to show; tokens of the responses with their change where that is known."""

    prompt: str
    chosen: str
    rejected: str
    chosen_tokens: tuple[ScoredToken, ...] = ()
    rejected_tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Texts:
    """Texts by pair id, and why some are missing, a sentence each."""

    by_id: Mapping[bytes, PairText] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def texts(run: RunFolder, split: str, wanted: Collection[bytes], scores: Path | None) -> Texts:
    """Those of the pairs `wanted` of `split`. `scores` are the pairs of it scored by the trained policy."""
    stream = run.streams().get(split)
    if stream is None:
        return Texts(
            remarks=(
                "The stream with the tokens of these pairs is no longer where the run read it, so their texts are not shown.",
            )
        )
    try:
        rows, info = _rows(stream, set(wanted))
        tokenizer = _tokenizer(run, info.settings)
    except UserError as error:
        return Texts(remarks=(f"The texts of these pairs are not shown: {visible(error)}.",))
    after, remark = _scores(scores, set(wanted)) if scores else ({}, "")
    found = {pair: _text(tokenizer, row, after.get(pair)) for pair, row in rows.items()}
    missing = len(set(wanted)) - len(found)
    remarks = (f"{missing} of these pairs are not in {stream.name}.",) if missing else ()
    return Texts(found, (*remarks, *([remark] if remark else [])))


def _rows(path: Path, wanted: set[bytes]) -> tuple[dict[bytes, dict[str, Any]], Any]:
    """The rows of `wanted`, and what the stream says of itself. Only they leave the mapped file."""
    found: dict[bytes, dict[str, Any]] = {}
    ids = pa.array(sorted(wanted), pa.binary(16))
    with open_reader(path, "tokenized_pairs", "scored_pairs", "policy_scores") as reader:
        for batch in reader:
            hits = _index_in(batch.column("pair_id"), value_set=ids)
            for row in np.flatnonzero(np.asarray(hits.is_valid())).tolist():
                one = batch.slice(row, 1).to_pylist()[0]
                found.setdefault(one["pair_id"], one)
        return found, reader.info


def _scores(path: Path, wanted: set[bytes]) -> tuple[dict[bytes, dict[str, Any]], str]:
    rows, info = _rows(path, wanted)
    if info.schema == "tokenized_pairs":
        raise UserError("has no scores", source=path, remedy="score it with ref-logprobs --policy CHECKPOINT")
    return rows, "" if rows else f"None of these pairs is in {path.name}."


def _tokenizer(run: RunFolder, settings: Mapping[str, Any]) -> Tokenizer:
    """The run's own tokenizer: of its newest checkpoint, else of the policy that it started from."""
    newest = [step / "policy" for step in reversed(step_folders(run.folder / "checkpoints"))]
    named = [run.setting("policy.tokenizer.name"), settings.get("reference_policy"), run.setting("policy.model_name")]
    places = [*newest, *(Path(str(name)) for name in named if name)]
    for place in places:
        for file in (place / "tokenizer.json", *sorted(place.glob("**/tokenizer/tokenizer.json"))):
            if file.is_file():
                return _opened(file)
    raise UserError("no tokenizer.json lies where the run found it")


def _opened(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", source=file) from None


def _text(tokenizer: Tokenizer, row: Mapping[str, Any], after: Mapping[str, Any] | None) -> PairText:
    ids = row["prompt_ids"]
    prompt = _decoded(tokenizer, ids[-_MOST_TOKENS:])
    if len(ids) > _MOST_TOKENS or len(prompt) > PROMPT_CHARACTERS:  # its end is what the responses answer
        prompt = f"[the end of {len(ids):,} tokens] ... {prompt[-PROMPT_CHARACTERS:]}"
    chosen, rejected = (_response(tokenizer, row[f"{side}_ids"]) for side in ("chosen", "rejected"))
    return PairText(prompt, chosen, rejected, *(_changes(tokenizer, side, row, after) for side in ("chosen", "rejected")))


def _response(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = _decoded(tokenizer, ids[:_MOST_TOKENS])
    is_whole = len(ids) <= _MOST_TOKENS and len(text) <= RESPONSE_CHARACTERS
    return text if is_whole else f"{text[:RESPONSE_CHARACTERS]}{_cut(ids)}"


def _cut(ids: list[int]) -> str:
    return f" ... [the beginning of {len(ids):,} tokens]"


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return visible(tokenizer.decode(ids, skip_special_tokens=False), lines=True)


def _changes(
    tokenizer: Tokenizer, side: str, row: Mapping[str, Any], after: Mapping[str, Any] | None
) -> tuple[ScoredToken, ...]:
    """Pieces of a response with their change of log-probability; tokens that share a character are one piece."""
    scored = after or {}
    before, now = row.get(f"ref_{side}_logps"), scored.get(f"{side}_logps", scored.get(f"ref_{side}_logps"))
    if before is None or now is None or after is None or after[f"{side}_ids"] != row[f"{side}_ids"]:
        return ()
    pieces, ids, change, length = [], [], 0.0, 0
    for token, old, new in zip(row[f"{side}_ids"], before, now, strict=True):
        ids, change = [*ids, token], change + new - old
        piece = tokenizer.decode(ids, skip_special_tokens=False)
        if piece.endswith("\ufffd") and len(ids) < 8:
            continue
        pieces.append(ScoredToken(visible(piece, lines=True), change))
        length += len(piece)
        if length > RESPONSE_CHARACTERS:
            pieces.append(ScoredToken(_cut(row[f"{side}_ids"]), 0.0))
            break
        ids, change = [], 0.0
    return tuple(pieces)
