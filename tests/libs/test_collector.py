"""Programs look rarely for garbage while they import, and as often as Python does once they compute."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from nemotron_dpo import collector


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)


class Cycle:
    def __init__(self):
        self.itself = self


def _is_found_among(others: int) -> bool:
    """Whether a cycle is freed while that many objects are made after it."""
    gone = weakref.ref(Cycle())
    kept = [[] for _ in range(others)]
    return gone() is None and len(kept) == others


def test_a_cycle_is_freed_soon_once_there_may_be_tensors():
    collector.collect_rarely()
    gc.collect()
    assert not _is_found_among(10_000)
    assert _is_found_among(60_000)
    collector.collect_as_usual()
    assert _is_found_among(10_000)


def test_what_exists_by_then_is_looked_at_no_more():
    frozen = gc.get_freeze_count()
    made = [[] for _ in range(100)]
    collector.collect_as_usual()
    assert gc.get_freeze_count() >= frozen + len(made)


def test_every_program_begins_so():
    code = (
        "import gc, click; from nemotron_dpo import cli\n"
        "before = gc.get_threshold()[0]\n"
        "cli.run(click.command()(lambda: print(before, gc.get_threshold()[0])), 'program')"
    )
    before, within = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split())
    assert before < 10_000 < within
