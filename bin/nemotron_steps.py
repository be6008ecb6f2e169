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

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click
import orjson

from nemotron_dpo import __version__, cli, launcher
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import completion, text
from nemotron_dpo.steps.catalogue import describe, manifest

PROGRAM = "nemotron-steps"


_complete_step = cli.completer("step", lambda _: completion.steps())
_complete_config = cli.completer("step", completion.configs)
_complete_profile = cli.completer("step", lambda _: completion.profiles())
_complete_stage = cli.completer("step", completion.stages)
_complete_key = cli.completer("step", completion.keys)


@click.group(help=__doc__)
@click.version_option(__version__, prog_name=PROGRAM)
def command() -> None: ...


@click.group("nemotron", help="The program's steps: `nemotron steps --help`.")
@click.version_option(__version__, prog_name="nemotron")
def nemotron() -> None: ...


nemotron.add_command(command, "steps")


@command.command("list")
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
    steps = manifest.matching(every, category=category, consumes=consumes, produces=produces, tag=tag)
    if not steps:
        cli.say(PROGRAM, f"no step is like that; {describe.choices(every)}")
    if as_json:
        _print_json([describe.as_data(step, every) for step in steps])
    elif tree and steps:
        click.echo(describe.tree_view(steps))
    elif steps:
        click.echo(text.table([(step.id, step.name, ", ".join(step.configs)) for step in steps], ("STEP", "NAME", "CONFIGS")))


@command.command("show")
@click.argument("step", shell_complete=_complete_step)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--keys", metavar="[GLOB]", is_flag=False, flag_value="*", help="Every key of its configs, or those like GLOB.")
def show_step(step: str, as_json: bool, keys: str | None) -> None:
    """Show what a step takes, makes, and can be told."""
    steps = manifest.discover(manifest.configs_root())
    found = manifest.find_step(step, steps)
    if keys is not None:
        from nemotron_dpo.steps.compile.planners import key_lines

        click.echo("\n".join(key_lines(found, keys)))
    elif as_json:
        _print_json(describe.as_data(found, steps))
    else:
        click.echo(describe.describe(found, steps))


@command.command("help")
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
        context.invoke(show_step, step=topic, as_json=False, keys=None)


@command.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("step", shell_complete=_complete_step)
@click.option(
    "-c",
    "--config",
    type=cli.PATH,
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
@click.option("-v", "--verbose", is_flag=True, help="Name the keys of the config that have no meaning here, and why.")
@click.option("--strict", is_flag=True, help="Refuse what would be warned of.")
@click.option("--oversubscribe", is_flag=True, help="Start more processes here than there are GPUs, or CPU cores.")
@click.option("--anew", is_flag=True, help="Train from the first step, not on from a shorter run of the same settings.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B,C", help="Run at each value: see dpo-sweep --help.")
@click.option("--parallel", metavar="N", help="Points of a sweep at once.")
@click.option("--name", metavar="NAME", help="What this job is called, as run.name=NAME does.")
@click.option("--force-squash", is_flag=True, help="Rebuild the container image that a remote executor caches.")
@click.argument(
    "tokens", metavar="[KEY.PATH=VALUE | --SECTION=VALUE]...", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete_key
)
def run_step(
    attached: str | None,
    detached: str | None,
    verbose: bool,
    strict: bool,
    sweeps: tuple[str, ...],
    parallel: str | None,
    **asked: Any,
) -> int:
    """Compile a config and run the step, here unless a profile says otherwise.

    \b
      nemotron-steps run rl/nemo_rl/dpo -c tiny
      nemotron-steps run rl/nemo_rl/dpo -c default --dry-run data.train.prompt_file=prefs.jsonl
      nemotron-steps run rl/nemo_rl/dpo -c mine.yaml -b my_cluster dpo.max_num_steps=1000

    STEP is an id of `nemotron-steps list`, or its last part. KEY.PATH=VALUE overrides the config, before or after the
    options, and the last one wins; --SECTION=VALUE sets a whole section. Another --NAME is named in a warning and ignored; a
    word that is neither is refused.

    Overrides win over the profile, the profile over the config file, and that over the files it names under `defaults`. What
    a config says under run.env lies under the profile's keys; its container_image, nodes, gpus_per_node, ntasks_per_node and
    nproc_per_node win over them, env_vars merge and mounts add up.

    A stage whose output is up to date is not run again: inputs, tokenizer, policy and settings count by content. STAGE is a
    stage or a program, such as dpo-train.

    A run leaves .nemotron/jobs/TIME-STEP behind, with job.yaml, train.yaml and the logs of its stages. Profiles are the tables
    of env.toml, which NEMOTRON_ENV_FILE names or which lies here or above, up to the folder with pyproject.toml.

    Exit status: 0 done; 1 refused; 2 called wrongly; that of the stage or the job that failed (3 where training
    diverged and dpo.on_divergence=stop ended it); 130 interrupted; 143 cancelled; 124 out of time; 137 out of memory.
    """
    launcher.refuse_job()
    if sweeps:
        os.execv(sys.executable, [sys.executable, "-m", "dpo_sweep", *sys.argv[sys.argv.index("run") + 1 :]])
    if parallel is not None:
        raise UserError("is for the points of a sweep", source="--parallel", remedy="give --sweep KEY=A,B,C", usage=True)
    return _run(attached, detached, _refusing if strict else functools.partial(cli.say, PROGRAM), verbose=verbose, **asked)


def _run(attached: str | None, detached: str | None, say: Callable[[str], object], *, verbose: bool, **asked: Any) -> int:
    """Compile what is `asked` for and run it where the profile says; the status."""
    from nemotron_dpo.steps.compile.compiled_run import Request, compile_run
    from nemotron_dpo.steps.compile.job_record import claimed_job_folder, job_folder
    from nemotron_dpo.steps.executors.executor import executor_of
    from nemotron_dpo.steps.profiles.env_file import load_profile

    if attached is not None and detached is not None:
        raise UserError("-r follows a run and -b leaves it alone", remedy="give one of them", usage=True)
    profile = load_profile(detached if attached is None else attached)
    options = tuple(option for parameter in run_step.params for option in parameter.opts if option.startswith("--"))
    request = Request(argv=sys.argv, options=options, attached=detached is None, **asked)
    status = 0
    with contextlib.nullcontext(job_folder) if request.dry_run else claimed_job_folder() as job_of:
        run, executor = compile_run(request, profile, say, job_of), executor_of(profile)
        if request.dry_run:
            executor.print_plan(run, say)
        else:
            status = executor.execute(run, say)
    sys.stdout.flush()
    for line in run.idle_lines(verbose=verbose):
        say(line)
    return status


@command.command("runs", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="[ls|diff|rm|prune] [OPTIONS]", nargs=-1, type=click.UNPROCESSED)
def forward_runs(words: tuple[str, ...]) -> NoReturn:
    """List, compare and remove jobs: the program dpo-runs."""
    os.execv(sys.executable, [sys.executable, "-m", "dpo_runs", *words])


def _refusing(line: str) -> None:
    """Say `line`. Raises UserError where it is a warning."""
    if line.startswith("warning: "):
        raise UserError(line.removeprefix("warning: "))
    cli.say(PROGRAM, line)


def _print_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def main() -> NoReturn:
    cli.run(command, PROGRAM)


def nemotron_main() -> NoReturn:
    cli.run(nemotron, "nemotron")


if __name__ == "__main__":
    main()
