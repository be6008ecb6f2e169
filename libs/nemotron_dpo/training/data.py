"""Open pairs files for training and refuse, before a model exists, whatever could not be trained on.

Every rank maps the files. Each rank checks its own share of their rows, and all stop with one line where one rank refuses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.job_kernels import kernels_of_job
from nemotron_dpo.preferences.checks import check_ids, check_kinds, check_rewards, check_scores, check_vocabulary
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.vocabulary import vocab_size, warn_of_foreign
from nemotron_dpo.sources import ModelSource
from nemotron_dpo.streams import StreamInfo, open_reader
from nemotron_dpo.streams.held import HeldFile
from nemotron_dpo.wording import counted


@dataclass(frozen=True)
class DataRules:
    """What pairs must be, for a run that starts from `policy`.

    scored: they have reference log-probs. max_length: tokens of a sequence. own_reference: the policy itself scored them.
    own_tokenizer: its tokenizer is the one they should be of, and the user is warned where they are not. row_rewards: the
    objective needs the rewards that the data bring along. ordered_rewards: and the chosen response's must not be the lower.
    """

    policy: ModelSource
    scored: bool
    max_length: int
    own_reference: bool
    own_tokenizer: bool
    row_rewards: bool = False
    ordered_rewards: bool = False

    def open(self, path: Path, say: Callable[[str], None]) -> Pairs:
        """All pairs of the file. Raises UserError as `open_pairs`, and where policy and pairs do not go together."""
        needed = {"scored": self.scored, "row_rewards": self.row_rewards, "ordered_rewards": self.ordered_rewards}
        pairs, info = open_pairs(path, **needed, max_length=self.max_length, vocab_size=self._vocab_size, say=say)
        check_kinds([pairs], self._architecture().short_length, path)
        tokenizer = info.digests.get("tokenizer")
        if self.own_tokenizer:
            warn_of_foreign(self.policy, tokenizer, path, say)
        by, ours = info.settings.get("kernels"), kernels_of_job()
        if self.scored and by and by != ours:
            say(f"warning: {path}: was scored by other kernels ({by}) than train now ({ours}): they round otherwise")
        if self.own_reference:
            parallel.agreed(lambda: _check_reference(info, self.policy, path, say))
        return pairs

    def _vocab_size(self, tokenizer: str | None) -> int:
        return vocab_size(self._architecture().vocab_size, self.policy, tokenizer)

    def _architecture(self) -> Architecture:
        # It imports megatron-core, which takes seconds; a file that is damaged is refused before.
        from nemotron_dpo.checkpoint.policy import read_architecture

        return read_architecture(self.policy)


def open_pairs(
    path: Path,
    *,
    scored: bool,
    max_length: int,
    vocab_size: Callable[[str | None], int] | None = None,
    row_rewards: bool = False,
    ordered_rewards: bool = False,
    say: Callable[[str], None],
) -> tuple[Pairs, StreamInfo]:
    """All pairs of a complete stream; sequences must fit `max_length` tokens.

    `scored` asks for reference log-probs, `row_rewards` for the rewards that the data bring along, `ordered_rewards` for a gap
    of these that is not below 0.
    `vocab_size` gives the number of tokens by the digest of the tokenizer; `say` hears of a stream without checksums. Raises
    UserError, the same on all ranks, for an incomplete or damaged stream, unscored pairs, a response whose scores are missing
    or no log-probs or whose reward is missing, ids that are not those of their pair_id or none of the vocabulary, an over-long
    pair, or no pairs at all.
    """
    held = HeldFile(path, lambda: _has(path, scored, checksum))
    table, info, checksum = parallel.agreed(lambda: _read(path, scored, say))
    pairs, mine = replace(Pairs.of(table), check_unchanged=held.check), Pairs.of(_share(table))
    if not len(pairs):
        raise UserError("has no pairs", source=path, remedy=f"see what {info.producer} dropped")
    parallel.agreed(lambda: check_ids(mine, path))
    _check_lengths(pairs, path, max_length)
    if mine.ref_chosen is not None:
        parallel.agreed(lambda: check_scores(mine, path))
    parallel.agreed(lambda: check_rewards(mine, path, needed=row_rewards, ordered=ordered_rewards))
    if vocab_size is not None:
        parallel.agreed(lambda: check_vocabulary(mine, vocab_size(info.digests.get("tokenizer")), path))
    return pairs, info


@functools.cache
def weights_digest(policy: ModelSource) -> str:
    """The digest of the policy's weights on the first rank, which compares it for all; empty on the others.

    It takes reading all weights, unless they were read before.
    """
    from nemotron_dpo.checkpoint import weights_digest as content

    return content.weights_digest(policy) if parallel.rank() == 0 else ""


def named_as(digest: str, policy: ModelSource) -> str:
    """`digest` where it names the weights of `policy` as earlier versions did, else their digest; for the first rank alone."""
    from nemotron_dpo.checkpoint import weights_digest as content

    is_former = parallel.rank() == 0 and digest.startswith(content.OF_FILES) and content.is_digest_of(digest, policy)
    return digest if is_former else weights_digest(policy)


def _read(path: Path, scored: bool, say: Callable[[str], None]) -> tuple[pa.Table, StreamInfo, int | None]:
    """All rows, of which this rank checks its share, and their checksum; None in a stream without checksums."""
    accept = ("scored_pairs",) if scored else ("tokenized_pairs", "scored_pairs")
    with open_reader(path, *accept) as reader:
        if reader.warning:
            say(f"warning: {reader.warning}")
        return reader.read_all(parallel.rank(), parallel.job_size()), reader.info, reader.checksum


def _has(path: Path, scored: bool, checksum: int | None) -> bool:
    """Whether the file is whole, and its rows are those of `checksum`; False in a stream that has none."""
    try:
        return checksum is not None and _read(path, scored, lambda line: None)[2] == checksum
    except UserError:
        return False


def _share(table: pa.Table) -> pa.Table:
    """The rows that this rank checks. Shares follow the order of the file, so the first rank that refuses has the first row."""
    first, end = (len(table) * part // parallel.job_size() for part in (parallel.rank(), parallel.rank() + 1))
    return table.slice(first, end - first)


def _check_reference(info: StreamInfo, policy: ModelSource, path: Path, say: Callable[[str], None]) -> None:
    """Raise UserError, on the first rank, where the pairs were scored by other weights than those training starts from.

    Streams of earlier versions name weights by the digest of their files. Those that were scored from the same files are
    taken, and it is said; those from another copy or form of the same weights cannot be told from others.
    """
    from nemotron_dpo.checkpoint.weights_digest import OF_FILES

    if parallel.rank() != 0:
        return
    scored_by = info.digests.get("reference") or ""
    is_former = scored_by.startswith(OF_FILES) and not weights_digest(policy).startswith(OF_FILES)
    if named_as(scored_by, policy) != scored_by:
        other = ", or by an earlier version from other files of its weights" if is_former else ""
        remedy = "run ref-logprobs with this policy, or set dpo.allow_reference_mismatch=true"
        raise UserError(f"was scored by another policy than --policy{other}", source=path, remedy=remedy)
    if is_former:
        say(f"{path}: was scored by an earlier version, which knew weights by their files: these are the same files")


def _check_lengths(pairs: Pairs, path: Path, max_length: int) -> None:
    too_long = np.flatnonzero(pairs.sequence_lengths > max_length)
    if len(too_long):
        first = too_long[0]
        raise UserError(
            f"has {counted(len(too_long), 'pair')} of more than {max_length} tokens, the first ({pairs.place(int(first))}) "
            f"with {pairs.sequence_lengths[first]}",
            source=path,
            remedy="tokenize with --max-length or raise policy.max_total_sequence_length",
        )
