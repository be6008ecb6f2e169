"""What a stream says before its first row: which schema and version it has, and whether checksums follow."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.streams.schema import VERSIONS, StreamInfo, checksum_of, columns_of


def foreign(source: str) -> UserError:
    """The error where `source` is no Arrow stream."""
    head = b""
    if Path(source).is_file():
        with open(source, "rb") as file:
            head = file.read(64).lstrip()
    if head.startswith((b"{", b"[")):
        remedy = "make a stream of it with preference-tokenize"
        return UserError("is JSON where an Arrow stream is due", source=source, remedy=remedy)
    return UserError("is not an Arrow stream or is empty", source=source, remedy="did the stage before it fail?")


def checksum_seed(schema: pa.Schema, source: str) -> int | None:
    """The checksum that those of the batches go on from, None where the stream has none. Raises UserError for a damaged one."""
    try:
        return checksum_of(schema)
    except ValueError as error:
        raise UserError(f"is damaged ({error})", source=source, remedy="copy it again, or make it again") from None


def checked_info(schema: pa.Schema, source: str, accept: tuple[str, ...]) -> StreamInfo:
    """What describes the stream. Raises UserError where it is of none of the schemas `accept`, or of another version."""
    info = StreamInfo.detach(schema)
    if info is None:
        raise UserError(f"is an Arrow stream but not one of {' or '.join(accept)}", source=source)
    if info.schema not in accept:
        hint = "run ref-logprobs on it first" if info.schema == "tokenized_pairs" else None
        raise UserError(f"holds {info.schema} where {' or '.join(accept)} is due", source=source, remedy=hint)
    columns = columns_of(info.schema, info.version)
    if columns is None:
        what = f"holds {info.schema}/{info.version}; this program reads {info.schema}/1 to /{VERSIONS[info.schema]}"
        raise UserError(what, source=source, remedy="read it with the version that wrote it, or write it again with this one")
    if not schema.equals(columns):
        what = f"says that it holds {info.schema}/{info.version}, and has other columns"
        raise UserError(what, source=source, remedy=f"write it again with this version of {info.producer}")
    return info
