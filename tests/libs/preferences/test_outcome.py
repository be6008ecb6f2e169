"""What a chunk becomes: ids, flags, truncation, drops, system prompt, pair ids, and the report about it."""

from __future__ import annotations

import struct
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.preferences import columns, encoding
from nemotron_dpo.preferences.encoding import Encoder
from nemotron_dpo.preferences.tally import Tally
from support.chat_templates import CHATML
from support.preference_rows import only_pair, only_reject, pairs, tokenize
from support.small_tokenizers import byte_level, merging, save

# One token a character: x=0 a=1 b=2 c=3 d=4 ab=5 </s>=6, and a merge of a and b.
ROW = {"prompt": "xxx", "chosen": "cd", "rejected": "dddd"}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save(tmp_path / "plain", merging(), eos_token="</s>")


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return save(tmp_path / "chat", byte_level(), chat_template=CHATML, eos_token="<|im_end|>")


def test_columns(plain: Path) -> None:
    pair = only_pair(plain, ROW)
    assert (pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]) == ([0, 0, 0], [3, 4, 6], [4, 4, 4, 4, 6])
    assert (pair["chosen_truncated"], pair["rejected_truncated"], pair["source_line"]) == (False, False, 1)
    packed = struct.pack("<14i", 3, 3, 5, 0, 0, 0, 3, 4, 6, 4, 4, 4, 4, 6)
    assert pair["pair_id"] == blake2b(packed, digest_size=16).digest()


@pytest.mark.parametrize(
    ("how", "max_length", "expected"),
    [
        ("response", 8, ([0, 0, 0], [3, 4, 6], [4, 4, 4, 4, 6], False, False)),
        ("response", 7, ([0, 0, 0], [3, 4, 6], [4, 4, 4, 4], False, True)),
        ("response", 5, ([0, 0, 0], [3, 4], [4, 4], True, True)),
        ("prompt-left", 6, ([0], [3, 4, 6], [4, 4, 4, 4, 6], False, False)),
    ],
)
def test_truncation(plain: Path, how: Any, max_length: int, expected: tuple[Any, ...]) -> None:
    pair = only_pair(plain, ROW, max_length=max_length, truncation=how)
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "chosen_truncated", "rejected_truncated")
    assert tuple(pair[name] for name in names) == expected


@pytest.mark.parametrize(
    ("how", "max_length", "row", "reason"),
    [
        ("drop", 7, ROW, "too long"),
        ("response", 3, ROW, "no room"),
        ("prompt-left", 5, ROW, "no room"),
        ("response", 4, {"prompt": "xxx", "chosen": "cd", "rejected": "cc"}, "equal after truncation"),
    ],
)
def test_what_truncation_leaves_nothing_of_is_dropped(
    plain: Path, how: Any, max_length: int, row: dict[str, Any], reason: str
) -> None:
    assert only_reject(plain, row, max_length=max_length, truncation=how)[::2] == (reason, True)


def test_a_bos_survives_a_cut_on_the_left(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(adds_bos=True), bos_token="<s>", eos_token="</s>")
    ids = byte_level(adds_bos=True).encode("~#~#")
    assert len(ids.ids) == 5
    pair = only_pair(folder, {"prompt": "~#~#", "chosen": "~", "rejected": "#"}, max_length=4, truncation="prompt-left")
    assert pair["prompt_ids"] == [ids.ids[0], ids.ids[-1]]


def test_swap(plain: Path) -> None:
    pair = only_pair(plain, ROW, swap=True)
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([4, 4, 4, 4, 6], [3, 4, 6])


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("q", "Be brief."), ([{"role": "system", "content": "Mine."}, {"role": "user", "content": "q"}], "Mine.")],
)
def test_system_prompt_is_for_rows_without_one(chat: Path, prompt: Any, text: str) -> None:
    pair = only_pair(chat, {"prompt": prompt, "chosen": "a", "rejected": "b"}, system_prompt="Be brief.")
    rendered = byte_level().decode(pair["prompt_ids"], skip_special_tokens=False)
    head = f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    assert rendered == head + "<|im_start|>assistant\n"


def test_template_variables_of_the_run_and_of_the_row(tmp_path: Path) -> None:
    template = "{{ style }}{{ strftime_now('%d %b %Y') }}" + CHATML
    folder = save(tmp_path, byte_level(), chat_template=template, eos_token="<|im_end|>")
    for row_kwargs, style in (({}, "run"), ({"style": "row"}, "row")):
        row = {"prompt": "q", "chosen": "a", "rejected": "b", "chat_template_kwargs": row_kwargs}
        pair = only_pair(folder, row, template_kwargs={"style": "run"})
        assert byte_level().decode(pair["prompt_ids"]).startswith(style + "31 Jan 2026")


def test_conversations_that_part_before_the_last_turn_are_an_error(chat: Path) -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "good"), ("assistant", "bad")))
    row = {"chosen": [user, good, user, good], "rejected": [user, bad, user, good]}
    assert only_reject(chat, row)[::2] == ("diverges early", False)


def test_batches_hold_a_bounded_number_of_tokens(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_BATCH_TOKENS", 25)
    result = tokenize(plain, *[ROW] * 4, {**ROW, "prompt": "x" * 30}, ROW)
    assert [batch.num_rows for batch in result.batches] == [2, 2, 1, 1]
    assert [row["source_line"] for row in pairs(result)] == [1, 2, 3, 4, 5, 6]


def test_calls_of_the_tokenizer_are_bounded_and_leave_no_trace(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "a" * n, "rejected": "b"} for n in range(1, 8)]
    at_once = tokenize(chat, *rows)
    calls: list[int] = []
    encode = Encoder._encode
    monkeypatch.setattr(encoding, "MAX_CALL_CHARACTERS", 200)  # a pair has 73 + n, of them 70 of the template
    monkeypatch.setattr(Encoder, "_encode", lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    apart = tokenize(chat, *rows)
    assert calls == [3, 3, 1]
    assert apart.batches == at_once.batches
    assert apart.facts.tolist() == at_once.facts.tolist()


def test_report(plain: Path) -> None:
    rows = [
        ROW,
        ROW,
        {"prompt": "xxx", "chosen": "dddd", "rejected": "cd"},
        {"prompt": "x", "chosen": "d", "rejected": "c"},
        {"prompt": "x", "chosen": "d", "rejected": "d"},
        {"prompt": "x"},
    ]
    tally = Tally()
    tally.add(tokenize(plain, *rows, max_length=7))
    report = tally.report({"input": "i"}, {})
    assert tally.closing_line() == (
        "6 rows read, 4 pairs written (3 truncated), 1 dropped (1 equal responses), 1 error (1 missing field), 35 tokens"
    )
    assert report["duplicates"] == {"prompts": 2, "pairs": 1, "both_ways": 1}
    assert report["truncated"] == {"chosen": 1, "rejected": 2, "prompt": 0}
    assert report["first_places"] == {"equal responses": ["rows.jsonl:5"], "missing field": ["rows.jsonl:6"]}
    # chosen 3 3 5 2 tokens before truncation, rejected 5 5 3 2
    assert report["length_bias"] == {
        "chosen_longer": 0.25,
        "rejected_longer": 0.5,
        "same_length": 0.25,
        "mean_ratio": round((3 / 5 + 3 / 5 + 5 / 3 + 1) / 4, 4),
    }
    assert report["tokens"]["chosen"]["p50"] == 3.0
    assert report["tokens"]["prompt"]["total"] == 10
