"""Preference pairs for the benchmarks, from HH transcripts: as they are, or with short prompts and long responses.

Without the transcripts, pairs of made-up words with as many tokens.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

Row = dict[str, list[dict[str, str]]]
_TURN = re.compile(r"\n\n(Human|Assistant): ")
# ln of the tokens (Llama 3's) of HH's 2303 prompts and 4606 responses that fit 1024: mean and standard deviation
HH_PROMPT, HH_RESPONSE = (4.42, 0.96), (3.40, 0.90)


def write(kind: str, source: Path | None, num_pairs: int, length: int, tokenizer: Any, out: Path) -> dict[str, int]:
    """Write `num_pairs` rows of `kind` ("hh" or "long") that fit `length` tokens; how many tokens and of which sort.

    They are made of `source`, a file of HH transcripts, or of words at random.
    "sequence_tokens" counts prompt + chosen and prompt + rejected, "unique_tokens" the prompt once.
    """
    rows: list[Row] = []
    counts = {"pairs": 0, "sequence_tokens": 0, "unique_tokens": 0, "response_tokens": 0}
    for row in _rows(kind, source, length, tokenizer):
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


def _rows(kind: str, source: Path | None, length: int, tokenizer: Any) -> Iterator[Row]:
    if source is None:
        return _made(kind, length, tokenizer)
    return _hh(source) if kind == "hh" else _long(source, length, tokenizer)


def _made(kind: str, length: int, tokenizer: Any) -> Iterator[Row]:
    """Rows without end, always the same: of HH's lengths, or 20 tokens of prompt and responses of nearly `length`."""
    draw = random.Random(0)
    words = sorted(token[1:] for token in tokenizer.get_vocab() if re.fullmatch("\u0120[a-z]+", token))  # a space, a word

    def turn(role: str, tokens: float) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(words, k=max(1, int(tokens))))}]

    while True:
        if kind == "hh":
            sizes = [draw.lognormvariate(*HH_PROMPT), *(draw.lognormvariate(*HH_RESPONSE) for _ in range(2))]
        else:
            sizes = [20, *[length - 60 - draw.randrange(8) for _ in range(2)]]
        prompt, chosen, rejected = (turn(role, n) for role, n in zip(("user", "assistant", "assistant"), sizes, strict=True))
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


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
