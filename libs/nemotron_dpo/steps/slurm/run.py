"""A compiled run on Slurm: its script printed, or submitted and, where it is attached, followed to its exit status."""

from __future__ import annotations

import sys
from dataclasses import replace

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import job
from nemotron_dpo.steps.compiled import Run, Say, forecast_parts, print_config, print_parts
from nemotron_dpo.steps.slurm import launch


def run_on_slurm(run: Run, say: Say) -> int:
    """Submit it, or print what would be. Data is looked for only where the cluster sees our files."""
    request, where = run.request, run.profile
    made = _prepared(run)
    if made.settings.idle_keys:
        say(f"warning: {where.source}: without effect on Slurm: {', '.join(made.settings.idle_keys)}")
    missing = run.kind.missing(run.config, look=made.settings.tunnel == "local")
    if request.dry_run:
        for line in missing:
            say(f"warning: {line}")
        print_config(run)
        print_parts(
            [*forecast_parts(run), *job.file_lines(run.plan), *launch.dry_lines(made, force_squash=request.force_squash)]
        )
        return 0
    for line in missing:
        raise UserError(line)
    job.write_job(run.plan, replace(run.provenance, profile=launch.without_values(where)), run.created)
    status = launch.launch(made, attached=request.attached, force_squash=request.force_squash, say=say, show=_show)
    if request.attached and status == 0 and not run.ends_early:
        print(made.places.text(run.kind.report(run.plan)))
    return status


def _prepared(run: Run) -> launch.Job:
    """The job of those stages that count, on as many nodes as the config says."""
    if any(stage.is_given for stage in run.choices):
        raise UserError("--from goes on in what an earlier local run made", remedy="leave it out", usage=True)
    plan = replace(run.plan, stages=tuple(stage.stage for stage in run.choices))
    cluster, checkpointing = getattr(run.config, "cluster", None), getattr(run.config, "checkpointing", None)
    return launch.prepare(
        plan,
        run.profile,
        num_nodes=cluster.num_nodes if cluster else 1,
        checkpoint_dir=checkpointing.checkpoint_dir if checkpointing else None,
        attached=run.request.attached,
    )


def _show(content: bytes) -> None:
    sys.stderr.buffer.write(content)
    sys.stderr.buffer.flush()
