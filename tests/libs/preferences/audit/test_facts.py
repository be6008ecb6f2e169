"""Tests for the table of facts: what was added, in its order, in little more memory than that is."""

from __future__ import annotations

import tracemalloc

import numpy as np

from nemotron_dpo.preferences.audit.facts import FACTS, FactTable

CHUNK, CHUNKS = 1041, 100


def test_facts_of_many_chunks_lie_in_one_array_that_was_never_there_twice():
    def chunk(number: int) -> np.ndarray:
        facts = np.zeros(CHUNK, FACTS)
        facts["line"] = np.arange(number * CHUNK, (number + 1) * CHUNK)
        return facts

    table, early = FactTable(), FactTable()
    tracemalloc.start()
    for number in range(CHUNKS):
        table.add("a", chunk(number), [])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(table.all()["line"], np.arange(CHUNKS * CHUNK))
    assert most < 1.25 * CHUNKS * CHUNK * FACTS.itemsize  # an eighth of room, and a chunk
    early.add("a", chunk(0), [])
    seen = early.all()
    for number in range(1, 8):
        early.add("a", chunk(number), [])
    assert np.array_equal(seen["line"], np.arange(CHUNK))
    assert np.array_equal(early.all()["line"], np.arange(8 * CHUNK))
