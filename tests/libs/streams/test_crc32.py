"""CRC-32 in C against zlib's, over buffers and over records, and without a compiler."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nemotron_dpo.scoring import record_checks
from nemotron_dpo.streams import crc32 as module


@pytest.fixture
def in_c() -> object:
    if (found := module.library()) is None:
        pytest.skip("no C compiler, or a CPU without products without carries")
    return found


def test_of_buffers_is_that_of_zlib(in_c: object) -> None:
    content = np.random.default_rng(0).integers(0, 256, 70_000, np.uint8).tobytes()
    assert module.crc32(b"123456789" * 1000) == zlib.crc32(b"123456789" * 1000)
    for size in (*range(64, 200), 4096, 4097, 65_535, 69_997):
        part = content[3 : 3 + size]
        for before in (0, 1, 0xFFFFFFFF, 0xDEADBEEF):
            assert in_c.crc32_of(pa.py_buffer(part).address, size, before) == zlib.crc32(part, before), (size, before)  # type: ignore[attr-defined] - a CDLL
            assert module.crc32(memoryview(part), before) == zlib.crc32(part, before)
    assert module.crc32(np.arange(5000, dtype=np.int32)) == zlib.crc32(np.arange(5000, dtype=np.int32).tobytes())


def records(sizes: list[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    """Ids, checksums by zlib, and (values, ends) of both sides of records that have so many log-probs."""
    random = np.random.default_rng(1)
    ids = random.integers(0, 2**63, (len(sizes), 2)).astype("<u8")
    ends = [np.concatenate([[0], np.cumsum(side)]).astype(np.int32) for side in zip(*sizes, strict=True)]
    values = [-random.random(end[-1]).astype(np.float32) for end in ends]
    crcs = []
    for row, (few, _) in enumerate(sizes):
        sides = [side[end[row] : end[row + 1]].tobytes() for side, end in zip(values, ends, strict=True)]
        crcs.append(zlib.crc32(ids[row].tobytes() + np.int32(few).tobytes() + b"".join(sides)))
    return ids, np.array(crcs, np.uint32), values[0], ends[0], values[1], ends[1]


def test_of_records_finds_each_that_is_damaged(in_c: object) -> None:
    sizes = [(a, b) for a in range(9) for b in range(9)] + [(3000, 1), (1, 5000), (200, 300), (8192, 8192)]
    arrays = records(sizes)
    rows = np.random.default_rng(2).permutation(len(sizes))
    for make in (record_checks.checks, record_checks.checks_by_calls):
        assert make(*arrays)(rows).all()
        assert make(*arrays)(rows[:0]).tolist() == []
        for index in (0, 1, 2, 4):  # an id, a checksum, a value of either side
            damaged = [one.copy() for one in arrays]
            of_record = len(sizes) - 2
            at = of_record if index < 2 else int(arrays[index + 1][of_record])
            damaged[index].view(np.uint8).reshape(len(damaged[index]), -1)[at, 1] ^= 4
            assert np.flatnonzero(~make(*damaged)(np.arange(len(sizes)))).tolist() == [of_record], (make, index)


def test_without_a_compiler_zlib_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = records([(3, 4), (0, 7)])
    for name, value in (("CC", "/no/such/compiler"), ("XDG_CACHE_HOME", str(tmp_path / "file")), ("CC", "false")):
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv(name, value)
        module.library.cache_clear()
        assert module.library() is None, (name, value)
        assert module.crc32(bytes(9000), 3) == zlib.crc32(bytes(9000), 3)
        assert record_checks.checks(*arrays)(np.arange(2)).all()
        monkeypatch.undo()
    module.library.cache_clear()
