"""The stream that scores are written to: what describes it, and which process of a job writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from nemotron_dpo import __version__
from nemotron_dpo.policy import parallel
from nemotron_dpo.scoring.scores import in_schema
from nemotron_dpo.scoring.store import Context
from nemotron_dpo.streams import StreamInfo, open_writer


def stream_info(pairs: StreamInfo, policy: str, context: Context, shard: str | None, *, of_policy: bool) -> StreamInfo:
    """What describes the scores of the pairs that `pairs` describes.

    policy: the name of who gave them, a policy to evaluate where they are `of_policy`, else the reference. shard: as the
    command line says it. Settings of `pairs` go on with the stream.
    """
    schema, role = ("policy_scores", "scored") if of_policy else ("scored_pairs", "reference")
    own = {f"{role}_policy": policy, f"{role}_precision": context.precision, "kernels": context.kernels}
    own |= {"shard": shard} if shard else {}
    digests = {**pairs.digests, role: context.weights}
    return StreamInfo(schema, "ref-logprobs", __version__, digests, {**pairs.settings, **own})


@contextlib.contextmanager
def open_output(target: str, info: StreamInfo) -> Iterator[Callable[[pa.RecordBatch], object]]:
    """What takes rows of `scored_pairs`: on the first process of a job it writes them, on the others it drops them."""
    if parallel.rank() != 0:
        yield lambda batch: None
        return
    with open_writer(target, info) as writer:
        yield lambda batch: writer.write(in_schema(info.schema, batch))
