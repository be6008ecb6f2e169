#!/usr/bin/env python3
"""Write a policy as a checkpoint_megatron or as a Hugging Face folder, or LoRA adapters as a folder of peft.

\b
    ckpt-export HF_DIR -o checkpoint_megatron --to megatron      import
    ckpt-export run -o aligned --to megatron                     the aligned checkpoint of a run
    ckpt-export run -o aligned-hf --to hf                        a folder transformers loads
    ckpt-export run -o adapters --to peft                        the adapters of a LoRA run, for peft and inference servers
    ckpt-export adapters --base HF_DIR -o merged --to hf         a folder of peft's adapters, merged
    ckpt-export run -o aligned-hf --to hf --push-to me/aligned   and put on the Hugging Face hub

SOURCE is a Hugging Face id or folder, a Megatron checkpoint (root or iter_*), a run folder of dpo-train, or a folder of
peft's LoRA adapters. A run folder means its last step, or the one that --step says. The output folder must not
exist yet. It appears whole or not at all.

Adapters are merged into the weights of their base, except with --to peft. They know where it lies, unless --base says so;
ours refuse other weights than those they were trained over. Weights keep the precision in which they are
stored, whatever their config says; --precision converts them. Where tensors differ in precision, all are written in
float32, which holds the others exactly. With --verify N the output is read back and scores N rows of random tokens (4 without
a number) as the source does; otherwise it is removed and the export fails.

A folder for Hugging Face has a model card, README.md: what was trained on what, settings, figures of the step, and how to make
it again, as far as the folders around SOURCE say. With --push-to it is uploaded by huggingface_hub and its login (hf auth
login, or HF_TOKEN); a repository that is made for it is private.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nemotron_dpo import cli, collector, launcher

if TYPE_CHECKING:
    from nemotron_dpo.sources import ModelSource

PROGRAM = "ckpt-export"
_ROWS = 4  # that --verify scores without a number


@click.command(help=__doc__)
@click.argument("source", type=cli.PATH)
@click.option("-o", "--output", required=True, type=cli.PATH, help="Folder to create.")
@click.option("--to", "form", required=True, type=click.Choice(["megatron", "hf", "peft"]), help="Format to write.")
@click.option(
    "--hf-model", type=cli.PATH, metavar="ID_OR_DIR", help="HF model that SOURCE, a checkpoint of Megatron-LM, holds."
)
@click.option("--base", type=cli.PATH, metavar="ID_OR_DIR", help="Policy that SOURCE, which holds adapters, was trained over.")
@click.option("--step", metavar="last|best|N", default="last", help="Step of a run; best by its checkpointing.metric_name.")
@click.option("--precision", type=click.Choice(["bfloat16", "float32"]), help="Precision of the written weights.")
@click.option("--push-to", metavar="ID", help="Upload the folder to the Hugging Face hub as well.")
@click.option("--verify", type=click.IntRange(min=0), default=0, metavar="[N]", help="Score N probe rows before and after.")
def command(
    source: str,
    output: str,
    form: str,
    hf_model: str | None,
    base: str | None,
    step: str,
    precision: str | None,
    push_to: str | None,
    verify: int,
) -> None:
    from nemotron_dpo.published import refuse_existing

    launcher.refuse_job()
    cli.warn_of_untried(PROGRAM)
    if verify and form == "peft":
        raise click.UsageError("--verify is for whole policies: peft adapters are not read back here")
    if push_to is not None and form == "megatron":
        raise click.UsageError("--push-to is for --to hf and --to peft")
    target = Path(output)
    refuse_existing(target)
    found = _source(source, hf_model, base, _step(step))
    if push_to is not None:
        from nemotron_dpo.model_card.hub import check_push

        check_push(push_to)
    difference = _export(found, target, form, precision, verify)
    verified = "" if difference is None else f", {verify} probe rows score alike (largest difference {difference:.3g})"
    cli.say(PROGRAM, f"{found.path} -> {target} ({form}){verified}")
    if form != "megatron":
        _hand_on(target, form, push_to)


def _step(asked: str) -> str:
    """--step as `resolve_adapters` takes it."""
    if asked in ("last", "best"):
        return asked
    if not (asked.isascii() and asked.isdigit()):
        raise click.UsageError(f"--step {asked}: give last, best or the number of a step")
    return str(int(asked))


def _source(source: str, hf_model: str | None, base: str | None, step: str) -> ModelSource:
    """What is exported."""
    from nemotron_dpo.sources import resolve, resolve_adapters, with_hf_model

    if hf_model and step != "last":
        raise click.UsageError("--hf-model is for checkpoints of Megatron-LM, --step for runs")
    if hf_model and base:
        raise click.UsageError("--hf-model is for whole policies, --base for adapters")
    return with_hf_model(resolve(source), hf_model) if hf_model else resolve_adapters(source, base, step)


def _export(found: ModelSource, target: Path, form: str, precision: str | None, verify: int) -> float | None:
    """Write the folder; the largest difference between the scores of `verify` rows, None without any."""
    from nemotron_dpo.kernels.chosen import choose
    from nemotron_dpo.policy import parallel

    parallel.initialize()
    if verify:
        choose(say=functools.partial(cli.say, PROGRAM))
    try:
        from nemotron_dpo.checkpoint import adapters
        from nemotron_dpo.checkpoint.export import export

        collector.collect_as_usual()
        difference = export(found, target, form, precision, verify, _card_of(found, form))
        is_unchecked = adapters.names_no_weights(found)
    finally:
        parallel.shut_down()
    _say_doubts(found, is_unchecked=is_unchecked)
    return difference


def _say_doubts(found: ModelSource, *, is_unchecked: bool) -> None:
    """Warn of what was left out, or taken unchecked."""
    from nemotron_dpo import file_digests, hf_folder

    if found.kind == "megatron" and file_digests.left_out(found.path, "tokenizer"):
        cli.say(PROGRAM, f"warning: {found.path / file_digests.NAME} does not list tokenizer/, which was copied unchecked")
    for line in hf_folder.left_out(found.path) if found.kind == "hf" else ():
        cli.say(PROGRAM, f"warning: {found.path}: {line}")
    if is_unchecked:
        what = "do not say over which weights they were trained: those of another base would have gone unnoticed"
        cli.say(PROGRAM, f"warning: the adapters in {found.path} {what}")


def _card_of(source: ModelSource, form: str) -> Callable[[Path], object]:
    """What writes the model card of `source` into a folder of that form; nothing for checkpoints of Megatron."""
    from nemotron_dpo.model_card import card
    from nemotron_dpo.model_card.origin import origin_of

    if form == "megatron":
        return lambda folder: None
    return lambda folder: card.write(folder, origin_of(source.path), form)


def _hand_on(folder: Path, form: str, push_to: str | None) -> None:
    """Say what was written and how it is loaded, and upload it where that was asked for."""
    from nemotron_dpo.model_card import card, hub

    where = shlex.quote(str(folder))
    if form == "hf":
        cli.say(PROGRAM, f"weights in {card.precision_of(folder, form)}, model card in {folder / card.NAME}")
        cli.say(PROGRAM, f"transformers: transformers chat {where}")
        cli.say(PROGRAM, f"vLLM: vllm serve {where}")
    if push_to is not None:
        address = hub.push(folder, push_to, "Export by nemotron-dpo")
        cli.say(PROGRAM, f"{folder} -> {address}")


def _with_rows(arguments: Sequence[str]) -> list[str]:
    """`arguments` with a number behind each --verify that has none; click would take the next word, a SOURCE, for it."""
    found: list[str] = []
    for word, behind in zip(arguments, [*arguments[1:], ""], strict=True):
        found.append(word)
        if word == "--verify" and not behind.lstrip("-").isdigit():
            found.append(str(_ROWS))
    return found


def main() -> NoReturn:
    """Entry point."""
    sys.argv[1:] = _with_rows(sys.argv[1:])
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
