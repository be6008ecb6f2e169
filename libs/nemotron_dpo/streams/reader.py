"""Read a stream of record batches, zero-copy from files. A cut or damaged stream is an error that names its producer."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.published import published_file
from nemotron_dpo.streams.checksum import CHECKSUM_KEY, decoded, encoded, extended
from nemotron_dpo.streams.heading import checked_info, checksum_seed, foreign
from nemotron_dpo.streams.schema import (
    PAIRS,
    SCHEMAS,
    TRAILER_KEY,
    VERSIONS,
    in_columns_of,
)
from nemotron_dpo.streams.writer import refuse_pipe_in_job
from nemotron_dpo.wording import counted

# what pyarrow raises over bytes that are not, or no longer, a valid stream
_DAMAGE = (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError)


class Reader:
    """Iterates over the record batches of one stream. Raises UserError where a checksum, the trailer or the end is wrong.

    `schema` and the batches have the columns of this version; those that the stream's version lacks hold nulls.
    `warning` is a line for the user where the stream has no checksums: earlier versions wrote none. `checksum` is that of all
    rows, once they were read.
    """

    def __init__(self, file: Any, source: str, accept: tuple[str, ...], mapped: mmap.mmap | None = None) -> None:
        self.source = source
        self._file = file
        self._mapped = mapped
        try:
            self._stream = pa.ipc.open_stream(file)
            stored = self._stream.schema
        except _DAMAGE:
            raise foreign(source) from None
        self.checksum = self._seed = checksum_seed(stored, source)
        self.info = checked_info(stored, source, accept)
        self.schema = SCHEMAS[self.info.schema].with_metadata(stored.metadata)
        remedy = f"write it again with this version of {self.info.producer}, or a flipped bit goes unseen"
        self.warning = None if self._seed is not None else f"{source}: has no checksums: {remedy}"

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield from self._rows(lambda number: True)

    def read_all(self, part: int = 0, parts: int = 1) -> pa.Table:
        """Every row of a file, as one table. Of several processes that read it, each checks the rows of its own part.

        Of the rows of other parts this process sees to the structure alone. So the file is whole where no part was refused,
        and no process may look into the table before it knows that.
        """
        num_batches = self._count()[0] if parts > 1 else 0
        mine = range(part * num_batches // parts, (part + 1) * num_batches // parts)
        batches = self._rows(lambda number: parts == 1 or number in mine)
        return pa.Table.from_batches(list(batches), schema=self.schema)

    def read_so_far(self) -> tuple[pa.Table, UserError | None]:
        """The rows up to where the stream is cut, damaged or still being written, and what is wrong there, if anything."""
        batches, error = self.whole_batches()
        return pa.Table.from_batches(batches, schema=self.schema), error

    def forget(self) -> None:
        """Give back the memory of what was read of a mapped file: whoever has read it once needs no more of it.

        What is looked at again comes from the file again.
        """
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def whole_batches(self) -> tuple[list[pa.RecordBatch], UserError | None]:
        """The batches up to where the stream is cut or damaged, each checked, and the error there; None where it is whole."""
        batches: list[pa.RecordBatch] = []
        try:
            batches += self
        except UserError as error:
            return batches, error
        return batches, None

    def count_rows(self) -> int | None:
        """The rows of a file, up to where it is cut; None for a pipe, which can be read only once."""
        return self._count()[1] if self._file.seekable() else None

    def _rows(self, is_mine: Callable[[int], bool]) -> Iterator[pa.RecordBatch]:
        """The batches that have rows; those whose number `is_mine` are checked whole."""
        num_rows, checksum, promised = 0, self._seed, None
        for number, (batch, metadata) in enumerate(self._batches(is_mine)):
            if promised is not None:
                raise self._damaged("goes on behind its trailer")
            checksum = self._checked(batch, metadata, checksum, num_rows, is_mine=is_mine(number))
            if batch.num_rows == 0 and TRAILER_KEY in metadata:
                promised = metadata[TRAILER_KEY].decode(errors="replace")
                continue
            num_rows += batch.num_rows
            if batch.num_rows:
                yield batch if self.info.version == VERSIONS[self.info.schema] else in_columns_of(self.schema, batch)
        self.checksum = checksum
        if promised is None:
            raise self._incomplete(num_rows, "ends without its trailer")
        if promised != str(num_rows):
            raise self._incomplete(num_rows, f"has {counted(num_rows, 'row')} where its trailer says {promised!a}")
        if self._file.read(1):
            raise self._damaged("is followed by something else, as where two files were joined")

    def _count(self) -> tuple[int, int]:
        """How many batches and rows the file has, up to its end or to where it is cut; the trailer is one of the batches."""
        place, number, num_rows = self._file.tell(), 0, 0
        self._file.seek(0)
        try:
            for batch in pa.ipc.open_stream(self._file):
                number, num_rows = number + 1, num_rows + batch.num_rows
        except _DAMAGE:
            pass  # who reads the rows says what is wrong
        finally:
            self._file.seek(place)
            self.forget()
        return number, num_rows

    def _batches(self, is_mine: Callable[[int], bool]) -> Iterator[tuple[pa.RecordBatch, Any]]:
        """Every batch with its metadata. The buffers of each have been validated: they are as long as its rows need."""
        num_rows = 0
        for number in itertools.count():
            if self._mapped is not None and self._mapped.size() < len(self._mapped):  # what is gone must not be looked at
                raise self._incomplete(num_rows, "was cut while it was read,")
            try:
                batch, metadata = self._stream.read_next_batch_with_custom_metadata()
                batch.validate()
                if is_mine(number):
                    batch.validate(full=True)
            except StopIteration:
                return
            except _DAMAGE as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise self._incomplete(num_rows, f"is cut or damaged ({reason})") from None
            num_rows += batch.num_rows
            yield batch, metadata or {}

    def _checked(
        self, batch: pa.RecordBatch, metadata: Any, checksum: int | None, num_rows: int, *, is_mine: bool
    ) -> int | None:
        """The checksum that includes `batch`, which must carry the same. None in a stream that announced no checksums.

        Where it is not `is_mine`, another process finds out whether it is.
        """
        where = f"in rows {num_rows + 1} to {num_rows + batch.num_rows}" if batch.num_rows else "in its trailer"
        if any(_has_nulls(column) for field, column in zip(batch.schema, batch.columns, strict=True) if not field.nullable):
            raise self._damaged(f"has nulls {where}")
        carried = metadata.get(CHECKSUM_KEY)
        if checksum is None:
            if carried is not None:
                raise self._damaged(f"has a checksum {where}, though it announces none")
            return None
        if carried is None:
            raise self._damaged(f"has no checksum {where}, though it announces them")
        if not is_mine:
            return decoded(carried)
        checksum = extended(checksum, batch)
        if encoded(checksum) != carried:
            raise self._damaged(f"is damaged {where}: its checksum differs")
        return checksum

    def _damaged(self, what: str) -> UserError:
        return self._error(what, f"copy it again, or run {self.info.producer} again")

    def _incomplete(self, num_rows: int, what: str) -> UserError:
        return self._error(
            f"{what} after {counted(num_rows, 'row')}", f"{self.info.producer} failed or was killed; run it again"
        )

    def _error(self, what: str, remedy: str) -> UserError:
        return UserError(f"the stream from {self.info.producer} {what}", source=self.source, remedy=remedy)


@contextlib.contextmanager
def open_reader(source: str | Path, *accept: str) -> Iterator[Reader]:
    """A Reader on the file `source`, or on stdin for "-". The stream must have one of the schemas named in `accept`.

    Raises UserError for a missing file, a foreign or newer stream, or "-" in a job of several processes.
    """
    if str(source) == "-":
        refuse_pipe_in_job("input -")
        yield Reader(sys.stdin.buffer, "<stdin>", accept)
        return
    with _existing(source).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    yield Reader(pa.BufferReader(pa.py_buffer(mapped)), str(source), accept, mapped)  # unmapped with the last array of it


def spool(source: str, target: Path) -> Path:
    """The path to read: `source`, or, where that is "-", the file `target` with a copy of stdin.

    Raises UserError, and leaves no file, where stdin did not hold a complete stream.
    """
    if source != "-":
        return _existing(source)
    refuse_pipe_in_job("input -")
    with published_file(target) as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.flush()
        with open(file.name, "rb") as copy:
            for _ in Reader(copy, "<stdin>", PAIRS):
                pass
    return target


def _existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.exists():
        raise UserError("no such file", source=source)
    if path.is_dir():
        raise UserError("is a folder where an Arrow stream is due", source=source)
    if path.stat().st_size == 0:
        raise UserError("is empty", source=source, remedy="did the stage before it fail?")
    return path


def _has_nulls(array: pa.Array) -> bool:
    return array.null_count > 0 or (isinstance(array, pa.ListArray) and _has_nulls(array.values))
