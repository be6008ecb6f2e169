"""`each`: many cases in one test, where pytest's parametrize would make a test of every one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def each(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As pytest.mark.parametrize, but the test runs through all cases itself; stacked, through all their combinations.

    It fails with every case that fails, each named. Its fixtures are the same for all cases.
    """
    words = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [case if len(words) > 1 else (case,) for case in cases]
    assert rows, f"no case of {names}"

    def loop(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def through_all(**fixtures: Any) -> None:
            failures = []
            for row in rows:
                arguments = dict(zip(words, row, strict=True))
                try:
                    test(**fixtures, **arguments)
                except (Exception, pytest.fail.Exception) as failure:
                    failure.add_note("case: " + ", ".join(f"{name}={value!r}" for name, value in arguments.items()))
                    failures.append(failure)
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} cases of {', '.join(words)}", failures)

        kept = [parameter for name, parameter in signature.parameters.items() if name not in words]
        through_all.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined] - pytest reads it
        del through_all.__wrapped__
        return through_all

    return loop
