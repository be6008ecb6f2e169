#!/usr/bin/env python3
"""Train a policy on scored preference pairs.

\b
    dpo-train scored.arrow --policy sft-checkpoint --run-dir run dpo.max_num_steps=100 policy.optimizer.lr=1e-6
    dpo-train scored.arrow --policy P --run-dir run --validation held_out.arrow -c tiny.yaml
    dpo-torchrun --nproc-per-node 8 --no-python dpo-train scored.arrow --policy P --run-dir run -c tiny.yaml
    dpo-train pairs.arrow --policy P --run-dir sft dpo.preference_loss_weight=0 dpo.sft_loss_weight=1
    dpo-train scored.arrow --policy P --run-dir run 'dpo.preference_loss={dpo: 0.8, sft: 1.0}'
    dpo-train scored.arrow --policy P --run-dir run --objective mine.py:Margin dpo.reference_policy_kl_penalty=0.1

INPUT is scored_pairs from ref-logprobs, a path or "-" (it is spooled into the run folder first). It may be tokenized_pairs
where dpo.preference_loss names objectives without a reference, and with dpo.preference_loss_weight=0, which is supervised
fine-tuning on the chosen responses. `nemotron-steps show dpo` lists the objectives.
--validation may be repeated with names; a path that exists is one, even with "=" in it. Keys are NeMo-RL's; KEY.PATH=VALUE
wins over the config.

The run folder receives metrics.jsonl (a record a step and a validation), pairs_log.arrow (the same pair by pair), run.json
(how it stands) and checkpoints/step_N.
The first step measures how well rewards are known (train/reward_noise); records have what their mean rewards are noise below
(reward_noise_floor). With checkpointing.save_optimizer=true a run that was interrupted is resumed by the same command,
exactly and on any number of processes (a piped one by giving INPUT as RUN_DIR/input.arrow): SIGTERM then ends it after the
step it is in, with a checkpoint and status 143, and so do Ctrl-C, with status 130 (a second one ends it at once), and
checkpointing.checkpoint_must_save_by=DD:HH:MM:SS, with status 0. Without, steps hold weights alone, and a run folder that
has any is refused.

Where the loss rises above its start, the policy leaves its reference or comes back to it, gradients spike, accuracy or the
log-prob of chosen responses falls, or a validation turns, it is said once: what, at which step, on which pairs, and the beta
and learning rate to try. dpo.on_divergence=stop ends the run then, with status 3: nothing more is saved, and the last
checkpoint from before the trouble is kept and named. dpo.on_divergence=off looks away.

NEMOTRON_DPO_KERNELS=torch|c|gpu in the environment chooses what computes; without it that is the fastest the machine has.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nemotron_dpo import cli, collector, hf_folder, launcher, wiring
from nemotron_dpo.errors import DIVERGED, UserError

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.progress import Progress
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.resume import Identity, ResumeState
    from nemotron_dpo.training.saving import Checkpoints
    from nemotron_dpo.training.settings import LoopSettings

PROGRAM = "dpo-train"
SAY = functools.partial(cli.say, PROGRAM)


def _help_config(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    """Show the keys of a config and exit."""
    if is_asked:
        from nemotron_dpo.config import RunConfig
        from nemotron_dpo.config.key_help import key_help

        click.echo("\n".join(key_help(RunConfig)))
        context.exit()


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
@click.option("-c", "--config", type=cli.PATH, metavar="CONFIG", help="YAML file, or the name of a shipped config.")
@click.option("--objective", metavar="FILE.py:NAME", help="Objective of your own: runs FILE.py. No config can say this.")
@click.option(
    "--help-config", is_flag=True, is_eager=True, expose_value=False, callback=_help_config, help="Show every key, and exit."
)
@click.option("--strict", is_flag=True, help="Refuse what would be warned of before training.")
def command(
    source: str,
    overrides: tuple[str, ...],
    policy: str,
    run_dir: str,
    validation: tuple[str, ...],
    config: str | None,
    objective: str | None,
    strict: bool,
) -> int:
    from nemotron_dpo.kernels.chosen import choose
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.device import redirect
    from nemotron_dpo.training.resume import newest
    from nemotron_dpo.training.sinks.run_file import settle

    launcher.check_job()
    cli.warn_of_untried(PROGRAM)
    redirect()  # before anything imports megatron-core, which compiles small fusions when it is imported
    held_out, folder = cli.named_files("--validation", validation), Path(run_dir)
    run = _config(config, overrides, held_out, objective, strict=strict)
    wiring.check_trackers(run)
    choose(run.policy.precision, SAY)
    initial = _initial_policy(run, policy)
    with parallel.joined(SAY), wiring.held_folders(run, folder, SAY):
        wiring.check_own_objective(run)
        earlier = parallel.agreed(lambda: newest(wiring.checkpoint_dir(run, folder)))
        pairs = wiring.open_pairs(run, initial, source, held_out, folder, SAY, is_first=earlier is None)
        settings = _settings(run, pairs, strict=strict)
        is_known = earlier or run.checkpointing.save_optimizer
        identity = wiring.identity(run, initial, pairs.train, pairs.sets) if is_known else None
        wiring.check_goes_on(earlier, settings.num_steps, folder)
        resumed = wiring.resumed(earlier, initial, identity, settings.num_steps, SAY) if earlier and identity else None
        if resumed is not None and resumed.step >= settings.num_steps:
            parallel.agreed(lambda: settle(folder) if cli.is_first_rank() else None)
            return 0
        _warn(wiring.remarks_on_rates(run, pairs.train, settings, resumed) if resumed else [], strict=strict)
        return _train(run, initial, folder, pairs, settings, identity, resumed)


def _config(
    path: str | None, overrides: tuple[str, ...], held_out: Mapping[str, Path], objective: str | None, *, strict: bool
) -> RunConfig:
    """The checked configuration of the run; what it warns of is said."""
    from nemotron_dpo.config import load_objective, load_run_and_idle, with_home
    from nemotron_dpo.steps.catalogue import manifest

    if path is not None and not Path(path).is_file():
        path = str(manifest.find_config(manifest.find_step("rl/nemo_rl/dpo", manifest.discover(manifest.configs_root())), path))
    own = None if objective is None else load_objective(objective)
    with wiring.blamed(own):
        run, warnings, idle = load_run_and_idle(path, overrides, list(held_out), own)
    _warn(warnings, strict=strict)
    if idle:
        SAY(f"no meaning here: {', '.join(key.key for key in idle)}; `nemotron-steps run dpo -d -v -c {path}` says why")
    return with_home(run)


def _initial_policy(run: RunConfig, named: str) -> ModelSource:
    """The policy that training starts from; what its folder leaves out is said."""
    initial = wiring.initial_policy(run, named)
    wiring.check_router(run, initial)
    left_out = hf_folder.left_out(initial.path) if initial.kind == "hf" else []
    _warn([f"{initial.path}: {line}" for line in left_out], strict=False)  # nobody could mend it
    return initial


def _settings(run: RunConfig, pairs: wiring.OpenPairs, *, strict: bool) -> LoopSettings:
    """The loop's settings on this data; what may surprise in them is said."""
    settings = wiring.settings(run, pairs.train, pairs.sets)
    _warn(wiring.remarks(run, pairs, settings), strict=strict)
    return settings


def _warn(lines: Sequence[str], *, strict: bool) -> None:
    """Say what may surprise. Raises UserError for the first where warnings are errors."""
    for line in lines:
        if strict:
            raise UserError(line, remedy="it is a warning without --strict")
        SAY(f"warning: {line}")


def _train(
    run: RunConfig,
    policy: ModelSource,
    run_dir: Path,
    pairs: wiring.OpenPairs,
    settings: LoopSettings,
    identity: Identity | None,
    resumed: ResumeState | None,
) -> int:
    """Train to the end, or until SIGTERM, the time limit or the guards end it, and return the exit status."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.allocator import keep_freed_memory
    from nemotron_dpo.training.run import train
    from nemotron_dpo.training.stopping import Stop, deadline

    checkpoints, save_by = wiring.checkpoints(run, run_dir, policy, identity, pairs.sets), deadline(wiring.save_by(run))
    _prepare(run, policy, run_dir, checkpoints)
    done = resumed.step if resumed else 0
    samples = parallel.agreed(lambda: wiring.samples(run, policy) if cli.is_first_rank() else None)
    progress = _progress(settings.num_steps, done)
    trainable = wiring.open_trainable(run, policy, resumed)
    keep_freed_memory()
    collector.collect_as_usual()
    recorded = wiring.recorded(run, run_dir, policy, pairs, done, SAY) if cli.is_first_rank() else None
    with _signals_noted(checkpoints) as terminated, wiring.blamed(run.dpo.own_objective):
        stop = Stop(save_by, terminated)
        train(
            trainable,
            pairs.train,
            pairs.sets,
            settings,
            recorded=recorded and replace(recorded, stopped_by=lambda: stop.reason),
            checkpoints=checkpoints,
            resumed=resumed,
            stop=stop,
            say=SAY,
            progress=progress,
            watch=wiring.watch(run, settings),
            samples=samples,
        )
    return DIVERGED if stop.has_diverged else 128 + stop.signal if stop.signal else 0  # the status, as shells give it


def _prepare(run: RunConfig, policy: ModelSource, run_dir: Path, checkpoints: Checkpoints | None) -> None:
    """Make the run folder, remove what an interrupted save left, and divide the processes; how the policy is cut is said."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.training.retention import remove_unfinished

    run_dir.mkdir(parents=True, exist_ok=True)
    if checkpoints is not None and cli.is_first_rank():
        remove_unfinished(checkpoints.folder)
    parallel.initialize(wiring.layout(run), run.dpo.seed, SAY)
    for line in wiring.cut_lines(run, policy):
        SAY(line)


def _progress(num_steps: int, done: int) -> Progress:
    """The progress of the steps, which begins with loading."""
    from nemotron_dpo.progress import Work

    progress = cli.show_progress(PROGRAM, Work("training", "step", num_steps, done, announced=num_steps > 0))
    progress.phase("loading")
    return progress


def _signals_noted(checkpoints: Checkpoints | None) -> AbstractContextManager[Callable[[], int] | None]:
    """Inside it, a signal is noted where the step that it comes in can be saved and resumed from."""
    can_resume = checkpoints is not None and checkpoints.can_resume
    return cli.signals_noted(PROGRAM) if can_resume else contextlib.nullcontext()


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM, joins_job=True)


if __name__ == "__main__":
    main()
