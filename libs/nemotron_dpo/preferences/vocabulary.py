"""Tell whether pairs were made with the tokenizer of a policy, and how many token ids that tokenizer has.

A policy's embedding does not tell the number: it is often padded with rows for ids that the tokenizer never makes.
"""

from __future__ import annotations

import functools
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.tokenizer_folder import open_folder


def is_foreign(folder: Path, digest: str | None) -> bool:
    """True where `folder` has a tokenizer whose digest is not `digest`, so that its ids may stand for other texts.

    False where `folder` has no readable tokenizer, or where `digest` is None.
    """
    own = _digest(folder)
    return own is not None and digest is not None and own != digest


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
