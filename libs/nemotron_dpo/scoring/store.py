"""Scores that were computed before, by what decides them, shared by runs, processes and hosts. Never one number twice.

    DIR/scores/KEY/context.json         what was computed: weights, precision, kernels, the form of the forward pass
    DIR/scores/KEY/TIME-HOST-....arrow   records by pair_id: the digest of prompt, chosen and rejected ids

KEY is the digest of context.json. So scores of other weights, of another precision or of kernels that round otherwise lie in
another folder, and never mix. Learning rate, beta, objective, paths, names, batch sizes and numbers of processes do not count.

Files are only added, each under a name of its own, by rename: any number of processes and hosts add at once and need no locks,
which networked file systems do not keep. Many small files are packed into few; those are left for a while, since others may
have them mapped. A record that does not have its checksum counts as missing. What a run is computing it claims (`claims.py`);
where claims are not seen, pairs are computed twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.published import clock_of
from nemotron_dpo.scoring import shard
from nemotron_dpo.scoring.scores import WindowScores
from nemotron_dpo.scoring.shard import SUFFIX, DamagedShard, Shard, ids_of
from nemotron_dpo.streams import published_file

FOLDER, CONTEXT = "scores", "context.json"
PUBLISH_SECONDS = 20.0  # a killed process loses no more than it scored since
_SMALL_RECORDS, _MOST_SMALL = 50_000, 16  # so many files of fewer records are packed into one at the end of a run
_MANY_SMALL = 64  # and meanwhile
_PACK_VALUES = 1 << 26  # log-probs of one side in a packed file: 256 MB
_MOST_PENDING = 20_000  # records that wait in memory
_READ_AT_ONCE = 256  # records that are read before the memory they lie in is given back
# bytes of a store whose memory is not given back: to fetch it again takes a third of the time of reading
_STAYS_MAPPED = 1 << 26
_TICK_NS = 2_000_000_000  # a file system's clock may be so coarse
_GRACE_SECONDS = 3600  # after which nobody has a file mapped that was packed into another


@dataclass(frozen=True)
class Context:
    """What decides a score besides the pair. `forward` numbers the form of the forward pass: 1 is prompt | chosen | rejected,
    positions of both responses going on from the prompt's end, log-softmax in float32."""

    weights: str
    precision: str
    kernels: str
    forward: int = 1

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class Store:
    """The scores of one context under `root`. `say` hears of what is damaged, and of a folder that takes nothing."""

    root: Path
    context: Context
    say: Callable[[str], object]
    _shards: dict[str, Shard] = field(default_factory=dict)
    _ignored: set[str] = field(default_factory=set)
    _said: set[tuple[str, int]] = field(default_factory=set)  # damaged records
    _pending: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _published: float = field(default_factory=time.monotonic)
    _takes: bool = True
    _seen: int = -1  # when the folder last changed before it was looked at

    @property
    def folder(self) -> Path:
        """Where the records of this context lie."""
        return self.root / FOLDER / self.context.key

    def refresh(self) -> None:
        """See what others have added, and let go of what was packed."""
        self._seen = self._changed()
        names = {path.name for path in self.folder.glob(f"[!.]*{SUFFIX}")} - self._ignored
        packed = {name for one in self._shards.values() for name in one.replaces}
        for name in names - self._shards.keys() - packed:
            try:
                self._shards[name] = shard.open_shard(self.folder / name, self.context.key)
            except FileNotFoundError:  # packed and removed meanwhile
                continue
            except (DamagedShard, OSError) as error:
                self._ignored.add(name)
                self.say(f"warning: {self.folder / name}: is left out: it is damaged ({error})")
        packed = {name for one in self._shards.values() for name in one.replaces}
        self._shards = {name: one for name, one in self._shards.items() if name in names and name not in packed}

    def may_have_more(self) -> bool:
        """Whether others may have added something since `refresh`: the folder changed, or did so shortly before."""
        return self._seen != self._changed() or abs(time.time_ns() - self._seen) < _TICK_NS

    def _changed(self) -> int:
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:  # nobody has added anything
            return -1

    def fill(self, pairs: Pairs, scores: WindowScores, known: np.ndarray | None = None) -> np.ndarray:
        """Put what is known of `pairs` into `scores`, but for those that are `known` (bool [P]); which are known now."""
        ids = pairs.pair_ids.to_numpy()
        known = np.zeros(len(ids), bool) if known is None else known
        for row, record in self._found_pending(ids):
            known[row] = known[row] or scores.put(row, *record)
        for one in list(self._shards.values()):
            wanted = np.flatnonzero(~known)
            at = one.find(ids[wanted])
            self._read(one, wanted[at >= 0], at[at >= 0], scores, known)
            self._forget(one)
        return known

    def _forget(self, one: Shard) -> None:
        """Give back the memory of what was looked at, in a store that would take much of it."""
        if sum(len(other.mapped) for other in self._shards.values()) > _STAYS_MAPPED:
            one.forget()

    def _read(self, one: Shard, rows: np.ndarray, places: np.ndarray, scores: WindowScores, known: np.ndarray) -> None:
        """Put the records at `places` of a file into `rows` of `scores` and mark these in `known`, but for damaged ones."""
        for start in range(0, len(rows), _READ_AT_ONCE):
            some = places[start : start + _READ_AT_ONCE]
            is_whole = one.are_whole(some)
            for place in some[~is_whole].tolist():
                if (one.path.name, place) not in self._said:
                    self._said.add((one.path.name, place))
                    self.say(f"warning: {one.path}: record {place} is damaged and is scored again")
            for row, place in zip(rows[start : start + _READ_AT_ONCE][is_whole].tolist(), some[is_whole].tolist(), strict=True):
                known[row] = scores.put(row, *one.read(place))
            self._forget(one)

    def add(self, pair_id: bytes, chosen: np.ndarray, rejected: np.ndarray) -> None:
        """Take a record, which is published with the next ones."""
        self._pending[pair_id] = (chosen.copy(), rejected.copy())

    @property
    def takes(self) -> bool:
        """Whether the folder has taken all that was to be published."""
        return self._takes

    def is_due(self, seconds: float = PUBLISH_SECONDS) -> bool:
        """Whether records have waited as long as they may, or for so many seconds."""
        waited = time.monotonic() - self._published
        return waited >= min(PUBLISH_SECONDS, seconds) or len(self._pending) >= _MOST_PENDING

    def publish(self) -> None:
        """Write what is pending to the disk under a name of its own."""
        if self._pending and self._takes:
            ids, sides = list(self._pending), list(self._pending.values())
            self._write(shard.batch_of(ids, [side[0] for side in sides], [side[1] for side in sides]))
            self.refresh()
            self._pack(_MANY_SMALL)
        self._pending.clear()
        self._published = time.monotonic()

    def close(self) -> None:
        """Publish what is pending, and pack where there are many small files."""
        self.publish()
        self._pack(_MOST_SMALL)
        self._remove_packed()

    def _pack(self, most: int) -> None:
        """Where there are more small files than `most`, put their whole records into few, each pair once."""
        small = [one for one in self._shards.values() if len(one) < _SMALL_RECORDS]
        if len(small) <= most or not self._takes:
            return
        for some in _packs(small):
            self._write(_together(some), [one.path.name for one in some])
        self.refresh()

    def _found_pending(self, ids: np.ndarray) -> list[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        if not self._pending:
            return []
        keys = (pair.tobytes() for pair in ids)
        return [(row, self._pending[key]) for row, key in enumerate(keys) if key in self._pending]

    def _write(self, batch: pa.RecordBatch, replaces: Sequence[str] = ()) -> None:
        """A file of records; where the folder takes none, scoring goes on without."""
        name = f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / CONTEXT).exists():
                with published_file(self.folder / CONTEXT) as file:
                    file.write(json.dumps(asdict(self.context), indent=2).encode() + b"\n")
            shard.write(self.folder / name, self.context.key, batch, replaces)
        except OSError as error:
            self._takes = False
            self.say(f"warning: {self.folder}: takes no scores ({error.strerror or error}): they are in the output alone")

    def _remove_packed(self) -> None:
        """Remove files that were packed into others long enough ago, by the clock that all hosts share."""
        with contextlib.suppress(OSError):  # another process was faster, or may do what this one may not
            packs = [one for one in self._shards.values() if one.replaces]
            now = clock_of(self.folder) if packs else 0.0
            for one in packs:
                if now - one.path.stat().st_mtime > _GRACE_SECONDS:
                    for name in one.replaces:
                        (self.folder / name).unlink(missing_ok=True)


def contexts(root: Path) -> Mapping[Path, Context]:
    """The folder of each context under `root`. One whose description is damaged is left out."""
    found = {}
    for path in sorted((root / FOLDER).glob(f"*/{CONTEXT}")):
        try:
            found[path.parent] = Context(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            continue
    return found


def _together(shards: Sequence[Shard]) -> pa.RecordBatch:
    """The whole records of some files, each pair once: runs that pack at the same time put the same ones into two files."""
    parts = []
    for one in shards:
        is_whole = one.are_whole(np.arange(len(one)))
        parts.append(one.batch if is_whole.all() else one.batch.filter(pa.array(is_whole)))
    batch = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    _, first = np.unique(ids_of(batch.column("pair_id")), axis=0, return_index=True)
    return batch if len(first) == len(batch) else batch.take(pa.array(first))


def _packs(small: Sequence[Shard]) -> list[list[Shard]]:
    """The shards in parts of about as many values as a packed file may have."""
    parts: list[list[Shard]] = [[]]
    values = 0
    for one in small:
        size = max(len(one.chosen[0]), len(one.rejected[0]))
        if parts[-1] and values + size > _PACK_VALUES:
            parts.append([])
            values = 0
        parts[-1].append(one)
        values += size
    return [part for part in parts if len(part) > 1]
