"""The store of scores: found by content, added by many at once, damage never served, memory that does not grow with it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nemotron_dpo import published
from nemotron_dpo.scoring import shard, store, upkeep
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.store import Context, Store
from support.stored import CONTEXT, identity, pairs_of, record


def filled(root: Path, numbers: range | list[int], context: Context = CONTEXT) -> Store:
    one = Store(root, context, print)
    for n in numbers:
        one.add(*record(n))
    one.publish()
    return one


def found(one: Store, numbers: list[int]) -> list[int]:
    """The numbers whose scores are known; they are the right ones."""
    pairs = pairs_of(numbers)
    scores = WindowScores.of(pairs)
    known = one.fill(pairs, scores)
    for row, n in enumerate(numbers):
        for side, due in zip(scores.row(row), record(n)[1:], strict=True):
            assert side.tolist() == due.tolist() if known[row] else np.isnan(side).all()
    return [n for n, is_known in zip(numbers, known, strict=True) if is_known]


def opened(root: Path, context: Context = CONTEXT, said: list[str] | None = None) -> Store:
    one = Store(root, context, (said if said is not None else []).append)
    one.refresh()
    return one


def test_what_was_added_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    one = filled(tmp_path, range(0, 300, 3))
    for other in (one, opened(tmp_path)):
        assert found(other, list(range(300))) == list(range(0, 300, 3))
        assert found(other, [5000]) == []
    one.add(*record(5000))
    assert found(one, [5000]) == [5000], "also before it is on the disk"
    assert found(opened(tmp_path), [5000]) == []


def test_other_semantics_never_mix(tmp_path: Path) -> None:
    filled(tmp_path, range(5))
    others = (
        replace(CONTEXT, weights="tensors:2"),
        replace(CONTEXT, precision="bfloat16"),
        replace(CONTEXT, kernels="torch 1"),
    )
    for context in (*others, replace(CONTEXT, forward=2)):
        assert found(opened(tmp_path, context), list(range(5))) == []
    folder = opened(tmp_path).folder
    theirs = opened(tmp_path, others[0])
    theirs.folder.mkdir()
    moved = next(folder.glob("*.arrow"))
    (theirs.folder / moved.name).write_bytes(moved.read_bytes())
    said: list[str] = []
    assert found(opened(tmp_path, others[0], said), list(range(5))) == [], "a file that was moved to another context"
    assert "is left out" in said[0]
    assert store.contexts(tmp_path) == {folder: CONTEXT}


def test_damage_is_missing_and_said(tmp_path: Path) -> None:
    one = filled(tmp_path, range(40))
    path = next(one.folder.glob("*.arrow"))
    whole = path.read_bytes()
    value = np.float32(-17.25).tobytes()  # of pair 17's chosen response
    assert value in whole
    damages = {
        "a flipped bit": whole.replace(value, np.float32(-17.375).tobytes(), 1),
        "a cut file": whole[:-200],
        "an empty file": b"",
        "no stream": b"\0" * len(whole),
    }
    for what, content in damages.items():
        path.write_bytes(content)
        said: list[str] = []
        due = [n for n in range(40) if n != 17] if what == "a flipped bit" else []
        assert found(opened(tmp_path, said=said), list(range(40))) == due, what
        assert len(said) == 1, what
        assert str(path) in said[0]
    other = opened(tmp_path)
    for n in range(40):
        other.add(*record(n))
    other.publish()
    assert found(opened(tmp_path), list(range(40))) == list(range(40))


def test_a_pair_that_two_processes_scored_is_counted_once(tmp_path: Path) -> None:
    filled(tmp_path, range(30))
    filled(tmp_path, range(20, 45))
    assert [one.num_pairs for one in upkeep.stored(tmp_path)] == [45]
    assert sum(one for one in upkeep.damage(tmp_path) if isinstance(one, int)) == 55


def test_scores_of_another_length_are_not_taken(tmp_path: Path) -> None:
    one = Store(tmp_path, CONTEXT, print)
    one.add(identity(3), np.zeros(9, np.float32), np.zeros(5, np.float32))
    assert found(one, [3]) == []


def _add(root: str, first: int) -> None:
    one = Store(Path(root), CONTEXT, print)
    for n in range(first, first + 200):
        one.add(*record(n))
        if n % 10 == 9:
            one.publish()
    one.close()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_many_processes_lose_and_mix_nothing(tmp_path: Path) -> None:
    """They also pack each other's files while these are read."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_add, args=(str(tmp_path), 150 * number)) for number in range(4)]
    for worker in workers:
        worker.start()
    said: list[str] = []
    reader = opened(tmp_path, said=said)
    while any(worker.is_alive() for worker in workers):
        reader.refresh()
        found(reader, list(range(0, 650, 7)))
        time.sleep(0.02)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found(opened(tmp_path, said=said), list(range(650))) == list(range(650))
    assert said == []


def test_many_small_files_are_packed_and_removed_when_nobody_has_them(tmp_path: Path) -> None:
    one = Store(tmp_path, CONTEXT, print)
    for n in range(40):
        one.add(*record(n))
        one.publish()
    reader = opened(tmp_path)
    one.close()
    assert len(list(one.folder.glob("*.arrow"))) == 41
    assert len(one._shards) == 1
    assert found(reader, list(range(40))) == list(range(40)), "who has the small files goes on"
    reader.refresh()
    assert len(reader._shards) == 1
    long_ago = time.time() - 2 * store._GRACE_SECONDS
    os.utime(next(iter(one._shards.values())).path, (long_ago, long_ago))
    opened(tmp_path).close()
    assert len(list(one.folder.glob("*.arrow"))) == 1
    assert found(opened(tmp_path), list(range(40))) == list(range(40))


def test_packing_keeps_each_pair_once_and_no_damage(tmp_path: Path) -> None:
    """Two runs that pack at once put the same pairs into two files, which are packed again."""
    one = Store(tmp_path, CONTEXT, print)
    for n in range(store._MANY_SMALL + 1):
        one.add(*record(n))
        one.publish()
    assert len(one._shards) == 1, "many are packed before the end of a run"
    path = next(iter(one._shards.values())).path
    for n in range(store._MOST_SMALL):
        filled(tmp_path, [n, 7])
    content = path.read_bytes()
    value = np.float32(-17.25).tobytes()  # of pair 17's chosen response, which no other file has
    assert content.count(value) == 8
    path.with_suffix(".new").write_bytes(content.replace(value, np.float32(-17.5).tobytes()))
    path.with_suffix(".new").rename(path)
    other = opened(tmp_path)
    other.close()
    (packed,) = other._shards.values()
    assert len(packed) == store._MANY_SMALL
    assert found(other, list(range(70))) == [n for n in range(store._MANY_SMALL + 1) if n != 17]


def test_a_folder_that_takes_nothing_is_said_and_left(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("a file where a folder is due")
    said: list[str] = []
    one = Store(tmp_path, CONTEXT, said.append)
    for _ in range(2):
        one.add(*record(1))
        one.publish()
    assert len(said) == 1
    assert "takes no scores" in said[0]


MANY = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from nemotron_dpo.scoring.shard import ids_of, open_shard, rows_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shards = [open_shard(path, "many") for path in sorted(Path(sys.argv[1]).glob("*.arrow"))]
wanted = np.random.default_rng(int(sys.argv[2])).integers(0, 2**63, (10_000, 2)).astype("<u8")
for first in range(0, len(wanted), 1000):
    hits = sum(int((one.find(wanted[first : first + 1000]) >= 0).sum()) for one in shards)
    assert hits == 1000, hits
    for one in shards:
        one.forget()
print(sum(map(len, shards)), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
def test_looking_up_among_millions_takes_little_memory(tmp_path: Path) -> None:
    """Two million records in two files, with a part of a MB a thousand; the index of ten million is 240 MB in all."""
    for number in range(2):
        ids = np.random.default_rng(number).integers(0, 2**63, (1_000_000, 2)).astype("<u8")
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(ids.tobytes())])
        ends = pa.array(np.arange(len(ids) + 1, dtype=np.int32))
        lists = pa.ListArray.from_arrays(ends, pa.array(np.zeros(len(ids), np.float32)))
        crcs = pa.array(np.zeros(len(ids), np.uint32))
        batch = pa.RecordBatch.from_arrays([column, crcs, lists, lists], schema=shard.SCHEMA)
        shard.write(tmp_path / f"{number}.arrow", "many", batch)
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path), "0"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    records, megabytes = map(int, done.stdout.split())
    assert records == 2_000_000
    assert megabytes <= 60, f"{megabytes} MB for two million: 300 for ten"


def test_what_was_computed_is_described_for_people(tmp_path: Path) -> None:
    folder = filled(tmp_path, range(2)).folder
    said = json.loads((folder / "context.json").read_text())
    assert said == {"weights": "tensors:1", "precision": "float32", "kernels": "c 1", "forward": 1}


def test_what_killed_writers_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    one = filled(tmp_path, [1, 2])
    dead = one.folder / f".0-host-1.arrow.{published.mount_of(one.folder)}-{'1' * 16}.tmp"
    dead.mkdir()
    (dead / ".lock").touch()
    (dead / "0-host-1.arrow").write_bytes(bytes(10))
    os.utime(dead, (1e9, 1e9))
    with published.replacing(one.folder / "2-host-2.arrow") as living:
        living.write_bytes(bytes(10))
        os.utime(living.parent, (1e9, 1e9))
        assert upkeep.remove_older(tmp_path, 3600.0) == (1, 10)
        assert not dead.exists()
    assert (one.folder / "2-host-2.arrow").read_bytes() == bytes(10)
    assert found(one, [1, 2]) == [1, 2]


def test_a_clock_that_runs_ahead_removes_no_file_that_others_may_have_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(17):
        filled(tmp_path, [n])
    opened(tmp_path).close()  # which packs
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 366 * 86400)
    before = sorted(path.name for path in opened(tmp_path).folder.glob("*.arrow"))
    assert len(before) == 18
    opened(tmp_path).close()
    assert sorted(path.name for path in opened(tmp_path).folder.glob("*.arrow")) == before
