"""Format pairs for a person to read: prompt, responses, special tokens and the boundaries between tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from nemotron_dpo.preferences.encoding import PairIds

_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_PARTS = (("prompt", "\x1b[36m"), ("chosen", "\x1b[32m"), ("rejected", "\x1b[31m"))
_SPECIAL = "\x1b[35m"


def format_pair(ids: PairIds, tokenizer: Tokenizer, *, colour: bool) -> str:
    """Format one pair: a block for the prompt and for each response, with "|" between tokens.

    With `colour`, special tokens stand out by ANSI colours.
    """
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    lists: tuple[Sequence[int], ...] = (ids.prompt, ids.chosen, ids.rejected)
    cut = (ids.prompt_truncated, ids.chosen_truncated, ids.rejected_truncated)
    paint = _painter(colour)
    blocks = []
    for (name, tone), part, was_cut in zip(_PARTS, lists, cut, strict=True):
        head = paint(f"{name}: {len(part)} tokens{', truncated' if was_cut else ''}", _BOLD)
        body = paint("|", _DIM).join(paint(_visible(tokenizer, i), _SPECIAL if i in special else tone) for i in part)
        blocks.append(f"{head}\n{body}")
    return "\n".join(blocks)


def _painter(colour: bool) -> Callable[[str, str], str]:
    return (lambda text, tone: f"{tone}{text}{_RESET}") if colour else (lambda text, tone: text)


def _visible(tokenizer: Tokenizer, token_id: int) -> str:
    """The token's text with line ends and control characters escaped, so that data cannot control the terminal."""
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
