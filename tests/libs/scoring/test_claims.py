"""Claims of pairs: each is one process's as long as it gives a sign of life, and nobody waits for one that does not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nemotron_dpo.published import mount_of
from nemotron_dpo.scoring import claims, shared
from nemotron_dpo.scoring.claims import Claims
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.shared import Shared
from nemotron_dpo.scoring.store import Store
from support.stored import CONTEXT, identity, pairs_of, record

IDS = [identity(n) for n in range(6)]


def test_a_pair_is_one_processs_until_it_drops_it(tmp_path: Path) -> None:
    one, other = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    assert one.take(IDS[:3]) == [True] * 3
    assert not one.has_company
    assert other.take(IDS[1:5]) == [False, False, True, True]
    assert one.take(IDS) == [True, True, True, False, False, True]
    assert one.has_company
    one.drop()
    assert other.take(IDS) == [True] * 6
    other.close()
    assert one.take(IDS) == [True] * 6
    assert not one.has_company
    assert other.take(IDS[:1], all_of_them=True) == [True]


def test_who_gives_no_sign_of_life_is_not_waited_for(tmp_path: Path) -> None:
    """A killed process not at all, of another host for seconds; one that is stopped, and holds its lock, for a lease. It may come back."""

    def taken_after(one: Claims, path: Path, seconds: float) -> bool:
        then = time.time() - seconds
        os.utime(path, (then, then))
        return one.take(IDS[:2]) == [True] * 2

    one, other = Claims(tmp_path), Claims(tmp_path)
    near, killed = tmp_path / f"{mount_of(tmp_path)}-1", tmp_path / "00000000-1"
    near.write_bytes(b"".join(IDS[:2]))
    assert one.take(IDS[:2]) == [True] * 2
    one.drop()
    assert not near.exists()
    killed.write_bytes(b"".join(IDS[:2]))
    assert [taken_after(one, killed, age) for age in (claims.UNLOCKED_SECONDS - 5, claims.UNLOCKED_SECONDS + 5)] == [
        False,
        True,
    ]
    assert not killed.exists()
    (own,) = tmp_path.glob("[!.]*")
    assert [taken_after(other, own, age) for age in (claims.LEASE_SECONDS - 5, claims.LEASE_SECONDS + 5)] == [False, True]
    assert one.take(IDS) == [False] * 2 + [True] * 4
    assert len(list(tmp_path.glob("[!.]*"))) == 2


def test_a_file_is_renewed_as_long_as_its_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_BEAT_SECONDS", 0.01)
    one = Claims(tmp_path)
    one.take(IDS)
    (own,) = tmp_path.glob("[!.]*")
    os.utime(own, (1e9, 1e9))
    until = time.monotonic() + 20
    while own.stat().st_mtime == 1e9 and time.monotonic() < until:
        time.sleep(0.01)
    assert own.stat().st_mtime > 1e9
    one.close()
    assert list(tmp_path.glob("[!.]*")) == []


def test_a_folder_that_takes_no_claims_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = Claims(tmp_path / "file" / "claims")
    assert one.take(IDS) == [True] * 6
    one.drop()
    one.close()


def test_what_is_begun_elsewhere_is_waited_for_and_what_hangs_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_LOOK_SECONDS", 0.0)
    said: list[str] = []
    mine, theirs = (Shared.of(Store(tmp_path, CONTEXT, said.append)) for _ in range(2))
    pairs = pairs_of(list(range(6)))
    scores = WindowScores.of(pairs)
    assert theirs.begin(pairs, WindowScores.of(pairs), [1, 2, 4]) == [1, 2, 4]
    assert mine.begin(pairs, scores, range(6)) == [0, 3, 5]
    assert mine.wait(pairs, scores, [1, 2, 4]).tolist() == [False] * 3
    theirs.store.add(*record(2))
    theirs.store.publish()  # and it claims it still
    assert mine.wait(pairs, scores, [1, 2, 4]).tolist() == [False, True, False]
    assert scores.row(2)[0].tolist() == record(2)[1].tolist()
    theirs.store.add(*record(4))
    theirs.wait(pairs, scores, [0])  # who waits has published, and claims nothing
    assert mine.begin(pairs, scores, [1, 4]) == [1]
    mine.wait(pairs, scores, [])
    assert theirs.begin(pairs, scores, [1]) == [1]
    assert mine.begin(pairs, scores, [1]) == []
    assert mine.wait(pairs, scores, [1]).tolist() == [False]
    assert mine.begin(pairs, scores, [1]) == []
    monkeypatch.setattr(shared, "_SILENT_SECONDS", -1.0)
    monkeypatch.setattr(shared, "_PATIENCE_SECONDS", -1.0)
    for _ in range(2):
        mine.wait(pairs, scores, [1])
    assert said == ["waiting for 1 pair that another run is scoring"]
    assert mine.begin(pairs, scores, [1]) == [1]
    for one in (mine, theirs):
        one.close()


def test_what_came_and_went_between_two_looks_is_found(tmp_path: Path) -> None:
    mine, theirs = (Shared.of(Store(tmp_path, CONTEXT, print)) for _ in range(2))
    pairs = pairs_of(list(range(4)))
    scores = WindowScores.of(pairs)
    mine.store.refresh()
    assert theirs.begin(pairs, WindowScores.of(pairs), [1, 2]) == [1, 2]
    for row in (1, 2):
        theirs.store.add(*record(row))
    theirs.store.publish()
    theirs.close()
    assert mine.begin(pairs, scores, range(4)) == [0, 3]
    assert scores.row(2)[0].tolist() == record(2)[1].tolist()
    assert not mine.claims.has_company
    os.utime(mine.store.folder, (1e9, 1e9))
    mine.store.refresh()
    assert not mine.store.may_have_more()
    mine.close()
