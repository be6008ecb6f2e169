"""Make one training set of several streams of pairs, each with a weight: how often an epoch sees each of its pairs.

python -m nemotron_dpo.preferences.mixture A.arrow B.arrow --weights 2 0.5 -o mixed.arrow [--seed N]

A weight is any number above 0: of 2.25 every pair is written twice, and a quarter of the pairs once more. Which ones, the seed
and the name of the data decide; every epoch has the same ones, and a greater part of a stream includes the smaller one. The
streams follow one another, and training shuffles them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa

from nemotron_dpo import __version__
from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import as_user_error
from nemotron_dpo.paths import refuse_overwriting
from nemotron_dpo.preferences.weighted_stream import KINDS, WeightedStream, look_through
from nemotron_dpo.streams import Reader, StreamInfo, open_reader, open_writer
from nemotron_dpo.wording import counted

_BATCH_BYTES = 1 << 20
_MOST_NAMES = 12
# digest -> what the streams must have in common, and who makes it so
_COMMON = {
    "tokenizer": "was tokenized with another tokenizer than",
    "chat_template": "was rendered by another chat template than",
    "reference": "was scored by another policy than",
}


def mix(paths: Sequence[str], weights: Sequence[str], output: str, seed: int) -> list[WeightedStream]:
    """Write the mixture of the streams `paths` to `output`, and return what it is made of.

    Raises UserError for a weight that is no number above 0, leaves no pair of its stream or fills the disk, a stream that is
    damaged or has no pairs, and streams of different kinds, tokenizers, chat templates or reference policies.
    """
    refuse_overwriting({"-o": output}, paths)
    seen: Counter[str] = Counter()
    parts = []
    for path, weight in zip(paths, weights, strict=True):
        parts.append(look_through(path, weight, seed, seen))
        _check_alike(parts[0], parts[-1])
    _check_room(parts, output)
    with open_writer(output, _info(parts, seed)) as writer:
        for part in parts:
            for batch in _rows(part):
                writer.write(batch)
    return parts


def _rows(part: WeightedStream) -> Iterator[pa.RecordBatch]:
    for _ in range(part.copies):
        with open_reader(part.path, *KINDS) as reader:
            yield from reader
    if part.drawn is not None:
        with open_reader(part.path, *KINDS) as reader:
            yield from _together(_drawn_rows(reader, part.drawn))


def _drawn_rows(reader: Reader, drawn: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in reader:
        yield batch.filter(pa.array(drawn[start : start + batch.num_rows]))
        start += batch.num_rows


def _together(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of `batches` in batches of about _BATCH_BYTES: a hundredth of each batch would be batches of a few rows."""
    waiting, num_bytes = list[pa.RecordBatch](), 0
    for batch in batches:
        waiting.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= _BATCH_BYTES:
            yield pa.concat_batches(waiting)
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


def _check_alike(first: WeightedStream, other: WeightedStream) -> None:
    if first.info.schema != other.info.schema:
        kinds = f"holds {other.info.schema}, and {first.path} {first.info.schema}"
        raise UserError(kinds, source=other.path, remedy="score all of them with ref-logprobs, or none")
    for name, what in _COMMON.items():
        if first.info.digests.get(name) != other.info.digests.get(name):
            raise UserError(f"{what} {first.path}", source=other.path, remedy="make all of them with the same one")
    precisions = [part.info.settings.get("reference_precision") for part in (first, other)]
    if precisions[0] != precisions[1]:
        what = f"was scored in {precisions[1]}, and {first.path} in {precisions[0]}"
        raise UserError(what, source=other.path, remedy="score all of them at one precision")


def _check_room(parts: Sequence[WeightedStream], output: str) -> None:
    """A weight with too many zeros is known before the disk is full, which would take other programs' work with it."""
    folder = Path(output).absolute().parent
    if output == "-" or not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    sizes = [Path(part.path).stat().st_size * part.num_written / part.num_pairs for part in parts]
    size, part = max(zip(sizes, parts, strict=True), key=lambda pair: pair[0])
    if part.copies > 1 and sum(sizes) > free:
        made = f"weight {part.weight} makes {part.num_written} pairs of {part.num_pairs}, about {size / 1e9:.0f} GB"
        raise UserError(f"{made}, and {free / 1e9:.0f} GB are free", source=part.path, remedy="give a smaller weight")


def _info(parts: Sequence[WeightedStream], seed: int) -> StreamInfo:
    """Where the mixture comes from: what all parts have in common as it is, and each part with what is its own."""
    infos = [part.info for part in parts]
    common = {
        name: value for name, value in infos[0].settings.items() if all(info.settings.get(name) == value for info in infos)
    }
    if any("kernels" in info.settings for info in infos):
        common["kernels"] = ", ".join(dict.fromkeys(str(info.settings.get("kernels")) for info in infos))
    whole = hashlib.sha256(b"\n".join(f"{p.info.digests.get('input')} {p.weight}".encode() for p in parts))
    digests = {name: infos[0].digests[name] for name in _COMMON if name in infos[0].digests}
    described = [
        {
            "weight": part.weight,
            "pairs": part.num_pairs,
            "written": dict(part.sources),
            "digests": {name: value for name, value in part.info.digests.items() if digests.get(name) != value},
            "settings": {name: value for name, value in part.info.settings.items() if common.get(name) != value},
        }
        for part in parts
    ]
    settings = {**common, "mixture": described, "mixture_seed": seed}
    digests["input"] = f"sha256:{whole.hexdigest()}"
    return StreamInfo(infos[0].schema, "mixture", __version__, digests, settings)


def counts_by_source(path: Path) -> dict[str, int]:
    """The number of pairs of each source in the mixture at `path`, as its description has them; empty where there is none."""
    if not path.is_file():
        return {}
    with open_reader(path, *KINDS) as reader:
        described = reader.info.settings.get("mixture", [])
    total: Counter[str] = Counter()
    for part in described:
        total.update(part["written"])
    return dict(total)


def closing_line(parts: Sequence[WeightedStream]) -> str:
    """One line of exact counts."""
    total = sum(part.num_written for part in parts)
    said = [
        f"{part.num_written} ({part.num_written / total:.1%}) of {_named(part.sources)}, {part.weight} x {part.num_pairs}"
        for part in parts
    ]
    return f"{counted(total, 'pair')} written: {'; '.join(said)}"


def _named(sources: Mapping[str, int]) -> str:
    """The sources of one stream; where it has several, with their counts."""
    names = [name or "(unnamed)" for name in sources]
    if len(names) == 1:
        return names[0]
    rest = len(names) - _MOST_NAMES
    said = [f"{name} {count}" for name, count in zip(names[:_MOST_NAMES], sources.values(), strict=False)]
    return f"{len(names)} ({', '.join(said)}{f' and {rest} more' if rest > 0 else ''})"


def main() -> NoReturn:
    """Entry point."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # so that no half-written file stays behind
    parser = argparse.ArgumentParser("mixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streams", nargs="+", metavar="STREAM", help="Output of preference-tokenize or ref-logprobs.")
    parser.add_argument("--weights", nargs="+", metavar="W", help="One for each stream [default: 1].")
    parser.add_argument("--seed", type=_seed, default=42, help="Of the pairs that are drawn [default: 42].")
    parser.add_argument("-o", dest="output", required=True, help="Stream to write.")
    arguments = parser.parse_args()
    weights = arguments.weights or ["1"] * len(arguments.streams)
    if len(weights) != len(arguments.streams):
        parser.error(f"{len(arguments.streams)} streams and {len(weights)} weights")
    sys.exit(_status(arguments.streams, weights, arguments.output, arguments.seed))


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 2**63 - 1")
    return int(text)


def _status(paths: Sequence[str], weights: Sequence[str], output: str, seed: int) -> int:
    try:
        said, status = closing_line(mix(paths, weights, output, seed)), 0
    except UserError as error:
        said, status = f"error: {error}", 2 if error.usage else 1
    except OSError as error:
        said, status = f"error: {as_user_error(error)}", 1
    except KeyboardInterrupt:
        said, status = "error: interrupted", 130
    print(f"mixture: {said}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
