"""Whether pairs were made with the tokenizer of their policy, and how many token ids that tokenizer has.

A policy's embedding does not tell the number: it is often padded with rows for ids that the tokenizer never makes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from nemotron_dpo.sources import ModelSource


def check_made_with(tokenizer: str, digest: str | None, source: str) -> None:
    """Raise UserError where the pairs in `source`, made with the tokenizer of this `digest`, were not made with `tokenizer`."""
    if open_folder(tokenizer).digests["tokenizer"] != digest:
        remedy = "tokenize again, or drop --tokenizer"
        raise UserError(f"was not tokenized with {tokenizer}", source=source, remedy=remedy)


def warn_of_foreign(policy: ModelSource, digest: str | None, source: str | Path, say: Callable[[str], object]) -> None:
    """Say it where the pairs in `source` were not made with the tokenizer of `policy`: their ids may stand for other texts.

    Nothing is said where `policy` has no readable tokenizer, or where `digest`, that of the pairs' tokenizer, is None.
    """
    own = _digest(policy.tokenizer_folder)
    if own is not None and digest is not None and own != digest:
        say(f"warning: {source}: was tokenized with another tokenizer than {policy.name} has")


def vocab_size(embedded: int, policy: ModelSource, digest: str | None) -> int:
    """How many token ids pairs may have for `policy`, which embeds so many.

    Without its padding where `digest`, that of the pairs' tokenizer, is that of its own.
    """
    return min(embedded, num_tokens(policy.tokenizer_folder, digest) or embedded)


@functools.cache
def num_tokens(folder: Path, digest: str | None) -> int | None:
    """One more than the largest token id of the tokenizer in `folder`; None where its digest is not `digest`.

    The number is a bound for the ids of pairs that this same tokenizer made. Another tokenizer may have tokens where the
    policy's embedding has padding, so the bound would not hold for its pairs. None also where the tokenizer cannot be read.
    """
    if digest is None or _digest(folder) != digest:
        return None
    try:
        return max(open_folder(str(folder)).load().get_vocab(with_added_tokens=True).values()) + 1
    except (UserError, OSError):
        return None


@functools.cache
def _digest(folder: Path) -> str | None:
    try:
        return open_folder(str(folder)).digests["tokenizer"]
    except (UserError, OSError):
        return None
