"""Turns texts into token ids and cuts these to a maximum length.

Prompt and response are tokenized apart, so that no token crosses the boundary between them. A response is tokenized as the
continuation of its prompt. A tokenizer that puts a space in front of every text (SentencePiece's dummy prefix, byte-level
add_prefix_space) does so for the prompt only. The ids therefore decode to the joined text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.boundary import RenderedPair
from nemotron_dpo.preferences.problems import RowProblem, drop

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Truncation = Literal["drop", "response", "prompt-left"]
TRUNCATIONS: tuple[Truncation, ...] = ("response", "drop", "prompt-left")
MAX_CALL_CHARACTERS = 1 << 17


def is_tokenizers_own(error: BaseException) -> bool:
    """Whether the tokenizer gave up: it raises bare Exception, as where its unk_token is unknown, and its Rust panics.

    A panic, as over a regular expression that goes back without end, is no Exception.
    """
    return type(error) is Exception or type(error).__name__ == "PanicException"


@dataclass(frozen=True, slots=True)
class PairIds:
    """Token ids of one pair and what was cut off them."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_truncated: bool = False
    rejected_truncated: bool = False
    prompt_truncated: bool = False


@dataclass(frozen=True)
class Encoder:
    """A tokenizer for prompts, a tokenizer for responses, and the id of the BOS to put in front of each prompt, if any.

    Both tokenizers are the same object unless the tokenizer puts a space in front of every text.
    """

    prompts: Tokenizer
    responses: Tokenizer
    bos_id: int | None = None

    def encode(self, texts: Iterable[RenderedPair]) -> Iterator[PairIds | RowProblem]:
        """The token ids of the pairs, in order; a problem in place of a pair that the tokenizer gives up on.

        The tokenizer encodes many texts at once in its own threads. Its results take some 200 bytes a token, far more than
        the ids alone, so the texts are encoded in groups.
        """
        for group in _groups(texts):
            try:
                ids: Iterable[PairIds | RowProblem] = self._encode(group)
            except BaseException as error:
                if not is_tokenizers_own(error):
                    raise
                ids = map(self._alone, group)
            yield from ids

    def _alone(self, pair: RenderedPair) -> PairIds | RowProblem:
        try:
            return self._encode([pair])[0]
        except BaseException as error:
            if not is_tokenizers_own(error):
                raise
            return RowProblem("tokenizer error", f"the tokenizer gives up on it: {str(error).splitlines()[0]}")

    def _encode(self, texts: list[RenderedPair]) -> list[PairIds]:
        if self.prompts is self.responses:
            flat = [t for pair in texts for t in (pair.prompt, pair.chosen, pair.rejected)]
            ids = [e.ids for e in self.prompts.encode_batch_fast(flat, add_special_tokens=False)]
            triples = zip(ids[0::3], ids[1::3], ids[2::3], strict=True)
        else:
            prompts = self.prompts.encode_batch_fast([t.prompt for t in texts], add_special_tokens=False)
            flat = [t for pair in texts for t in (pair.chosen, pair.rejected)]
            ids = [e.ids for e in self.responses.encode_batch_fast(flat, add_special_tokens=False)]
            triples = zip([p.ids for p in prompts], ids[0::2], ids[1::2], strict=True)
        return [PairIds(self._with_bos(prompt), chosen, rejected) for prompt, chosen, rejected in triples]

    def _with_bos(self, prompt: list[int]) -> list[int]:
        return prompt if self.bos_id is None or prompt[:1] == [self.bos_id] else [self.bos_id, *prompt]


def make_encoder(tokenizer: Tokenizer, *, plain: bool, source: object = None) -> Encoder:
    """An Encoder that uses `tokenizer`, which was read from `source`. Raises UserError where it cannot encode so much as "a".

    If `plain`, no chat template writes a BOS, so the prompt gets the BOS that the tokenizer's own post-processor adds.
    """
    try:
        continuing = _without_prefix_space(json.loads(tokenizer.to_str())) if _adds_prefix(tokenizer) else None
        bos_id = _own_bos(tokenizer) if plain else None
    except BaseException as error:
        if not is_tokenizers_own(error):
            raise
        raise UserError(f'gives up on the text "a": {str(error).splitlines()[0]}', source=source) from None
    if continuing is None:
        return Encoder(tokenizer, tokenizer, bos_id)
    from tokenizers import Tokenizer

    return Encoder(tokenizer, Tokenizer.from_str(json.dumps(continuing)), bos_id)


def truncate(ids: PairIds, max_length: int | None, how: Truncation, bos_id: int | None) -> PairIds:
    """`ids`, cut so that the prompt and either response together have at most `max_length` tokens.

    `how` says what is cut: the end of the responses ("response"), the start of the prompt ("prompt-left"), or nothing, so
    that a pair that is too long is dropped ("drop"). A prompt that is cut keeps `bos_id` in front. A response that is cut
    has no end-of-turn token, and none is added. Raises RowProblem, which drops the pair, where it cannot be cut to fit.
    """
    longest = max(len(ids.chosen), len(ids.rejected))
    if max_length is None or len(ids.prompt) + longest <= max_length:
        return ids
    if how == "drop":
        raise drop("too long", f"has {len(ids.prompt) + longest} tokens where --max-length is {max_length}")
    return _cut_responses(ids, max_length) if how == "response" else _cut_prompt(ids, max_length, longest, bos_id)


def _cut_responses(ids: PairIds, max_length: int) -> PairIds:
    room = max_length - len(ids.prompt)
    if room < 1:
        message = f"the prompt has {len(ids.prompt)} tokens and leaves no room for a response in --max-length {max_length}"
        raise drop("no room", message)
    return PairIds(ids.prompt, ids.chosen[:room], ids.rejected[:room], len(ids.chosen) > room, len(ids.rejected) > room)


def _cut_prompt(ids: PairIds, max_length: int, longest: int, bos_id: int | None) -> PairIds:
    head = [bos_id] if bos_id is not None and ids.prompt[:1] == [bos_id] else []
    keep = max_length - longest - len(head)
    if keep < 1:
        message = f"a response has {longest} tokens and leaves no room for a prompt in --max-length {max_length}"
        raise drop("no room", message)
    return PairIds([*head, *ids.prompt[-keep:]], ids.chosen, ids.rejected, prompt_truncated=True)


def _groups(texts: Iterable[RenderedPair]) -> Iterator[list[RenderedPair]]:
    """`texts` in lists, each of which ends with the pair that brings it to MAX_CALL_CHARACTERS characters."""
    group: list[RenderedPair] = []
    num_characters = 0
    for pair in texts:
        group.append(pair)
        num_characters += len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        if num_characters >= MAX_CALL_CHARACTERS:
            yield group
            group, num_characters = [], 0
    if group:
        yield group


def _own_bos(tokenizer: Tokenizer) -> int | None:
    """The id of the token that the tokenizer's post-processor puts in front of a text, if any."""
    with_special, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    return with_special[0] if with_special[: len(bare)] != bare else None


def _adds_prefix(tokenizer: Tokenizer) -> bool:
    """True where the tokenizer puts a space in front of a text that has none."""
    pieces = tokenizer.encode("a", add_special_tokens=False).tokens
    joined = "".join(pieces)
    return joined.startswith(("▁", "Ġ"))


def _without_prefix_space(config: Any) -> Any:
    """The tokenizer's configuration without the steps that put a space in front of a text."""
    if isinstance(config, list):
        return [
            _without_prefix_space(item) for item in config if not (isinstance(item, dict) and item.get("type") == "Prepend")
        ]
    if not isinstance(config, dict):
        return config
    if config.get("type") == "Prepend":
        return None
    changed = {key: _without_prefix_space(value) for key, value in config.items() if key != "model"}
    if "model" in config:
        changed["model"] = config["model"]
    if changed.get("type") in ("ByteLevel", "Metaspace"):
        changed |= {key: off for key, off in (("add_prefix_space", False), ("prepend_scheme", "never")) if key in changed}
    return changed
