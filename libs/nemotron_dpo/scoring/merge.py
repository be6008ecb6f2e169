"""Put the outputs of several shards together, and prove that every pair of the stream they were made from is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.checks import check_ids, check_scores
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring import windows
from nemotron_dpo.scoring.reused import EarlierScores
from nemotron_dpo.scoring.scores import WindowScores, scored_batch
from nemotron_dpo.scoring.shard import rows_of
from nemotron_dpo.streams import Reader, StreamInfo, open_reader, open_writer
from nemotron_dpo.wording import counted

OWN = ("reference_policy", "reference_precision", "kernels")  # settings that scoring adds to those of its input
_WINDOW_TOKENS = windows.window_tokens(4096, 1)


def shard_of(text: str) -> tuple[int, int]:
    """I/N as two numbers, 1 <= I <= N. Raises UserError (usage)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        remedy = "give I/N, such as 1/8 for the first of eight"
        raise UserError("is no part of a whole", source=f"--shard {text}", remedy=remedy, usage=True)
    return int(number), int(count)


def rows_of_shard(batches: Iterator[pa.RecordBatch] | Reader, number: int, count: int) -> Iterator[pa.RecordBatch]:
    """Of the rows of a stream every `count`-th, from the `number`-th on: shards have alike pairs of each part of the data."""
    start = 0
    for batch in batches:
        first = (number - 1 - start) % count
        start += batch.num_rows
        if first < batch.num_rows:
            yield batch.take(pa.array(np.arange(first, batch.num_rows, count)))


def rows_in_shard(num_rows: int, number: int, count: int) -> int:
    """How many of `num_rows` rows a shard has."""
    return (num_rows - number) // count + 1


def merge_files(pairs: str, parts: Sequence[str], output: str, say: Callable[[str], object]) -> int:
    """Write the pairs of the stream `pairs` in its order to `output`, with the scores that `parts` have: their number.

    Raises UserError where parts are of different policies or precisions, where a score is none, and where a pair has no score
    in any part. Said are parts that were scored by different kernels, and pairs that the stream has not.
    """
    with open_reader(pairs, "tokenized_pairs", "scored_pairs") as reader:
        scores, infos = {}, []
        for path in parts:
            scores[path], info = _read(path)
            infos.append(info)
        with open_writer(output, _info(reader, parts, infos, say)) as writer:
            for batch in _rows(reader, scores, say):
                writer.write(batch)
    return writer.num_rows


def _read(path: str) -> tuple[EarlierScores, StreamInfo]:
    with open_reader(path, "scored_pairs") as part:
        pairs = Pairs.of(part.read_all())
        check_ids(pairs, path)
        check_scores(pairs, path)
        return EarlierScores.of(pairs), part.info


def _rows(reader: Reader, parts: Mapping[str, EarlierScores], say: Callable[[str], object]) -> Iterator[pa.RecordBatch]:
    num_missing, first, wanted = 0, "", [np.zeros((0, 2), "<u8")]
    for window in windows.windows(reader, _WINDOW_TOKENS):
        pairs = Pairs.of(window)
        check_ids(pairs, reader.source)
        scores, known = WindowScores.of(pairs), np.zeros(len(pairs), bool)
        for part in parts.values():
            part.fill(pairs, scores, known)
        wanted.append(pairs.pair_ids.to_numpy())
        missing = np.flatnonzero(~known)
        if len(missing):
            num_missing, first = num_missing + len(missing), first or pairs.place(int(missing[0]))
        if not num_missing:
            yield scored_batch(window, scores)
    if num_missing:
        remedy = "score the shard that is missing, or score them with --reuse"
        raise UserError(
            f"has {counted(num_missing, 'pair')} that no part has, the first {first}", source=reader.source, remedy=remedy
        )
    _say_foreign(np.concatenate(wanted), reader.source, parts, say)


def _say_foreign(wanted: np.ndarray, source: str, parts: Mapping[str, EarlierScores], say: Callable[[str], object]) -> None:
    """Say of each part how many pairs it has that are none of the `wanted` ids, uint64 [N, 2]."""
    order = np.argsort(wanted[:, 0], kind="stable")
    for path, part in parts.items():
        if num_foreign := int((rows_of(wanted, part.ids, order) < 0).sum()):
            say(f"warning: {path}: has {counted(num_foreign, 'pair')} that {source} has not: left out")


def _info(reader: Reader, parts: Sequence[str], infos: Sequence[StreamInfo], say: Callable[[str], object]) -> StreamInfo:
    first = infos[0]
    for path, info in zip(parts, infos, strict=True):
        if info.digests.get("reference") != first.digests.get("reference"):
            raise UserError(f"was scored by another policy than {parts[0]}", source=path)
        if info.settings.get("reference_precision") != first.settings.get("reference_precision"):
            raise UserError(f"was scored at another precision than {parts[0]}", source=path)
    kernels = ", ".join(dict.fromkeys(str(info.settings.get("kernels")) for info in infos))
    if kernels != first.settings.get("kernels"):
        say(f"warning: the parts were scored by different kernels ({kernels}): they round otherwise")
    own = {name: first.settings.get(name) for name in OWN} | {"kernels": kernels}
    digests = {**reader.info.digests, "reference": first.digests.get("reference", "")}
    return StreamInfo("scored_pairs", first.producer, first.producer_version, digests, {**reader.info.settings, **own})
