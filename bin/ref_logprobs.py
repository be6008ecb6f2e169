#!/usr/bin/env python3
"""Score tokenized pairs under the reference policy: one log-prob a response token.

\b
    ref-logprobs pairs.arrow -o scored.arrow --policy sft-checkpoint
    preference-tokenize prefs.jsonl -o - --tokenizer P | ref-logprobs - -o scored.arrow --policy P
    ref-logprobs more.arrow -o more-scored.arrow --policy P --reuse scored.arrow
    dpo-torchrun --nproc-per-node 8 --no-python ref-logprobs pairs.arrow -o scored.arrow --policy P --tensor-parallel 4
    ref-logprobs pairs.arrow -o scored.arrow --policy P --cache ~/scores
    ref-logprobs cache ls|verify|gc --older-than 90d --cache ~/scores
    ref-logprobs pairs.arrow -o part-3.arrow --policy P --shard 3/8
    ref-logprobs merge pairs.arrow part-*.arrow -o scored.arrow

INPUT and -o take a path or "-". The reference is the policy that training starts from; score with the precision you
train with. Scores do not depend on the objective, beta or the learning rate, so one pass serves any number of runs.
--reuse takes pairs that the same policy scored at the same precision from earlier outputs and computes only the new
ones. --cache does so from a store that any number of runs and hosts share and add to: what a killed run had scored is not
scored again, and runs at the same time divide what they have in common. Policies are known by their weights, in
whatever form and place they lie. Under torchrun the pairs are divided over the processes. A policy too large for one
of them is divided first: --tensor-parallel N divides each layer, --pipeline-parallel N the layers, --context-parallel
N the tokens of a row, --expert-parallel N the experts of a mixture.

NEMOTRON_DPO_KERNELS=torch|c|gpu in the environment chooses what computes; without it that is the fastest the machine has.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nemotron_dpo import cli, collector, launcher
from nemotron_dpo.wording import counted

if TYPE_CHECKING:
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.model import PairPolicy
    from nemotron_dpo.scoring.known import Known
    from nemotron_dpo.scoring.store import Context
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.streams import Reader

PROGRAM, CACHE = "ref-logprobs", "NEMOTRON_DPO_CACHE"
SAY = functools.partial(cli.say, PROGRAM)
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
@click.option("--cache", type=cli.PATH, metavar="DIR", envvar=CACHE, help=f"Store of scores to use and add to [{CACHE}].")
@click.option("--shard", metavar="I/N", help="Score every N-th pair from the I-th on; `ref-logprobs merge` joins the outputs.")
@click.option(
    "--of-policy",
    is_flag=True,
    help="Scores of a policy to evaluate, in columns chosen_logps and rejected_logps.",
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
    cache: str | None,
    shard: str | None,
    of_policy: bool,
    **division: Any,
) -> None:
    from nemotron_dpo.kernels.chosen import choose
    from nemotron_dpo.paths import refuse_overwriting
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.device import redirect
    from nemotron_dpo.scoring.merge import shard_of
    from nemotron_dpo.scoring.output import open_output, stream_info
    from nemotron_dpo.streams import open_reader

    started = time.perf_counter()
    if of_policy and shard is not None:
        raise click.UsageError("--shard divides the scoring of a reference, and --of-policy is of none")
    part = shard_of(shard or "1/1")
    launcher.check_job()
    refuse_overwriting({"-o": output}, [source, *reuse, policy, hf_model, tokenizer])
    cli.warn_of_untried(PROGRAM)
    redirect()
    with open_reader(source, "tokenized_pairs", "scored_pairs") as reader:
        found = _policy_of_pairs(reader, policy, hf_model, tokenizer)
        choose(precision, SAY)
        # the sequence is divided too: it changes no score, and a mixture under tensor parallelism asks for it
        with parallel.divided(parallel.Layout(**division, sequence=True), SAY) as join:
            context = _context(found, precision)
            known = parallel.agreed(lambda: _known(reuse, cache, context, found) if cli.is_first_rank() else None)
            with open_output(output, stream_info(reader.info, found.name, context, shard, of_policy=of_policy)) as write:
                num_pairs, num_new = _score(reader, found, context, part, micro_batch_tokens, join, known, write)
    _say_done(num_pairs, num_new, time.perf_counter() - started, reuses=bool(reuse or cache))


def _policy_of_pairs(reader: Reader, policy: str, hf_model: str | None, tokenizer: str | None) -> ModelSource:
    """The policy that is to score the pairs.

    Raises UserError where they are not of the tokenizer that is named. Without a name, pairs that are not of the policy's own
    are warned of.
    """
    from nemotron_dpo.preferences.vocabulary import check_made_with, warn_of_foreign
    from nemotron_dpo.sources import resolve, with_hf_model

    if reader.warning:
        SAY(f"warning: {reader.warning}")
    found = with_hf_model(resolve(policy), hf_model) if hf_model else resolve(policy)
    digest = reader.info.digests.get("tokenizer")
    if tokenizer is None:
        warn_of_foreign(found, digest, reader.source, SAY)
    else:
        check_made_with(tokenizer, digest, reader.source)
    return found


def _score(
    reader: Reader,
    policy: ModelSource,
    context: Context,
    shard: tuple[int, int],
    max_tokens: int | None,
    join: Callable[[], None],
    known: Known | None,
    write: Callable[[Any], object],
) -> tuple[int, int]:
    """Score every window of a `shard` of the stream; (pairs, pairs computed here and now)."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.preferences.vocabulary import vocab_size
    from nemotron_dpo.progress import Work
    from nemotron_dpo.scoring.merge import rows_in_shard
    from nemotron_dpo.scoring.stream import Scorer, row_tokens, score_stream

    def open_model() -> PairPolicy:
        from nemotron_dpo.checkpoint.policy import open_policy

        if parallel.job_size() == 1:
            join()
        opened = open_policy(policy, context.precision).eval()
        collector.collect_as_usual()
        return opened

    def num_ids(architecture: Architecture) -> int:
        return vocab_size(architecture.vocab_size, policy, reader.info.digests.get("tokenizer"))

    scorer = Scorer(policy.name, open_model, num_ids, max_tokens or row_tokens(), known)
    total = reader.count_rows()
    shown = cli.show_progress(PROGRAM, Work("scoring", "pair", total=total and rows_in_shard(total, *shard)))
    return score_stream(reader, scorer, write, shown.advance, shard)


def _context(policy: ModelSource, precision: str) -> Context:
    """What decides the scores. The weights' digest is on the first rank alone: it takes reading them."""
    from nemotron_dpo.checkpoint.weights_digest import weights_digest
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.job_kernels import kernels_of_job
    from nemotron_dpo.scoring.store import Context

    digest = parallel.agreed(lambda: weights_digest(policy) if cli.is_first_rank() else "")
    return Context(digest, precision, kernels_of_job())


def _known(reuse: tuple[str, ...], cache: str | None, context: Context, policy: ModelSource) -> Known:
    """The scores in earlier outputs and in the store. Raises UserError where an output is of another policy or precision."""
    from nemotron_dpo.checkpoint.weights_digest import is_digest_of
    from nemotron_dpo.scoring.known import Known, read_earlier, store_of

    store = store_of(cache, context, SAY)
    return Known.of(store, read_earlier(reuse, context, lambda digest: is_digest_of(digest, policy), store, SAY))


def _say_done(num_pairs: int, num_new: int, seconds: float, *, reuses: bool) -> None:
    reused = f", {num_pairs - num_new} of them reused" if reuses else ""
    SAY(f"{counted(num_pairs, 'pair')} scored{reused}, {seconds:.1f} s, {num_new / seconds:.1f} new pairs/s")


@click.group(help="Look after the store of scores in --cache DIR.")
def cache() -> None:
    pass


_STORE = click.option(
    "--cache", "root", type=cli.PATH, envvar=CACHE, default=".nemotron/cache", show_default=True, help=f"Store [{CACHE}]."
)


@cache.command("ls", help="List what was scored, by which weights.")
@_STORE
def list_(root: str) -> None:
    from nemotron_dpo.scoring.upkeep import stored

    for one in stored(Path(root)):
        click.echo(one.line())


@cache.command(help="Remove files that were written longer ago.")
@_STORE
@click.option("--older-than", required=True, metavar="AGE", help="Such as 90d, 12h or 30m.")
def gc(root: str, older_than: str) -> None:
    from nemotron_dpo.ages import seconds_of
    from nemotron_dpo.scoring.upkeep import remove_older

    files, size = remove_older(Path(root), seconds_of(older_than))
    SAY(f"{counted(files, 'file')} removed, {size / 1e6:.1f} MB")


@cache.command(help="Compare the checksum of every record; fails where one differs.")
@_STORE
def verify(root: str) -> int:
    from nemotron_dpo.scoring.upkeep import damage

    found = list(damage(Path(root)))
    wrong = [one for one in found if not isinstance(one, int)]
    for path, what in wrong:
        SAY(f"{path}: {what}: remove it, and its pairs are scored again")
    SAY(f"{sum(one for one in found if isinstance(one, int))} records are whole, {len(wrong)} files are damaged")
    return 1 if wrong else 0


@click.command(help="Join what shards of PAIRS were scored into; fails where a pair is in none of them.")
@click.argument("pairs", type=cli.PATH)
@click.argument("parts", nargs=-1, required=True, metavar="SCORED...", type=cli.PATH)
@click.option("-o", "--output", required=True, type=cli.PATH, help="Arrow stream to write.")
def merge(pairs: str, parts: tuple[str, ...], output: str) -> None:
    from nemotron_dpo.paths import refuse_overwriting
    from nemotron_dpo.scoring.merge import merge_files

    refuse_overwriting({"-o": output}, [pairs, *parts])
    num_pairs = merge_files(pairs, parts, output, SAY)
    SAY(f"{counted(num_pairs, 'pair')} merged from {counted(len(parts), 'part')}, each of them once")


def main() -> NoReturn:
    """Entry point."""
    for other in (cache, merge):
        if sys.argv[1:2] == [other.name]:  # a file of this name is ./cache
            del sys.argv[1]
            cli.run(other, PROGRAM, called=f"{PROGRAM} {other.name}")
    cli.run(command, PROGRAM, joins_job=True)


if __name__ == "__main__":
    main()
