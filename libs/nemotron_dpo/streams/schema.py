"""The row contracts between stages and the provenance that travels in their schema metadata."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from nemotron_dpo.streams.checksum import CHECKSUM_KEY, encoded

METADATA_KEY = b"nemotron_dpo"
TRAILER_KEY = b"rows"

_TOKENS = pa.list_(pa.int32())
_LOGPS = pa.list_(pa.float32())

# pair_id is the digest of the three id lists; *_ids hold token ids, the prompt stored once.
TOKENIZED_PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.binary(16), nullable=False),
        pa.field("source_line", pa.int64(), nullable=False),
        pa.field("prompt_ids", _TOKENS, nullable=False),
        pa.field("chosen_ids", _TOKENS, nullable=False),
        pa.field("rejected_ids", _TOKENS, nullable=False),
        pa.field("chosen_truncated", pa.bool_(), nullable=False),
        pa.field("rejected_truncated", pa.bool_(), nullable=False),
    ]
)

# ref_*_logps hold one natural-log probability per response token, under the reference policy.
SCORED_PAIRS = pa.schema(
    [
        *TOKENIZED_PAIRS,
        pa.field("ref_chosen_logps", _LOGPS, nullable=False),
        pa.field("ref_rejected_logps", _LOGPS, nullable=False),
    ]
)

SCHEMAS = {"tokenized_pairs": (1, TOKENIZED_PAIRS), "scored_pairs": (1, SCORED_PAIRS)}


@dataclass(frozen=True)
class StreamInfo:
    """Who wrote a stream, and from what. `digests` identify the content of everything upstream, `settings` shaped the rows."""

    schema: str
    producer: str
    producer_version: str
    digests: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    def attach(self, schema: pa.Schema) -> pa.Schema:
        """`schema` with this information and its checksum in the metadata. That checksum announces those of the rows."""
        raw = orjson.dumps(self, option=orjson.OPT_SORT_KEYS)
        return schema.with_metadata({METADATA_KEY: raw, CHECKSUM_KEY: encoded(zlib.crc32(raw))})

    @classmethod
    def detach(cls, schema: pa.Schema) -> StreamInfo | None:
        """The information that `schema` carries; None where the stream is not one of ours."""
        raw = (schema.metadata or {}).get(METADATA_KEY)
        try:
            info = None if raw is None else cls(**orjson.loads(raw))
        except (orjson.JSONDecodeError, TypeError):
            return None
        return info if info and isinstance(info.digests, dict) and isinstance(info.settings, dict) else None


def checksum_of(schema: pa.Schema) -> int | None:
    """The checksum of the description in `schema`, from which that of the rows starts; None where `schema` announces none.

    Raises ValueError where the description does not have the checksum that `schema` says it has.
    """
    metadata = schema.metadata or {}
    if CHECKSUM_KEY not in metadata:
        return None
    checksum = zlib.crc32(metadata.get(METADATA_KEY, b""))
    if encoded(checksum) != metadata[CHECKSUM_KEY]:
        raise ValueError("the checksum of the description differs")
    return checksum
