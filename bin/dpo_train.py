#!/usr/bin/env python3
"""Train a policy on scored preference pairs.

\b
    dpo-train scored.arrow --policy sft-checkpoint --run-dir run dpo.max_num_steps=100 policy.optimizer.lr=1e-6
    dpo-train scored.arrow --policy P --run-dir run --validation held_out.arrow -c tiny.yaml
    torchrun --nproc-per-node 8 --no-python dpo-train scored.arrow --policy P --run-dir run -c tiny.yaml
    dpo-train pairs.arrow --policy P --run-dir sft dpo.preference_loss_weight=0 dpo.sft_loss_weight=1

INPUT is scored_pairs from ref-logprobs, a path or "-" (it is spooled into the run folder first). With
dpo.preference_loss_weight=0 it may be tokenized_pairs: that is supervised fine-tuning on the chosen responses.
--validation may be repeated with names; a path that exists is one, even with "=" in it. Keys are NeMo-RL's; KEY.PATH=VALUE
wins over the config.

The run folder receives metrics.jsonl (a record a step and a validation) and checkpoints/step_N. The first step measures how
well rewards are known (train/reward_noise); records have what their mean rewards are noise below (reward_noise_floor). With
checkpointing.save_optimizer=true a run that was interrupted is resumed by the same command, exactly and on any number of
processes (a piped one by giving INPUT as RUN_DIR/input.arrow): SIGTERM then ends it after the step it is in, with a
checkpoint and status 143, and so does checkpointing.checkpoint_must_save_by=DD:HH:MM:SS, with status 0. Without, steps hold
weights alone, and a run folder that has any is refused.

NEMOTRON_DPO_KERNELS=torch|c|gpu in the environment chooses what computes; without it that is the fastest the machine has.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nemotron_dpo import cli, launcher, wiring
from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import expand_home

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.policy.architecture import Architecture
    from nemotron_dpo.policy.trainable import TrainablePolicy
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.resume import Identity, ResumeState
    from nemotron_dpo.training.settings import LoopSettings

PROGRAM = "dpo-train"


@click.command(help=__doc__)
@click.argument("source", metavar="INPUT", type=cli.PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option(
    "--policy",
    required=True,
    type=cli.PATH,
    metavar="ID_OR_DIR",
    help="Initial policy: HF id, HF folder or Megatron checkpoint.",
)
@click.option("--run-dir", required=True, type=cli.PATH, help="Folder of this run.")
@click.option("--validation", multiple=True, metavar="[NAME=]INPUT", help="Scored pairs to validate on [NAME: default].")
@click.option("-c", "--config", type=cli.PATH, metavar="CONFIG", help="YAML file of the run's configuration.")
def command(
    source: str, overrides: tuple[str, ...], policy: str, run_dir: str, validation: tuple[str, ...], config: str | None
) -> None:
    from nemotron_dpo.config import load_run, with_home
    from nemotron_dpo.kernels.chosen import choose
    from nemotron_dpo.policy.device import redirect
    from nemotron_dpo.sources import resolve, resolve_pretrained
    from nemotron_dpo.training.resume import newest

    launcher.check_job()
    cli.warn_of_untried(PROGRAM)
    redirect()  # before anything imports megatron-core, which compiles small fusions when it is imported
    held_out = _validation_sets(validation)
    run, warnings = load_run(config, overrides, validation=list(held_out))
    run, folder = with_home(run), Path(run_dir)
    for warning in warnings:
        cli.say(PROGRAM, f"warning: {warning}")
    choose(run.policy.precision, functools.partial(cli.say, PROGRAM))
    pretrained = run.checkpointing.pretrained_checkpoint
    found = resolve_pretrained(pretrained.path, pretrained.format, policy) if pretrained.path else resolve(policy)
    with _held(run, folder):
        earlier = newest(wiring.checkpoint_dir(run, folder))
        data, reference_is_policy = _open_input(run, source, folder, found, is_first=earlier is None)
        sets = {name: _open(run, path, found)[0] for name, path in held_out.items()}
        settings = wiring.settings(run, data, sets, gate=reference_is_policy)
        for remark in wiring.remarks(run, data, sets, settings):
            cli.say(PROGRAM, f"warning: {remark}")
        identity = _identity(run, found, data, sets) if earlier or run.checkpointing.save_optimizer else None
        resumed = _resumed(earlier, identity, settings.num_steps) if earlier and identity else None
        if resumed is None or resumed.step < settings.num_steps:
            _train(run, found, folder, data, sets, settings, identity, resumed)


@contextlib.contextmanager
def _held(run: RunConfig, run_dir: Path) -> Iterator[None]:
    """Keep other runs out of the folders that this one writes; the first rank does it for all."""
    from nemotron_dpo.training.lock import only_run

    own = [Path(run.checkpointing.checkpoint_dir)] if run.checkpointing.checkpoint_dir else []
    folders = {folder.resolve(): folder for folder in (run_dir, *own)}
    with contextlib.ExitStack() as held:
        for folder in folders.values() if cli.is_first_rank() else ():
            held.enter_context(only_run(folder, functools.partial(cli.say, PROGRAM)))
        yield


def _validation_sets(arguments: tuple[str, ...]) -> dict[str, Path]:
    """The files to validate on by name; a path that exists is one, even with a "=" in it. Raises UserError."""
    sets: dict[str, Path] = {}
    for argument in arguments:
        name, found, path = argument.partition("=")
        if Path(expand_home(argument)).exists() or not found:
            name, path = "default", argument
        place = f"--validation {argument}"
        if not (path and re.fullmatch(r"[\w.-]+", name)):
            remedy = "NAME has letters, digits, . _ -"
            raise UserError("is neither a file nor NAME=FILE", source=place, remedy=remedy, usage=True)
        if name in sets:
            message = f"the set {name} is {sets[name]} already"
            raise UserError(message, source=place, remedy="give each a NAME=FILE of its own", usage=True)
        sets[name] = Path(expand_home(path))
    return sets


def _open_input(run: RunConfig, source: str, run_dir: Path, policy: ModelSource, *, is_first: bool) -> tuple[Pairs, bool]:
    """As `_open`; what comes through a pipe is kept, and where a run is resumed must not replace what it began with."""
    from nemotron_dpo.streams import spool

    kept = run_dir / ("input.arrow" if is_first else "input.again.arrow")
    path = spool(source, kept)
    try:
        return _open(run, path, policy)
    finally:
        if source == "-" and not is_first:
            path.unlink()


def _open(run: RunConfig, path: Path, policy: ModelSource) -> tuple[Pairs, bool]:
    """The pairs of one file, and whether `policy` itself scored them."""
    from nemotron_dpo.config import objective_of
    from nemotron_dpo.preferences.checks import check_vocabulary
    from nemotron_dpo.preferences.vocabulary import is_foreign
    from nemotron_dpo.training.data import check_reference, open_pairs

    scored = objective_of(run.dpo).needs.reference
    say = functools.partial(cli.say, PROGRAM)
    pairs, info = open_pairs(path, scored=scored, max_length=run.policy.max_total_sequence_length, say=say)
    tokenizer = info.digests.get("tokenizer")
    check_vocabulary(pairs, _vocab_size(policy, tokenizer), path)
    if run.policy.tokenizer.name is None and is_foreign(policy.tokenizer_folder, tokenizer):
        say(f"warning: {path}: was tokenized with another tokenizer than {policy.name} has")
    if scored and not run.dpo.allow_reference_mismatch and cli.is_first_rank():
        check_reference(info, _weights_digest(policy), path)
    return pairs, scored and not run.dpo.allow_reference_mismatch


@functools.cache
def _vocab_size(policy: ModelSource, tokenizer: str | None) -> int:
    """Tokens of the policy; without its padding where `tokenizer`, the digest of that of the pairs, is its own."""
    from nemotron_dpo.checkpoint.policy import read_architecture
    from nemotron_dpo.preferences.vocabulary import num_tokens

    size = read_architecture(policy).vocab_size
    return min(size, num_tokens(policy.tokenizer_folder, tokenizer) or size)


@functools.cache
def _weights_digest(policy: ModelSource) -> str:
    """On the first rank alone, which checks for all: it takes reading all weights."""
    return policy.weights_digest() if cli.is_first_rank() else ""


def _identity(run: RunConfig, policy: ModelSource, data: Pairs, sets: dict[str, Pairs]) -> Identity:
    """What makes this run this one."""
    from nemotron_dpo.config import identity
    from nemotron_dpo.kernels.chosen import kernels
    from nemotron_dpo.training.resume import Identity, digest

    fixed, free = identity(run)
    validation = {name: digest(pairs) for name, pairs in sets.items()}
    return Identity(digest(data), _weights_digest(policy), fixed, free, validation, kernels().identity)


def _resumed(earlier: Path, identity: Identity, last: int) -> ResumeState:
    """The state of the step folder `earlier`, which must be of this run."""
    from nemotron_dpo.training.resume import ResumeState, check_identity

    state = ResumeState.read(earlier)
    if cli.is_first_rank():
        for change in check_identity(state.identity, identity, earlier):
            cli.say(PROGRAM, f"warning: {change}")
    goes_on = f"resuming after step {state.step} of {last}" if state.step < last else f"all {last} steps are done already"
    cli.say(PROGRAM, f"{earlier}: {goes_on}")
    return state


def _train(
    run: RunConfig,
    policy: ModelSource,
    run_dir: Path,
    data: Pairs,
    sets: dict[str, Pairs],
    settings: LoopSettings,
    identity: Identity | None,
    resumed: ResumeState | None,
) -> None:
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.allocator import keep_freed_memory
    from nemotron_dpo.training.stopping import Stop, deadline

    checkpoints, save_by = wiring.checkpoints(run, run_dir, policy, identity, sets), deadline(wiring.save_by(run))
    run_dir.mkdir(parents=True, exist_ok=True)
    parallel.initialize(wiring.layout(run), run.dpo.seed, functools.partial(cli.say, PROGRAM))
    try:
        from nemotron_dpo.training.run import train

        trainable, shape = _open_trainable(run, policy, resumed)
        keep_freed_memory()
        can_resume = checkpoints is not None and checkpoints.can_resume
        say, done = functools.partial(cli.say, PROGRAM), resumed.step if resumed else 0
        with cli.sigterm_noted() if can_resume else contextlib.nullcontext() as terminated:
            stop = Stop(save_by, terminated)
            train(
                trainable,
                shape,
                data,
                sets,
                settings,
                recorded=wiring.recorded(run, run_dir, done, say) if cli.is_first_rank() else None,
                checkpoints=checkpoints,
                resumed=resumed,
                stop=stop,
                say=say,
                count=cli.counter(unit="step", label="training", total=settings.num_steps),
            )
    finally:
        parallel.shut_down()
    if stop.reason == "SIGTERM":
        raise cli.Terminated


def _open_trainable(run: RunConfig, policy: ModelSource, resumed: ResumeState | None) -> tuple[TrainablePolicy, Architecture]:
    """The initial policy, or the one of the resumed step with its optimizer's state."""
    from nemotron_dpo.checkpoint import adapters, optimizer_state
    from nemotron_dpo.checkpoint import megatron as checkpoint
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.lora import Adapted, adapt
    from nemotron_dpo.policy.trainable import TrainablePolicy

    length, lora = run.policy.max_total_sequence_length, wiring.lora(run)
    source = resumed.policy if resumed and not lora else policy
    model, shape = open_policy(source, run.policy.precision, max_length=length, recompute=wiring.recompute(run))
    if lora:
        adapt(model, Adapted(lora, adapters.base_of(policy, _weights_digest(policy))), run.dpo.seed)
        if resumed:
            checkpoint.load(model, resumed.policy.path)
    trainable = TrainablePolicy(model, wiring.optimization(run))
    if resumed:
        optimizer_state.load(trainable, resumed.optimizer)
    return trainable, shape


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM, joins_job=True)


if __name__ == "__main__":
    main()
