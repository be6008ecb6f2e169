"""The facts about a pair that outlive its tokens: 59 bytes, from which the audit finds what is odd, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from nemotron_dpo.preferences.boundary import RenderedPair
from nemotron_dpo.preferences.encoding import PairIds
from nemotron_dpo.preferences.messages import Message
from nemotron_dpo.preferences.rewards import RowRewards

SIDES = ("prompt", "chosen", "rejected")
# Of each side its tokens as written, its tokens before truncation, and a 64-bit digest of its text, by which repeats are found.
# `cut` says what was cut (flags CUT_*) and `odd` what else there is to say (the other flags). `rewards_of` is the number of the
# columns that the rewards are of, from 1; 0 is none.
FACTS = np.dtype(
    [
        ("line", "i8"), ("prompt", "i4"), ("chosen", "i4"), ("rejected", "i4"),
        ("whole_prompt", "i4"), ("whole_chosen", "i4"), ("whole_rejected", "i4"),
        ("cut", "u1"), ("odd", "u1"), ("rewards_of", "u1"),
        ("prompt_digest", "u8"), ("chosen_digest", "u8"), ("rejected_digest", "u8"),
    ]
)  # fmt: skip
CUT_CHOSEN, CUT_REJECTED, CUT_PROMPT = 1, 2, 4
_FIRST_ROOM = 4096
REWRITTEN, SPACE_ALONE, EMPTY, REWARDED, INVERTED, TIED = 1, 2, 4, 8, 16, 32
_BESIDE_CONTENT = ("role", "content", "name")


def oddities(texts: RenderedPair, chosen: str | list[Message], rejected: str | list[Message], rewards: RowRewards) -> int:
    """The flags of a pair: how it was rendered, what its responses are, how its rewards stand to the choice."""
    odd = REWRITTEN * texts.rewritten | EMPTY * (is_empty(chosen) or is_empty(rejected))
    odd |= SPACE_ALONE * differ_in_space_alone(texts.chosen, texts.rejected)
    if rewards.chosen is None or rewards.rejected is None:
        return odd
    return odd | REWARDED | INVERTED * (rewards.chosen < rewards.rejected) | TIED * (rewards.chosen == rewards.rejected)


def differ_in_space_alone(one: str, other: str) -> bool:
    """Whether two texts are the same once all white space is left out; most differ in what they begin with."""
    return one.lstrip()[:1] == other.lstrip()[:1] and "".join(one.split()) == "".join(other.split())


def is_empty(response: str | list[Message]) -> bool:
    """Whether a response says nothing: white space alone, and no tool call or reasoning beside it."""
    if isinstance(response, str):
        return not response.strip()
    return not any((message.get("content") or "").strip() or _has_more(message) for message in response)


def _has_more(message: Message) -> bool:
    return any(value for name, value in message.items() if name not in _BESIDE_CONTENT)


def fact(line: int, texts: RenderedPair, odd: int, rewards_of: int, whole: PairIds, ids: PairIds) -> tuple[Any, ...]:
    """The row of FACTS of one pair, of `whole` ids before and `ids` after truncation."""
    cut = CUT_CHOSEN * ids.chosen_truncated | CUT_REJECTED * ids.rejected_truncated | CUT_PROMPT * ids.prompt_truncated
    lengths = (len(ids.prompt), len(ids.chosen), len(ids.rejected), len(whole.prompt), len(whole.chosen), len(whole.rejected))
    digests = (_digest(texts.prompt), _digest(texts.chosen), _digest(texts.rejected))
    return (line, *lengths, cut, odd, rewards_of, *digests)


def _digest(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "little")


@dataclass
class FactTable:
    """The facts about all pairs, in their order, with the file of each. It takes FACTS.itemsize bytes a pair.

    They lie in one array from the beginning, with at most an eighth of room: to join many at the end would take as much again.
    """

    reward_columns: list[str] = field(default_factory=list)
    _room: np.ndarray = field(default_factory=lambda: np.empty(_FIRST_ROOM, FACTS))
    _sources: list[str] = field(default_factory=list)
    _firsts: list[int] = field(default_factory=list)
    _num_pairs: int = 0

    def __len__(self) -> int:
        return self._num_pairs

    def add(self, source: str, facts: np.ndarray, reward_columns: Sequence[str]) -> None:
        """Append the facts of a chunk of the file `source`, whose `rewards_of` count `reward_columns`."""
        if not len(facts):
            return
        self.reward_columns += [name for name in reward_columns if name not in self.reward_columns]
        numbers = np.array([0, *(self.reward_columns.index(name) + 1 for name in reward_columns)], "u1")
        if not np.array_equal(numbers, np.arange(len(numbers))):
            facts = facts.copy()
            facts["rewards_of"] = numbers[facts["rewards_of"]]
        if not self._sources or self._sources[-1] != source:
            self._sources.append(source)
            self._firsts.append(self._num_pairs)
        end = self._num_pairs + len(facts)
        if end > len(self._room):
            self._make_room(max(end, len(self._room) * 9 // 8))
        self._room[self._num_pairs : end] = facts
        self._num_pairs = end

    def _make_room(self, size: int) -> None:
        try:
            self._room.resize(size)  # in place, where it is large: the kernel moves pages, and copies none
        except ValueError:  # somebody looks at it
            self._room = np.concatenate([self._room, np.empty(size - len(self._room), FACTS)])

    def all(self) -> np.ndarray:
        """One array of FACTS of all pairs."""
        return self._room[: self._num_pairs]

    @property
    def num_files(self) -> int:
        """How many files the pairs are of."""
        return len(set(self._sources))

    def file(self, row: int) -> str:
        """The file of a pair."""
        return self._sources[int(np.searchsorted(self._firsts, row, side="right")) - 1]

    def place(self, row: int) -> str:
        """FILE:LINE of a pair."""
        return f"{self.file(row)}:{self.all()['line'][row]}"
