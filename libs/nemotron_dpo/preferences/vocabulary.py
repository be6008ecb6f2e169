"""How many tokens the tokenizer of a policy has. Embeddings are often padded, with rows that no text reaches."""

from __future__ import annotations

import functools
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.tokenizer_folder import open_folder


@functools.cache
def num_tokens(folder: Path, digest: str | None) -> int | None:
    """One more than the largest id of the tokenizer in `folder`; None where there is none, or one with another digest.

    So it bounds the ids of pairs that this very tokenizer made. Another may have tokens where the policy has padding.
    """
    try:
        found = open_folder(str(folder))
        if found.digests["tokenizer"] != digest:
            return None
        return max(found.load().get_vocab(with_added_tokens=True).values()) + 1
    except (UserError, OSError):
        return None
