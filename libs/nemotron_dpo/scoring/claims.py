"""Which pairs a run is scoring now, so that others that use the store at the same time score other ones.

A run has a file with the ids of the pairs that it has begun and not published yet. A claim is a hint and no lock: where files
of others are not seen, a pair is scored twice, and nothing is lost. It counts as long as its process gives signs of life, by
the time of its file, of which the file system's clock is the judge, and by a lock on it. Other mounts or hosts may not see
that lock, and who is stopped keeps it, so neither sign is enough; within one mount a lock that is free is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_dpo import locks
from nemotron_dpo.published import mount_of

FOLDER = ".claims"
LEASE_SECONDS = 60.0  # after which a process that does not renew its file is taken for dead
UNLOCKED_SECONDS = 10.0  # the same where its file is not locked, as seen from another mount or host
_BEAT_SECONDS = 2.0
_TURN_SECONDS = 2.0  # how long one waits for another that writes its claims
_ID_BYTES = 16


@dataclass
class Claims:
    """The claims of one process in `folder`, and what it knows of the others'."""

    folder: Path
    has_company: bool = False  # whether another process was seen
    _file: int | None = None
    _path: Path = Path()
    _own: set[bytes] = field(default_factory=set)
    _beats: bool = False
    _over: threading.Event = field(default_factory=threading.Event)

    def take(self, ids: Sequence[bytes], *, all_of_them: bool = False) -> list[bool]:
        """Claim those of `ids` that no other process has, or `all_of_them`; which are claimed.

        Where the folder takes no files, all are.
        """
        try:
            with self._turn():
                self._open()
                others = self._of_others()
                mine = [all_of_them or one not in others for one in ids]
                self._write(self._own.union(one for one, is_mine in zip(ids, mine, strict=True) if is_mine))
        except OSError:
            return [True] * len(ids)
        return mine

    def drop(self) -> None:
        """Claim nothing any more."""
        if self._own:
            with contextlib.suppress(OSError):
                self._write(set())

    def close(self) -> None:
        """Be none of those who claim."""
        self._over.set()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
        self._file = None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The others wait meanwhile, unless locks are not kept here, or one was stopped that holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            until = time.monotonic() + _TURN_SECONDS
            while not _is_locked(file) and time.monotonic() < until:
                time.sleep(0.005)
            yield
        finally:
            os.close(file)

    def _open(self) -> None:
        """Have a file of this process, with a lock and with the time of now."""
        if self._file is not None and not locks.is_named(self._file, self._path):  # another took this process for dead
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._path = self.folder / f"{mount_of(self.folder)}-{os.urandom(8).hex()}"
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            locks.lock(self._file, fcntl.LOCK_EX)
            self._write(self._own)
        if not self._beats:
            self._beats = True
            threading.Thread(target=self._beat, daemon=True).start()
        os.utime(self._file)

    def _of_others(self) -> set[bytes]:
        """What other living processes claim; the files of dead ones are removed."""
        assert self._file is not None
        now, found, alive = os.fstat(self._file).st_mtime, set(), 0
        for path in self.folder.glob("[!.]*"):
            if path == self._path:
                continue
            with contextlib.suppress(OSError):  # it ended just now, or is another user's
                if _is_dead(path, now):
                    path.unlink()
                else:
                    alive, content = alive + 1, path.read_bytes()
                    found |= {content[at : at + _ID_BYTES] for at in range(0, len(content), _ID_BYTES)}
        self.has_company = alive > 0
        return found

    def _write(self, ids: set[bytes]) -> None:
        assert self._file is not None
        content = b"".join(ids)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, content, 0)
        self._own = ids

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _is_locked(file: int) -> bool:
    """Lock `file` unless another process has it; a file system without locks counts as locked."""
    try:
        locks.lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_dead(path: Path, now: float) -> bool:
    """Whether nobody has renewed the file for long, or nobody locks it and for a while nobody renewed it."""
    file = os.open(path, os.O_RDONLY)
    try:
        age = now - os.fstat(file).st_mtime
        sees_locks = path.name.startswith(mount_of(path.parent)) or age > UNLOCKED_SECONDS
        return age > LEASE_SECONDS or (sees_locks and locks.lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except OSError:  # it is locked
        return False
    finally:
        os.close(file)
