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

# pair_id is the digest of the three id lists; *_ids hold token ids, the prompt stored once. source names the data set or file
# of the pair; it is plain text, since a name takes a hundredth of what the tokens of its pair take, and checksums and readers
# then need to know nothing of dictionaries that grow on the way. source_file names the file of a data set of several, in which
# source_line counts then. Rewards are what the data say of the two responses.
TOKENIZED_PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.binary(16), nullable=False),
        pa.field("source_line", pa.int64(), nullable=False),
        pa.field("prompt_ids", _TOKENS, nullable=False),
        pa.field("chosen_ids", _TOKENS, nullable=False),
        pa.field("rejected_ids", _TOKENS, nullable=False),
        pa.field("chosen_truncated", pa.bool_(), nullable=False),
        pa.field("rejected_truncated", pa.bool_(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("chosen_reward", pa.float32()),
        pa.field("rejected_reward", pa.float32()),
        pa.field("source_file", pa.string()),
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

# The same of a policy that is evaluated: no training takes them for a reference's.
POLICY_SCORES = pa.schema(
    [
        *TOKENIZED_PAIRS,
        pa.field("chosen_logps", _LOGPS, nullable=False),
        pa.field("rejected_logps", _LOGPS, nullable=False),
    ]
)

# A row for each pair that was trained on or validated, in the order of the run. step is as in metrics.jsonl; split is "train"
# or "validation-NAME". Log-probs are sums over a response's tokens under the policy; log-ratios are these less the reference's,
# null where none is known. margin is how much more the objective rewards the chosen response, null where it compares none.
# loss is the pair's preference loss, null where the objective has none. Names repeat from row to row: they are dictionaries.
_NAME = pa.dictionary(pa.int32(), pa.string())
PAIRS_LOG = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("split", _NAME, nullable=False),
        pa.field("pair_id", pa.binary(16), nullable=False),
        pa.field("source", _NAME),
        pa.field("source_file", _NAME),
        pa.field("source_line", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("chosen_tokens", pa.int32(), nullable=False),
        pa.field("rejected_tokens", pa.int32(), nullable=False),
        pa.field("chosen_logp", pa.float32(), nullable=False),
        pa.field("rejected_logp", pa.float32(), nullable=False),
        pa.field("chosen_log_ratio", pa.float32()),
        pa.field("rejected_log_ratio", pa.float32()),
        pa.field("margin", pa.float32()),
        pa.field("loss", pa.float32()),
    ]
)

PAIRS = ("tokenized_pairs", "scored_pairs", "policy_scores")
SCHEMAS = {
    "tokenized_pairs": TOKENIZED_PAIRS,
    "scored_pairs": SCORED_PAIRS,
    "policy_scores": POLICY_SCORES,
    "pairs_log": PAIRS_LOG,
}
VERSION = 3  # of PAIRS
VERSIONS = {**dict.fromkeys(PAIRS, VERSION), "pairs_log": 2}
# Columns by the schema and the version that added them, all nullable.
_ADDED = {
    **{name: {2: ("source", "chosen_reward", "rejected_reward"), 3: ("source_file",)} for name in PAIRS},
    "pairs_log": {2: ("source_file",)},
}


@dataclass(frozen=True)
class StreamInfo:
    """Who wrote a stream, and from what. `digests` identify the content of everything upstream, `settings` shaped the rows."""

    schema: str
    producer: str
    producer_version: str
    digests: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

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
        return info if info and info.is_sound() else None

    def is_sound(self) -> bool:
        """Whether what is looked at is of the kind that it should be: a stranger may have written it."""
        kinds = ((self.schema, str), (self.digests, dict), (self.settings, dict), (self.version, int))
        return all(isinstance(value, kind) for value, kind in kinds)


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


def columns_of(name: str, version: int) -> pa.Schema | None:
    """The columns that the schema `name` had in `version`; None where there is no such version."""
    if not 1 <= version <= VERSIONS[name]:
        return None
    later = {column for added, columns in _ADDED.get(name, {}).items() if added > version for column in columns}
    return pa.schema([column for column in SCHEMAS[name] if column.name not in later])


def in_columns_of(schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows of an earlier version, in the columns of `schema`: those that the earlier version lacked hold nulls."""
    have = set(batch.schema.names)
    columns = [batch.column(f.name) if f.name in have else pa.nulls(batch.num_rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
