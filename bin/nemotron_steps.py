#!/usr/bin/env python3
"""Compile a step's config and run its stages.

\b
  nemotron-steps list
  nemotron-steps show rl/nemo_rl/dpo
  nemotron-steps run rl/nemo_rl/dpo -c tiny
  nemotron-steps run rl/nemo_rl/dpo -c default --dry-run data.train.prompt_file=prefs.jsonl

`nemotron steps ...` is the same. `nemotron-steps help STEP` is `show STEP`. Tab completion:

\b
  eval "$(_NEMOTRON_STEPS_COMPLETE=bash_source nemotron-steps)"     bash; zsh_source for zsh
  _NEMOTRON_STEPS_COMPLETE=fish_source nemotron-steps | source      fish
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NoReturn

import click
import orjson

from nemotron_dpo import __version__, cli
from nemotron_dpo.config import redact, redact_override
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import cache, choice, completion, job, kinds, local, manifest, profile, text
from nemotron_dpo.steps.arguments import sort_arguments
from nemotron_dpo.steps.digests import Digests
from nemotron_dpo.steps.stages import Plan

PROGRAM = "nemotron-steps"
_HELP = {"help_option_names": ["-h", "--help"]}


_complete_step = cli.completer("step", lambda _: completion.steps())
_complete_config = cli.completer("step", completion.configs)
_complete_profile = cli.completer("step", lambda _: completion.profiles())
_complete_stage = cli.completer("step", completion.stages)
_complete_key = cli.completer("step", completion.keys)


@click.group(help=__doc__, context_settings=_HELP)
@click.version_option(__version__, prog_name=PROGRAM)
def command() -> None: ...


@click.group("nemotron", help="The program's steps: `nemotron steps --help`.", context_settings=_HELP)
@click.version_option(__version__, prog_name="nemotron")
def nemotron() -> None: ...


nemotron.add_command(command, "steps")


@command.command("list", context_settings=_HELP)
@click.option("--category", metavar="C", help="Only steps of this category.")
@click.option("--consumes", metavar="TYPE", help="Only steps that take this artifact.")
@click.option("--produces", metavar="TYPE", help="Only steps that make this artifact.")
@click.option("--tag", metavar="T", help="Only steps with this tag.")
@click.option("--tree", is_flag=True, help="As a tree of their ids.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_steps(
    category: str | None, consumes: str | None, produces: str | None, tag: str | None, tree: bool, as_json: bool
) -> None:
    """List the steps there are."""
    every = manifest.discover(manifest.configs_root())
    steps = [
        step
        for step in every
        if category in (None, step.category)
        and (tag is None or tag in step.tags)
        and (consumes is None or consumes in [item["type"] for item in step.consumes])
        and (produces is None or produces in [item["type"] for item in step.produces])
    ]
    if as_json:
        _print_json([text.manifest(step, every) for step in steps])
    elif tree:
        click.echo(text.tree_view(steps))
    else:
        click.echo(text.table([(step.id, step.name, ", ".join(step.configs)) for step in steps], ("STEP", "NAME", "CONFIGS")))


@command.command("show", context_settings=_HELP)
@click.argument("step", shell_complete=_complete_step)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show_step(step: str, as_json: bool) -> None:
    """Show what a step takes, makes, and can be told."""
    steps = manifest.discover(manifest.configs_root())
    found = manifest.find_step(step, steps)
    if as_json:
        _print_json(text.manifest(found, steps))
    else:
        click.echo(text.describe(found, steps))


@command.command("help", context_settings=_HELP)
@click.argument("topic", metavar="[STEP|COMMAND]", required=False, shell_complete=_complete_step)
@click.pass_context
def show_help(context: click.Context, topic: str | None) -> None:
    """Show what a step takes, makes, and can be told; or how a command is called."""
    assert context.parent is not None
    if topic is None:
        click.echo(context.parent.get_help())
    elif topic in command.commands:
        with click.Context(command.commands[topic], parent=context.parent, info_name=topic) as about:
            click.echo(about.get_help())
    else:
        context.invoke(show_step, step=topic, as_json=False)


@command.command("run", context_settings={**_HELP, "ignore_unknown_options": True})
@click.argument("step", shell_complete=_complete_step)
@click.option(
    "-c",
    "--config",
    metavar="NAME|PATH",
    shell_complete=_complete_config,
    help="A config of the step, or a YAML file; default: default.",
)
@click.option(
    "-r",
    "--run",
    "attached",
    metavar="PROFILE",
    shell_complete=_complete_profile,
    help="Run where PROFILE of env.toml says, and follow it.",
)
@click.option(
    "-b",
    "--batch",
    "detached",
    metavar="PROFILE",
    shell_complete=_complete_profile,
    help="Submit where PROFILE of env.toml says, and return.",
)
@click.option("-d", "--dry-run", is_flag=True, help="Print the merged config and the exact commands; touch nothing.")
@click.option(
    "--from",
    "first",
    metavar="STAGE",
    shell_complete=_complete_stage,
    help="Run again from STAGE on; what comes before must be up to date.",
)
@click.option("--to", "last", metavar="STAGE", shell_complete=_complete_stage, help="Stop after STAGE.")
@click.option("--force", is_flag=True, help="Run every stage, up to date or not.")
@click.option("--force-squash", is_flag=True, help="Rebuild the container image that a remote executor caches.")
@click.argument("tokens", metavar="[KEY.PATH=VALUE]...", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_key)
def run_step(
    step: str,
    config: str | None,
    attached: str | None,
    detached: str | None,
    dry_run: bool,
    first: str | None,
    last: str | None,
    force: bool,
    force_squash: bool,
    tokens: tuple[str, ...],
) -> int:
    """Compile a config and run the step, here unless a profile says otherwise.

    KEY.PATH=VALUE overrides the config, before or after the options. A stage whose output is up to date is not run again:
    inputs, tokenizer, policy and settings count by content. STAGE is a stage or a program, such as dpo-train.
    """
    if attached and detached:
        raise UserError("-r follows a run and -b leaves it alone", remedy="give one of them", usage=True)
    where = profile.load_profile(attached or detached)
    if where.executor == "local":
        _warn_of_idle(where, force_squash)
    now = datetime.now()
    run = _compile(step, config, tokens, where, now, force=force)
    choices = choice.choose(run.plan, first, last, force=force)
    if where.executor != "local":
        return _elsewhere(run, choices, now, attached=attached is not None, dry_run=dry_run, force_squash=force_squash)
    choice.check_given(run.plan, choices, Digests(cache.DIGESTS, peek=dry_run))
    if dry_run:
        return _print_plan(run, choices)
    for line in run.kind.missing(run.config):
        raise UserError(line)
    job.write_job(run.plan, run.provenance, now)
    if detached and (child := local.detach(run.plan.job / "log.txt")):
        click.echo(f"{child}\nfollow it: tail -f {run.plan.job}/log.txt\ncancel it: kill {child}")
        return 0
    return _execute(run, choices)


@dataclass(frozen=True)
class _Run:
    """A step with its config compiled."""

    kind: kinds.Kind
    config: Any
    plan: Plan
    provenance: job.Provenance


def _compile(
    step: str, config: str | None, tokens: Sequence[str], where: profile.Profile, now: datetime, *, force: bool
) -> _Run:
    """The run that the command line asks for; what has no effect is said. `force` also sets a config's own `force`."""
    found = manifest.find_step(step, manifest.discover(manifest.configs_root()))
    kind = kinds.kind_of(found)
    path = manifest.find_config(found, config)
    known = kind.config.__dataclass_fields__
    arguments = sort_arguments([*tokens, "force=true"] if force and "force" in known else tokens, known)
    for token in arguments.ignored:
        cli.say(PROGRAM, f"warning: {redact_override(token)}: names no section of the config and is ignored")
    compiled, warnings = kind.load(path, arguments.overrides, where.cluster())
    for warning in warnings:
        cli.say(PROGRAM, f"warning: {warning}")
    plan = kind.compile(compiled, job.job_folder(found.id, now), found.folder)
    return _Run(kind, compiled, plan, job.Provenance(found.id, sys.argv, path, arguments.overrides, where))


def _execute(run: _Run, choices: Sequence[choice.Choice]) -> int:
    try:
        local.run_plan(run.plan, run.provenance.profile.env_vars, choices, lambda line: cli.say(PROGRAM, line))
    except local.StageFailed as failure:
        cli.say(PROGRAM, f"error: {failure}; the job is in {run.plan.job}")
        return failure.status
    if choices[-1].stage == run.plan.stages[-1]:
        click.echo(run.kind.report(run.plan))
    else:
        outputs = ", ".join(str(path) for path in choices[-1].stage.outputs)
        click.echo(f"stopped after {choices[-1].stage.name}: {outputs}")
    return 0


def _elsewhere(
    run: _Run, choices: Sequence[choice.Choice], now: datetime, *, attached: bool, dry_run: bool, force_squash: bool
) -> int:
    """Submit the run, and follow it where it is `attached`. Data is looked for only where the job sees our files."""
    from nemotron_dpo.steps.remote.environment import without_values

    where = run.provenance.profile
    executor = _executor(where.executor)
    if any(stage.is_given for stage in choices):
        raise UserError("--from goes on in what an earlier local run made", remedy="leave it out", usage=True)
    stages = tuple(stage.stage for stage in choices)
    made = executor.prepare(replace(run.plan, stages=stages), where, attached=attached, **_shape(run.config))
    if made.settings.idle_keys:
        cli.say(PROGRAM, f"warning: {where.source}: without effect on {where.executor}: {', '.join(made.settings.idle_keys)}")
    if dry_run:
        _print_config(run)
        for name, content in [*job.file_lines(run.plan), *executor.dry_lines(made, force_squash=force_squash)]:
            click.echo(f"\n# {name}\n{content.rstrip()}")
        return 0
    for line in run.kind.missing(run.config):
        if made.sees_our_files or " is not set: " in line:
            raise UserError(line)
    job.write_job(run.plan, replace(run.provenance, profile=without_values(where)), now)
    say = functools.partial(cli.say, PROGRAM)
    status = executor.launch(made, attached=attached, force_squash=force_squash, say=say, show=_show)
    if attached and status == 0 and stages == run.plan.stages:
        click.echo(made.report(run.kind.report))
    return status


def _executor(name: str) -> Any:
    """The module that submits there; NeMo-Run is not imported with it."""
    if name == "slurm":
        from nemotron_dpo.steps.slurm import launch
    else:
        from nemotron_dpo.steps.cloud import launch
    return launch


def _shape(config: Any) -> dict[str, Any]:
    """What an executor must know of a config: on how many nodes its processes run, and where they save."""
    cluster, checkpointing = getattr(config, "cluster", None), getattr(config, "checkpointing", None)
    return {
        "num_nodes": cluster.num_nodes if cluster else 1,
        "checkpoint_dir": checkpointing.checkpoint_dir if checkpointing else None,
    }


def _show(content: bytes) -> None:
    sys.stderr.buffer.write(content)
    sys.stderr.buffer.flush()


def _warn_of_idle(where: profile.Profile, force_squash: bool) -> None:
    """Say what has no effect in a run here."""
    if force_squash:
        cli.say(PROGRAM, "warning: --force-squash: a local run has no container image")
    if where.idle_keys():
        cli.say(PROGRAM, f"warning: {where.source}: without effect in a local run: {', '.join(where.idle_keys())}")


def _print_plan(run: _Run, choices: Sequence[choice.Choice]) -> int:
    """The merged config and the commands; what is up to date is found without long reading."""
    for line in run.kind.missing(run.config):
        cli.say(PROGRAM, f"warning: {line}")
    _print_config(run)
    decisions = choice.decide(run.plan, choices, Digests(cache.DIGESTS, peek=True))
    stages = [job.decision_line(decision) for decision in decisions]
    for name, line in [*job.file_lines(run.plan), *job.prelude_lines(run.plan), *stages]:
        click.echo(f"\n# {name}\n{line}")
    return 0


def _print_config(run: _Run) -> None:
    """The merged config with the origin of its values."""
    given = run.provenance
    origins = run.kind.origins(given.config, given.overrides, given.profile.cluster())
    merged = text.flat(redact(run.kind.tree(run.config)))
    click.echo(text.with_origins(merged, origins, given.config.parent, given.profile.name))


def _print_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def main() -> NoReturn:
    cli.run(command, PROGRAM)


def nemotron_main() -> NoReturn:
    cli.run(nemotron, "nemotron")


if __name__ == "__main__":
    main()
