"""Format pairs for a person to read: where they are from, prompt and responses as text, special tokens, what was cut."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from tokenizers import Tokenizer

from nemotron_dpo import progress
from nemotron_dpo.preferences.selection import Shown

_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_PARTS = (("prompt", "\x1b[36m"), ("chosen", "\x1b[32m"), ("rejected", "\x1b[31m"))
_SPECIAL = "\x1b[35m"
_MARGIN = "  | "  # before each line of a text, so that no text can pass for the heading of another one


def printer(tokenizer: Tokenizer, *, on_stdout: bool, boundaries: bool) -> Callable[[Shown], object]:
    """What prints pairs, on stdout or above the progress that stderr shows. Coloured on a terminal, or with FORCE_COLOR set."""
    terminal = sys.stdout if on_stdout else sys.stderr
    colour = "NO_COLOR" not in os.environ and (terminal.isatty() or "FORCE_COLOR" in os.environ)
    write = functools.partial(print, flush=True) if on_stdout else progress.write_line
    return lambda pair: write(f"{format_pair(pair, tokenizer, colour=colour, boundaries=boundaries)}\n")


def format_pair(pair: Shown, tokenizer: Tokenizer, *, colour: bool, boundaries: bool = False) -> str:
    """Format one pair: a heading, and a block of text for the prompt and for each response.

    With `colour`, special tokens stand out by ANSI colours. With `boundaries`, each text is one line with "|" between tokens.
    """
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = pair.ids
    lists: tuple[Sequence[int], ...] = (ids.prompt, ids.chosen, ids.rejected)
    cut = (ids.prompt_truncated, ids.chosen_truncated, ids.rejected_truncated)
    logps = (None, *(pair.reference or (None, None)))
    paint = _painter(colour)
    blocks = [paint(f"line {pair.line} of {visible(pair.source) or 'the input'}", _BOLD)]
    for (name, tone), part, was_cut, logp in zip(_PARTS, lists, cut, logps, strict=True):
        score = "" if logp is None else f", reference log-prob {logp:.2f}"
        head = paint(f"{name}: {len(part)} tokens{', truncated' if was_cut else ''}{score}", _BOLD)
        if boundaries:
            body = paint("|", _DIM).join(paint(_token(tokenizer, i), _SPECIAL if i in special else tone) for i in part)
        else:
            body = "\n".join(_lines(part, tokenizer, special, tone, paint))
        blocks.append(f"{head}\n{body}")
    return "\n".join(blocks)


def _lines(
    ids: Sequence[int], tokenizer: Tokenizer, special: set[int], tone: str, paint: Callable[[str, str], str]
) -> Iterator[str]:
    """The lines of a text. What lies between special tokens is decoded as a whole: a character may take several tokens."""
    line = ""
    for is_special, group in groupby(ids, lambda i: i in special):
        run = list(group)
        texts = [_token(tokenizer, i) for i in run] if is_special else [tokenizer.decode(run, skip_special_tokens=False)]
        for text in texts:
            first, *rest = (visible(part) for part in text.split("\n"))
            line += paint(first, _SPECIAL if is_special else tone) if first else ""
            for part in rest:
                yield _MARGIN + line
                line = paint(part, tone) if part else ""
    yield _MARGIN + line


def _painter(colour: bool) -> Callable[[str, str], str]:
    return (lambda text, tone: f"{tone}{text}{_RESET}") if colour else (lambda text, tone: text)


def _token(tokenizer: Tokenizer, token_id: int) -> str:
    return visible(tokenizer.decode([token_id], skip_special_tokens=False))


def visible(text: str) -> str:
    """`text` with line ends, control and formatting characters escaped, so that data cannot control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
