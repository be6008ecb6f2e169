#!/usr/bin/env python3
"""Score tokenized pairs under the reference policy: one log-prob a response token.

\b
    ref-logprobs pairs.arrow -o scored.arrow --policy sft-checkpoint
    preference-tokenize prefs.jsonl -o - --tokenizer P | ref-logprobs - -o scored.arrow --policy P
    ref-logprobs more.arrow -o more-scored.arrow --policy P --reuse scored.arrow
    dpo-torchrun --nproc-per-node 8 --no-python ref-logprobs pairs.arrow -o scored.arrow --policy P --tensor-parallel 4

INPUT and -o take a path or "-". The reference is the policy that training starts from; score with the precision you
train with. Scores do not depend on the objective, beta or the learning rate, so one pass serves any number of runs.
--reuse takes pairs that the same policy scored at the same precision from earlier outputs and computes only the new
ones. Under torchrun the pairs are divided over the processes. A policy too large for one of them is divided first:
--tensor-parallel N divides each layer, --pipeline-parallel N the layers, --context-parallel N the tokens of a row,
--expert-parallel N the experts of a mixture.

NEMOTRON_DPO_KERNELS=torch|c|gpu in the environment chooses what computes; without it that is the fastest the machine has.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nemotron_dpo import __version__, cli, launcher

if TYPE_CHECKING:
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.streams import Reader, StreamInfo, Writer

PROGRAM = "ref-logprobs"
_PROCESSES: dict[str, Any] = {"type": click.IntRange(1), "default": 1, "metavar": "N"}


@click.command(help=__doc__)
@click.argument("source", metavar="INPUT", type=cli.PATH)
@click.option("-o", "--output", required=True, type=cli.PATH, help="Arrow stream to write.")
@click.option(
    "--policy", required=True, type=cli.PATH, metavar="ID_OR_DIR", help="Reference: HF id, HF folder or Megatron checkpoint."
)
@click.option(
    "--hf-model", type=cli.PATH, metavar="ID_OR_DIR", help="HF model that --policy, a checkpoint of Megatron-LM, holds."
)
@click.option(
    "--tokenizer",
    type=cli.PATH,
    metavar="ID_OR_DIR",
    help="Tokenizer INPUT must have been made with.",
)
@click.option("--precision", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@click.option("--micro-batch-tokens", type=click.IntRange(1), help="Tokens in a forward pass  [default: 4096; on a GPU 16384].")
@click.option(
    "--reuse", multiple=True, type=cli.PATH, metavar="OLD_OUT", help="Earlier output to take scores from; may be repeated."
)
@click.option("--tensor-parallel", "tensor", **_PROCESSES, help="Processes that divide each layer.")
@click.option("--pipeline-parallel", "pipeline", **_PROCESSES, help="Processes that divide the layers.")
@click.option("--context-parallel", "context", **_PROCESSES, help="Processes that divide a row's tokens.")
@click.option("--expert-parallel", "expert", **_PROCESSES, help="Processes that divide a mixture's experts.")
@click.option("--first-stage-layers", type=click.IntRange(1), metavar="N", help="Layers of the pipeline's first stage.")
@click.option("--last-stage-layers", type=click.IntRange(1), metavar="N", help="Layers of the pipeline's last stage.")
def command(
    source: str,
    output: str,
    policy: str,
    hf_model: str | None,
    tokenizer: str | None,
    precision: str,
    micro_batch_tokens: int | None,
    reuse: tuple[str, ...],
    **division: int | None,
) -> None:
    from nemotron_dpo.kernels.chosen import choose
    from nemotron_dpo.paths import refuse_overwriting
    from nemotron_dpo.policy.device import redirect
    from nemotron_dpo.sources import resolve, with_hf_model
    from nemotron_dpo.streams import open_reader

    started = time.perf_counter()
    launcher.check_job()
    refuse_overwriting({"-o": output}, [source, *reuse, policy, hf_model, tokenizer])
    cli.warn_of_untried(PROGRAM)
    redirect()
    with open_reader(source, "tokenized_pairs", "scored_pairs") as reader:
        _warn(reader)
        found = with_hf_model(resolve(policy), hf_model) if hf_model else resolve(policy)
        _check_tokenizer(reader, tokenizer, found)
        choose(precision, functools.partial(cli.say, PROGRAM))
        with _joined_job(division):
            info = _stream_info(reader, found, precision)
            known = _known(reuse, info)
            with _writer(output, info) as writer:
                num_pairs, num_new = _score(reader, found, precision, micro_batch_tokens, known, writer)
    seconds = time.perf_counter() - started
    reused = f", {num_pairs - num_new} of them reused" if reuse else ""
    cli.say(PROGRAM, f"{num_pairs} pairs scored{reused}, {seconds:.1f} s, {num_new / seconds:.1f} new pairs/s")


@contextlib.contextmanager
def _joined_job(division: dict[str, Any]) -> Iterator[None]:
    """Be one of the processes that share the policy, divided as the fields of a Layout say."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.allocator import keep_freed_memory

    keep_freed_memory()
    # the sequence is divided too: it changes no score, and a mixture under tensor parallelism asks for it
    parallel.initialize(parallel.Layout(**division, sequence=True), say=functools.partial(cli.say, PROGRAM))
    try:
        yield
    finally:
        parallel.shut_down()


def _score(
    reader: Reader, policy: ModelSource, precision: str, max_tokens: int | None, known: dict, writer: Writer | None
) -> tuple[int, int]:
    """Score every window of the stream; (pairs, pairs computed here and now)."""
    import pyarrow as pa

    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.preferences.checks import check_scores
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.preferences.vocabulary import num_tokens
    from nemotron_dpo.progress import Work
    from nemotron_dpo.scoring import score, windows
    from nemotron_dpo.streams import SCORED_PAIRS

    model = open_policy(policy, precision).eval()
    architecture, max_tokens = model.architecture, max_tokens or score.row_tokens()
    vocab_size = num_tokens(policy.tokenizer_folder, reader.info.digests.get("tokenizer")) or architecture.vocab_size
    num_pairs = num_new = 0
    shown = cli.show_progress(PROGRAM, Work("scoring", "pair", total=reader.count_rows()))
    for window in windows.windows(reader, windows.window_tokens(max_tokens, parallel.data_size())):
        windows.check_fits(window, min(vocab_size, architecture.vocab_size), architecture.max_length, reader.source)
        scores, computed = score.score_window(model, window, max_tokens, known, shown.advance)
        scored = pa.RecordBatch.from_arrays(score.with_scores(window, scores), schema=SCORED_PAIRS)
        check_scores(Pairs.of(scored), policy.name, "are its weights damaged?")
        num_pairs, num_new = num_pairs + window.num_rows, num_new + computed
        if writer is not None:
            writer.write(scored)
    return num_pairs, num_new


def _stream_info(reader: Reader, policy: ModelSource, precision: str) -> StreamInfo:
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.streams import StreamInfo

    digests = {**reader.info.digests, "reference": weights_digest(policy)}
    own = {"reference_policy": policy.name, "reference_precision": precision, "kernels": parallel.kernels_of_job()}
    settings = {**reader.info.settings, **own}
    return StreamInfo("scored_pairs", PROGRAM, __version__, digests, settings)


def _check_tokenizer(reader: Reader, tokenizer: str | None, policy: ModelSource) -> None:
    """Refuse pairs that are not of the tokenizer that is named; without a name, warn of those that are not of the policy's."""
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.preferences.tokenizer_folder import open_folder
    from nemotron_dpo.preferences.vocabulary import is_foreign

    digest = reader.info.digests.get("tokenizer")
    if tokenizer is None and is_foreign(policy.tokenizer_folder, digest):
        cli.say(PROGRAM, f"warning: {reader.source}: was tokenized with another tokenizer than {policy.name} has")
    if tokenizer is not None and open_folder(tokenizer).digests["tokenizer"] != digest:
        remedy = "tokenize again, or drop --tokenizer"
        raise UserError(f"was not tokenized with {tokenizer}", source=reader.source, remedy=remedy)


def _known(reuse: tuple[str, ...], info: StreamInfo) -> dict:
    """Scores in earlier outputs of the same reference; UserError where one is of another policy or precision."""
    from nemotron_dpo.errors import UserError
    from nemotron_dpo.preferences.checks import check_ids, check_scores
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.scoring.score import known_scores
    from nemotron_dpo.streams import open_reader

    known: dict = {}
    for path in reuse:
        with open_reader(path, "scored_pairs") as old:
            same_weights = old.info.digests.get("reference") == info.digests["reference"]
            if not same_weights or old.info.settings.get("reference_precision") != info.settings["reference_precision"]:
                raise UserError("cannot be reused: it was scored by another policy or at another precision", source=path)
            _warn(old)
            if (by := old.info.settings.get("kernels")) != info.settings["kernels"]:
                kernels = f"{by or 'unknown ones'}, new pairs by {info.settings['kernels']}"
                cli.say(PROGRAM, f"warning: {path}: was scored by other kernels ({kernels}): they round otherwise")
            pairs = Pairs.of(old.read_all())
            check_ids(pairs, path)
            check_scores(pairs, path, "leave out this --reuse")
            known.update(known_scores(pairs))
    return known


def _warn(reader: Reader) -> None:
    if reader.warning:
        cli.say(PROGRAM, f"warning: {reader.warning}")


@contextlib.contextmanager
def _writer(output: str, info: StreamInfo) -> Iterator[Writer | None]:
    """The writer on the first process of a job, None on the others."""
    from nemotron_dpo.streams import open_writer

    if not cli.is_first_rank():
        yield None
        return
    with open_writer(output, info) as writer:
        yield writer


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM, joins_job=True)


if __name__ == "__main__":
    main()
