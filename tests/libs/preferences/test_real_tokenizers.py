"""The templates and tokenizers that people use: Llama 3.1, Qwen3 and SmolLM2, with transformers as the oracle."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.tokenize_chunk import Result, Settings, Worker, make_worker
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support.preference_rows import NOON, pair_of, reject_of, tokenize_by
from support.real_assets import npm_tokenizer, smollm2

pytestmark = pytest.mark.real

FOLDERS: dict[str, Callable[[], Path]] = {
    "llama3.1": lambda: npm_tokenizer("llama3_1"),
    "qwen3": lambda: npm_tokenizer("qwen3"),
    "smollm2": smollm2,
}
END = {"llama3.1": "<|eot_id|>", "qwen3": "<|im_end|>", "smollm2": "<|im_end|>"}
BOS = {"llama3.1": "<|begin_of_text|>"}
CONTROL = {*END.values(), *BOS.values(), "<|im_start|>", "<|endoftext|>", "<|end_of_text|>", "<image>", "<video>", "<audio>"}
COMPOSES = {"qwen3"}  # its tokenizer normalizes to NFC

USER = {"role": "user", "content": "What is 2+2? \u65e5\u672c"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a<b & \u00fc", "parameters": {"type": "object"}}}]
ROWS: dict[str, dict[str, Any]] = {
    "one turn": {"prompt": "What is 2+2?", "chosen": "It is 4.", "rejected": "It is\n\n5!"},
    "system and history": {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "Sure?"},
        ],
        "chosen": "Yes.",
        "rejected": "No \U0001f937 ",
    },
    "thought in the answer": {
        "prompt": [USER],
        "chosen": "<think>\ntwo and two\n</think>\n\n4",
        "rejected": [{"role": "assistant", "content": "5"}],
    },
    "tools": {"prompt": [USER], "chosen": "4", "rejected": "5", "tools": TOOLS},
    "template variables": {
        "prompt": [USER],
        "chosen": "4",
        "rejected": "5",
        "chat_template_kwargs": {"enable_thinking": False},
    },
}


@functools.cache
def worker_and_oracle(name: str) -> tuple[Worker, Any]:
    folder = FOLDERS[name]()
    return make_worker(Settings(open_folder(str(folder)), NOON)), AutoTokenizer.from_pretrained(folder)


def tokenized(name: str, row: dict[str, Any]) -> Result:
    return tokenize_by(worker_and_oracle(name)[0], row)


TOOLS_IGNORED = {"llama3.1", "smollm2"}  # by the templates in these packages


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_what_a_server_feeds_and_a_model_has_to_write(name: str, row: dict[str, Any]) -> None:
    if "tools" in row and name in TOOLS_IGNORED:
        reason, message, _ = reject_of(tokenized(name, row))
        assert (reason, 'the tool "add"' in message) == ("text left out", True)
        return
    pair = pair_of(tokenized(name, row))
    tokenizer = worker_and_oracle(name)[1]
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    options: dict[str, Any] = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    served = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False, **options)
    assert pair["prompt_ids"] == served
    for side in ("chosen", "rejected"):
        answer = row[side] if isinstance(row[side], list) else [{"role": "assistant", "content": row[side]}]
        whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False, **options)
        joined = tokenizer.decode(pair["prompt_ids"] + pair[f"{side}_ids"])
        assert whole == joined + ("" if name == "llama3.1" else "\n")
        assert tokenizer.convert_ids_to_tokens(pair[f"{side}_ids"][-1]) == END[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_an_assistant_prefill_is_continued(name: str) -> None:
    prompt = [USER, {"role": "assistant", "content": "The answer"}]
    pair = pair_of(tokenized(name, {"prompt": prompt, "chosen": " is 4.", "rejected": " is 5."}))
    tokenizer = worker_and_oracle(name)[1]
    assert pair["prompt_ids"] == tokenizer.apply_chat_template(
        prompt, continue_final_message=True, tokenize=True, return_dict=False
    )
    assert tokenizer.decode(pair["chosen_ids"]) == " is 4." + END[name]


def test_qwen3_writes_its_empty_thought_before_the_answer() -> None:
    pair = pair_of(tokenized("qwen3", {"prompt": "Hi", "chosen": "Hello", "rejected": "Bye"}))
    decode = worker_and_oracle("qwen3")[1].decode
    assert decode(pair["prompt_ids"]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert decode(pair["chosen_ids"]) == "<think>\n\n</think>\n\nHello<|im_end|>"


# Any text that UTF-8 can carry, with the pieces that templates are made of more often than chance has it.
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=12),
        st.sampled_from(
            [" ", "\n", "\n\n", "assistant", "im_end", "<|", "|>", "<think>", "</think>", "e\u0301", "\u200b", "'s"]
        ),
    ),
    max_size=6,
).map("".join)
HISTORY = st.lists(st.tuples(TEXT, TEXT), max_size=2)


@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=100, deadline=None)
@example(system=None, history=[("q", "</think>")], prompt="</think>", chosen="a", rejected="b")
@example(system=None, history=[("q", "a</think>b")], prompt="a </think> b", chosen="a", rejected="b")
@given(system=st.none() | TEXT, history=HISTORY, prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_any_text_in_any_turns(
    name: str, system: str | None, history: list[tuple[str, str]], prompt: str, chosen: str, rejected: str
) -> None:
    turns = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in history:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": prompt})
    worker, tokenizer = worker_and_oracle(name)
    texts = [*(turn["content"] for turn in turns), chosen, rejected]
    assume(all(_writable(text, name) for text in texts))
    assume(not any(token in text for text in texts for token in CONTROL))
    result = worker(Chunk("rows", 1, [{"prompt": turns, "chosen": chosen, "rejected": rejected}], "pair"))
    if result.rejects:
        reason = result.rejects[0].reason
        assert reason.startswith("equal") or (reason == "text left out" and name == "qwen3" and _loses(turns, chosen, rejected))
        return
    (pair,) = result.batches[0].to_pylist()
    end, bos = tokenizer.convert_tokens_to_ids(END[name]), tokenizer.convert_tokens_to_ids(BOS.get(name, END[name]))
    assert pair["prompt_ids"] == tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        ids = pair[f"{side}_ids"]
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        joined = tokenizer.decode(pair["prompt_ids"] + ids)
        assert joined == _normal(whole.removesuffix("\n") if name != "llama3.1" else whole, name)
        assert ids.index(end) == len(ids) - 1
        if name in BOS:
            assert pair["prompt_ids"].count(bos) == 1
            assert ids.count(bos) == 0


def _loses(turns: list[dict[str, str]], *answers: str) -> bool:
    """Qwen3 takes what stands between an answer's thinking tags for its thought and what follows the last for the rest."""
    past = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return any("</think>" in text and not re.fullmatch(r"\s*(<think>)?[^<]*</think>[^<]*", text) for text in (*past, *answers))


def _writable(text: str, name: str) -> bool:
    """SmolLM2's vocabulary lacks a few bytes of rare planes: no ids stand for such a text."""
    tokenizer = worker_and_oracle(name)[1]
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == _normal(text, name)


def _normal(text: str, name: str) -> str:
    return unicodedata.normalize("NFC", text) if name in COMPOSES else text
