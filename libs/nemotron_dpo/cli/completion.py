"""Completion of words in a shell, by click's own mechanism."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import click


def completer(argument: str, candidates: Callable[[str], Sequence[str | tuple[str, str]]]) -> Callable[..., list]:
    """For click's `shell_complete`: offers the candidates for the value of `argument` that was typed so far.

    A candidate is a word or a pair (word, description).
    """

    def candidates_of(context: click.Context, parameter: click.Parameter, incomplete: str) -> list:
        from click.shell_completion import CompletionItem

        typed = context.params.get(argument) or next(iter(context.args), "")  # still in args where an option lacks its value
        pairs = [(found, None) if isinstance(found, str) else found for found in candidates(typed)]
        return [CompletionItem(word, help=what) for word, what in pairs if word.startswith(incomplete)]

    return candidates_of


def complete(command: click.Command, program: str) -> None:
    """Answer a shell that asks for completions (click's own mechanism) and exit. Otherwise do nothing."""
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    if instruction := os.environ.get(variable):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(command, {}, program, variable, instruction))
