"""What every dry run prints, whatever the executor: the merged config with origins, the estimate, and titled parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron_dpo.config import leaves, redact
from nemotron_dpo.steps import text
from nemotron_dpo.steps.compile.compiled_run import CompiledRun


def print_config(run: CompiledRun) -> None:
    """The merged config with the origin of its values, then where it runs."""
    given, profile = run.provenance, run.profile
    origins = run.planner.origins(given.config, given.overrides, profile.base(), shipped=run.step_folder)
    settings = {key: value for key, value in profile.settings.items() if key != "extends"}
    origins |= {f"run.env.{key}": profile.origins.get(key, "profile") for key in leaves(settings)}
    for name, key in profile.sizes().items():
        if origins.get(f"cluster.{name}") == "profile":
            origins[f"cluster.{name}"] = origins[f"run.env.{key}"]
    merged = text.flat(redact(run.planner.tree(run.config) | ({"run": {"env": settings}} if settings else {})))
    print(text.with_origins(merged, origins, given.config.parent, profile.name))


def forecast_parts(run: CompiledRun, pairs: Path | None = None) -> list[tuple[str, str]]:
    """What the run will cost, for steps that train; `pairs` is the tokenized training set where there is one."""
    if run.planner.forecast is None:
        return []
    return [("estimate", run.planner.forecast(run.config, run.profile, pairs))]


def print_parts(parts: Sequence[tuple[str, str]]) -> None:
    """(what, text), each under its name."""
    for name, content in parts:
        print(f"\n# {name}\n{content.rstrip()}")
