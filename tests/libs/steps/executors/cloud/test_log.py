"""A log that arrives over several connections, and what the end of a job means by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from nemotron_dpo.steps.executors.cloud import log
from nemotron_dpo.steps.executors.cloud.log import StreamedLog
from nemotron_dpo.steps.executors.shared.follow import Ending, ending

END = "nemotron-steps: job x-1 ends with exit status {}\n"


def connections(*brought: bytes | Exception) -> Callable[[], Iterator[bytes]]:
    """Each connection brings one thing, the last one stays."""
    waiting = list(brought)

    def connect() -> Iterator[bytes]:
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, Exception):
            raise found
        yield from (found[n : n + 3] for n in range(0, len(found), 3))

    return connect


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(log, "_LAST_SECONDS", 0.5)


def test_a_lost_connection_neither_loses_nor_repeats():
    whole = "één\nzwei\n".encode() + END.format(0).encode()
    streamed = StreamedLog(connections(whole[:5], OSError("gone"), whole[:7], b"", whole), print)
    assert streamed.ending_of("COMPLETED", "Completed").name == "COMPLETED"
    assert streamed.read(0) == whole
    assert streamed.read(4) == whole[4:]
    assert streamed.read(len(whole)) == b""


ENDINGS = [
    ("COMPLETED", 0, ("COMPLETED", 0)),
    ("COMPLETED", 7, ("FAILED", 7)),
    ("FAILED", 7, ("FAILED", 7)),
    ("FAILED", None, ("failed", 1)),
    ("COMPLETED", None, ("COMPLETED", 0)),
    ("CANCELLED", 143, ("CANCELLED", 0)),
]


@pytest.mark.parametrize(("name", "told", "wanted"), ENDINGS)
def test_what_the_log_tells_counts(name: str, told: int | None, wanted: tuple[str, int]):
    text = b"words\n" if told is None else END.format(told).encode()
    state = StreamedLog(connections(text), print).ending_of(name, "Word")
    assert (state.name, state.code) == wanted


@pytest.mark.slow
def test_a_log_that_cannot_be_read_is_said_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "_LAST_SECONDS", 2)
    monkeypatch.setattr(log, "_MANY_FAILURES", 3)
    said: list[str] = []
    state = StreamedLog(connections(OSError("forbidden")), said.append).ending_of("FAILED", "Failed")
    assert ending(state, "5") == Ending(1, "job 5 ended as failed: its log does not tell why")
    assert said == ["warning: the log cannot be read (OSError: forbidden): still trying"]
