"""Arrow streams between stages: schemas with versions, provenance, and a trailer without which a stream is incomplete."""

from nemotron_dpo.published import published_file, sync_folder, sync_tree
from nemotron_dpo.streams.reader import Reader, open_reader, spool
from nemotron_dpo.streams.schema import PAIRS_LOG, POLICY_SCORES, SCORED_PAIRS, TOKENIZED_PAIRS, VERSIONS, StreamInfo
from nemotron_dpo.streams.writer import Writer, open_writer

__all__ = [
    "PAIRS_LOG",
    "POLICY_SCORES",
    "SCORED_PAIRS",
    "TOKENIZED_PAIRS",
    "VERSIONS",
    "Reader",
    "StreamInfo",
    "Writer",
    "open_reader",
    "open_writer",
    "published_file",
    "spool",
    "sync_folder",
    "sync_tree",
]
