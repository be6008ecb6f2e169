#!/usr/bin/env python3
"""Compile a step's config and run its stages.

\b
  nemotron-steps list
  nemotron-steps show rl/nemo_rl/dpo
  nemotron-steps run rl/nemo_rl/dpo -c tiny
  nemotron-steps run rl/nemo_rl/dpo -c default --dry-run data.train.prompt_file=prefs.jsonl

`nemotron steps ...` is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import click
import orjson

from nemotron_dpo import __version__, cli
from nemotron_dpo.config import RunConfig, load_run, redact, redact_override, run_tree
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import job, local, manifest, plan, profile, summary, text
from nemotron_dpo.steps.arguments import sort_arguments

PROGRAM = "nemotron-steps"
_HELP = {"help_option_names": ["-h", "--help"]}


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
    steps = [
        step
        for step in manifest.discover(manifest.configs_root())
        if category in (None, step.category)
        and (tag is None or tag in step.tags)
        and (consumes is None or consumes in [item["type"] for item in step.consumes])
        and (produces is None or produces in [item["type"] for item in step.produces])
    ]
    if as_json:
        _print_json([text.manifest(step) for step in steps])
    elif tree:
        click.echo(text.tree_view(steps))
    else:
        click.echo(text.table([(step.id, step.name, ", ".join(step.configs)) for step in steps], ("STEP", "NAME", "CONFIGS")))


@command.command("show", context_settings=_HELP)
@click.argument("step")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show_step(step: str, as_json: bool) -> None:
    """Show what a step takes, makes, and can be told."""
    found = manifest.find_step(step, manifest.discover(manifest.configs_root()))
    if as_json:
        _print_json(text.manifest(found))
    else:
        click.echo(text.describe(found))


@command.command("run", context_settings={**_HELP, "ignore_unknown_options": True})
@click.argument("step")
@click.option("-c", "--config", metavar="NAME|PATH", help="A config of the step, or a YAML file; default: default.")
@click.option("-r", "--run", "attached", metavar="PROFILE", help="Run where PROFILE of env.toml says, and follow it.")
@click.option("-b", "--batch", "detached", metavar="PROFILE", help="Submit where PROFILE of env.toml says, and return.")
@click.option("-d", "--dry-run", is_flag=True, help="Print the merged config and the exact commands; touch nothing.")
@click.option("--force-squash", is_flag=True, help="Rebuild the container image that a remote executor caches.")
@click.argument("tokens", metavar="[KEY.PATH=VALUE]...", nargs=-1, type=click.UNPROCESSED)
def run_step(
    step: str,
    config: str | None,
    attached: str | None,
    detached: str | None,
    dry_run: bool,
    force_squash: bool,
    tokens: tuple[str, ...],
) -> int:
    """Compile a config and run the step, here unless a profile says otherwise.

    KEY.PATH=VALUE overrides the config, before or after the options.
    """
    if attached and detached:
        raise UserError("-r follows a run and -b leaves it alone", remedy="give one of them", usage=True)
    where = profile.load_profile(attached or detached)
    _refuse_remote(where, force_squash)
    found = manifest.find_step(step, manifest.discover(manifest.configs_root()))
    path = manifest.find_config(found, config)
    run, overrides = _compile(path, tokens, where)
    now = datetime.now()
    compiled = plan.compile_plan(run, job.job_folder(found.id, now), found.folder)
    if dry_run:
        return _print_plan(compiled, run)
    for line in plan.missing_inputs(run):
        raise UserError(line)
    job.write_job(compiled, job.Provenance(found.id, sys.argv, path, overrides, where), run, now)
    if detached and (child := local.detach(compiled.job / "log.txt")):
        click.echo(f"{child}\nfollow it: tail -f {compiled.job}/log.txt\ncancel it: kill {child}")
        return 0
    return _execute(compiled, where.env_vars)


def _compile(path: Path, tokens: Sequence[str], where: profile.Profile) -> tuple[RunConfig, Sequence[str]]:
    """The run and the overrides found among `tokens`; what has no effect is said."""
    arguments = sort_arguments(tokens, RunConfig.__dataclass_fields__)
    for token in arguments.ignored:
        cli.say(PROGRAM, f"warning: {redact_override(token)}: names no section of the config and is ignored")
    run, warnings = load_run(path, arguments.overrides, where.cluster())
    for warning in warnings:
        cli.say(PROGRAM, f"warning: {warning}")
    return run, arguments.overrides


def _execute(compiled: plan.Plan, env: Mapping[str, str]) -> int:
    try:
        local.run_plan(compiled, env)
    except local.StageFailed as failure:
        cli.say(PROGRAM, f"error: {failure}; the job is in {compiled.job}")
        return failure.status
    click.echo(summary.summarize(summary.read_metrics(compiled.run_dir / "metrics.jsonl"), compiled.export_dir))
    return 0


def _refuse_remote(where: profile.Profile, force_squash: bool) -> None:
    if where.executor != "local":
        raise UserError(f"executor {where.executor} is not built yet", source=where.name, remedy="use a local profile")
    if force_squash:
        cli.say(PROGRAM, "warning: --force-squash: a local run has no container image")
    if where.idle_keys():
        cli.say(PROGRAM, f"warning: {where.source}: without effect in a local run: {', '.join(where.idle_keys())}")


def _print_plan(compiled: plan.Plan, run: RunConfig) -> int:
    for line in plan.missing_inputs(run):
        cli.say(PROGRAM, f"warning: {line}")
    click.echo(text.table(text.flat(redact(run_tree(run)))))
    for name, line in [*job.file_lines(compiled), *job.plan_lines(compiled)]:
        click.echo(f"\n# {name}\n{line}")
    return 0


def _print_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def main() -> NoReturn:
    cli.run(command, PROGRAM)


def nemotron_main() -> NoReturn:
    cli.run(nemotron, "nemotron")


if __name__ == "__main__":
    main()
