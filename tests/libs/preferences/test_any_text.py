"""Properties that hold for any text and any turns, on a small tokenizer and the templates as published."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_dpo.preferences.encoding import PairIds, make_encoder, truncate
from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.problems import RowProblem
from nemotron_dpo.preferences.rendering import RenderedPair
from nemotron_dpo.preferences.tokenize_chunk import Settings, Worker, make_worker
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support.chat_templates import TEMPLATES
from support.preference_rows import NOON
from support.small_tokenizers import byte_level, merging, save

TEXT = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=10), st.sampled_from([" ", "\n", "<|", "[/INST]", "model\n", "a"])
    ),
    max_size=5,
).map("".join)


@functools.cache
def worker(name: str) -> Worker:
    template, bos, eos, _ = TEMPLATES[name]
    folder = save(Path(tempfile.mkdtemp()), byte_level(), chat_template=template, bos_token=bos, eos_token=eos)
    return make_worker(Settings(open_folder(str(folder)), NOON), num_shown=1)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(history=st.lists(st.tuples(TEXT, TEXT), max_size=2), prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_ids_give_the_text_back(name: str, history: list[tuple[str, str]], prompt: str, chosen: str, rejected: str) -> None:
    turns = [{"role": r, "content": t} for pair in history for r, t in zip(("user", "assistant"), pair, strict=True)]
    turns.append({"role": "user", "content": prompt})
    result = worker(name)(Chunk("rows", 1, [{"prompt": turns, "chosen": chosen, "rejected": rejected}], "pair"))
    if result.rejects:
        assert result.rejects[0].reason.startswith("equal")
        assert chosen.strip() == rejected.strip()
        return
    ((texts, ids),) = result.shown
    tokenizer, (_, bos, _, end) = byte_level(), TEMPLATES[name]
    for part in ("prompt", "chosen", "rejected"):
        assert tokenizer.decode(getattr(ids, part), skip_special_tokens=False) == getattr(texts, part)
    for part, content in (("chosen", chosen), ("rejected", rejected)):
        body = getattr(texts, part).removesuffix(end)
        assert body.strip() == content.strip()
        assert getattr(ids, part).index(tokenizer.token_to_id(end)) == len(getattr(ids, part)) - 1
    if bos:
        assert tokenizer.decode(ids.prompt, skip_special_tokens=False).count(bos) == texts.prompt.startswith(bos)


@given(prompt=st.text("xabcd", min_size=1), chosen=st.text("xabcd"), rejected=st.text("xabcd"))
def test_different_responses_never_become_equal(prompt: str, chosen: str, rejected: str) -> None:
    (ids,) = make_encoder(merging(), plain=True).encode([RenderedPair(prompt, chosen, rejected)])
    assert not isinstance(ids, RowProblem)
    assert (ids.chosen == ids.rejected) == (chosen == rejected)


@given(
    lengths=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    max_length=st.integers(2, 20),
    how=st.sampled_from(["drop", "response", "prompt-left"]),
)
def test_truncation_never_exceeds_and_never_invents(lengths: tuple[int, int, int], max_length: int, how: str) -> None:
    prompt, chosen, rejected = ([base + i for i in range(n)] for base, n in zip((0, 100, 200), lengths, strict=True))
    try:
        cut = truncate(PairIds(prompt, chosen, rejected), max_length, how, bos_id=0)  # type: ignore[arg-type] - hypothesis draws one of the literals
    except RowProblem:
        assert how == "drop" or max_length <= (lengths[0] if how == "response" else max(lengths[1:]) + 1)
        return
    assert len(cut.prompt) + max(len(cut.chosen), len(cut.rejected)) <= max_length
    assert (cut.chosen, cut.rejected) == (chosen[: len(cut.chosen)], rejected[: len(cut.rejected)])
    assert (cut.chosen_truncated, cut.rejected_truncated) == (cut.chosen != chosen, cut.rejected != rejected)
    assert cut.prompt_truncated == (cut.prompt != prompt)
    assert cut.prompt[0] == 0
    assert cut.prompt == prompt or how == "prompt-left"
