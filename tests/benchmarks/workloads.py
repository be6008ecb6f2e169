"""Preference pairs for bench_dpo.py, made from HH transcripts: as they are, or with short prompts and long responses."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

Row = dict[str, list[dict[str, str]]]
_TURN = re.compile(r"\n\n(Human|Assistant): ")


def write(kind: str, source: Path, num_pairs: int, length: int, tokenizer: Any, out: Path) -> dict[str, int]:
    """Write `num_pairs` rows of `kind` ("hh" or "long") that fit `length` tokens; how many tokens and of which sort.

    "sequence_tokens" counts prompt + chosen and prompt + rejected, "unique_tokens" the prompt once.
    """
    rows: list[Row] = []
    counts = {"pairs": 0, "sequence_tokens": 0, "unique_tokens": 0, "response_tokens": 0}
    for row in _hh(source) if kind == "hh" else _long(source, length, tokenizer):
        prompt = len(_ids(tokenizer, row["prompt"], generate=True))
        sides = [len(_ids(tokenizer, [*row["prompt"], *row[side]])) - prompt for side in ("chosen", "rejected")]
        if prompt + max(sides) > length or min(sides) < 2 or row["chosen"] == row["rejected"]:
            continue
        rows.append(row)
        counts["sequence_tokens"] += 2 * prompt + sum(sides)
        counts["unique_tokens"] += prompt + sum(sides)
        counts["response_tokens"] += sum(sides)
        if len(rows) == num_pairs:
            break
    counts["pairs"] = len(rows)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return counts


def _hh(source: Path) -> Iterator[Row]:
    """Whole transcripts whose conversation is the same up to the last reply, in the order of the file."""
    rows = []
    for pair in _lines(source):
        chosen, rejected = (_turns(pair[side]) for side in ("chosen", "rejected"))
        if len(chosen) > 1 and chosen[:-1] == rejected[:-1] and chosen[-1]["role"] == "assistant":
            rows.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
    yield from rows


def _long(source: Path, length: int, tokenizer: Any) -> Iterator[Row]:
    """The first question of a transcript with two different answers of nearly `length` tokens, replies strung together."""
    pairs = list(_lines(source))
    replies = cycle([turn["content"] for pair in pairs for turn in _turns(pair["chosen"]) if turn["role"] == "assistant"])

    def answer(room: int) -> str:
        ids: list[int] = []
        while len(ids) < room:
            ids += tokenizer.encode(next(replies) + " ", add_special_tokens=False)
        return tokenizer.decode(ids[: room - 8])

    for pair in pairs:
        prompt = [turn for turn in _turns(pair["chosen"])[:1] if turn["role"] == "user"]
        room = length - len(_ids(tokenizer, prompt, generate=True)) - 8 if prompt else 0
        if room > length // 2:
            sides = [[{"role": "assistant", "content": answer(room)}] for _ in range(2)]
            yield {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}


def _lines(source: Path) -> Iterator[dict[str, str]]:
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _turns(text: str) -> list[dict[str, str]]:
    parts = _TURN.split(text)[1:]
    role = {"Human": "user", "Assistant": "assistant"}
    return [{"role": role[who], "content": said.strip()} for who, said in zip(parts[0::2], parts[1::2], strict=True)]


def _ids(tokenizer: Any, turns: list[dict[str, str]], *, generate: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    return tokenizer.encode(text, add_special_tokens=False)
