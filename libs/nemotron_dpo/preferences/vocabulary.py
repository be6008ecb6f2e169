"""Whether pairs are of the tokenizer of a policy, and how many tokens that has.

Embeddings are often padded, with rows that no text reaches.
"""

from __future__ import annotations

import functools
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.tokenizer_folder import open_folder


def is_foreign(folder: Path, digest: str | None) -> bool:
    """Whether there is a tokenizer in `folder`, and it is not the one with `digest`: its ids may mean other texts."""
    own = _digest(folder)
    return own is not None and digest is not None and own != digest


@functools.cache
def num_tokens(folder: Path, digest: str | None) -> int | None:
    """One more than the largest id of the tokenizer in `folder`; None where there is none, or one with another digest.

    So it bounds the ids of pairs that this very tokenizer made. Another may have tokens where the policy has padding.
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
