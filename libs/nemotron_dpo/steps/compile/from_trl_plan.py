"""How env/from_trl is read and planned: a `-c` that is none of the step's own configs is the file to convert."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dpo.config import load_plain, plain_origins
from nemotron_dpo.config.steps import FromTrlConfig
from nemotron_dpo.steps.compile.single_stage_plans import job_plan
from nemotron_dpo.steps.compile.stages import Plan, Stage


def load(
    config: Path, overrides: Sequence[str], base: Mapping[str, Any] | None = None, *, shipped: Path | None = None
) -> tuple[FromTrlConfig, list[str]]:
    """What the step is told by `config`, which may be theirs, and `overrides`. Raises UserError."""
    own, base = _own(config, base, shipped)
    return load_plain(FromTrlConfig, own, overrides, base, shipped=shipped)


def origins(
    config: Path, overrides: Sequence[str], base: Mapping[str, Any] | None = None, *, shipped: Path | None = None
) -> dict[str, str]:
    """Where each value of `load` comes from."""
    own, base = _own(config, base, shipped)
    return plain_origins(FromTrlConfig, own, overrides, base, shipped=shipped)  # type: ignore[arg-type] - None is no file at all


def _own(config: Path, base: Mapping[str, Any] | None, shipped: Path | None) -> tuple[Path | None, Mapping[str, Any] | None]:
    if shipped is None or config.resolve().parent == shipped.resolve():
        return config, base
    return None, {**(base or {}), "config": str(config)}


def plan_from_trl(config: FromTrlConfig, job: Path, folder: Path) -> Plan:
    """One command that writes our config. It has no outputs in the plan, so it is never up to date and runs every time."""
    theirs, target = config.config or "THEIRS.yaml", target_of(config)
    argv = [sys.executable, "-m", "nemotron_dpo.steps.from_trl", theirs, "-o", str(target)]
    given = {"--processes": config.processes, "--num-pairs": config.num_pairs, "--train-data": config.train_data,
             "--validation-data": config.validation_data, "--program": config.program}  # fmt: skip
    argv += [word for option, value in given.items() if value is not None for word in (option, str(value))]
    argv += [word for key in config.ignore for word in ("--ignore", key)]
    argv += ["--force"] if config.force else []
    return job_plan(config, job, (Stage("from-trl", tuple(argv)),), {"config": target})


def target_of(config: FromTrlConfig) -> Path:
    """The file that is written: here, named after theirs."""
    return Path(config.output_path or f"dpo.{Path(config.config or 'theirs').stem}.yaml")


def missing(config: FromTrlConfig, *, look: bool = True) -> list[str]:
    """Why the step cannot run yet, a line with its remedy for each reason."""
    if config.config is None:
        return ["config is not set: give -c THEIRS.yaml"]
    lines = []
    if look and not Path(config.config).is_file():
        lines.append(f"{config.config}: no such file: it is config")
    if look and target_of(config).exists() and not config.force:
        lines.append(f"{target_of(config)}: exists already: force=true replaces it, output_path=FILE writes another")
    return lines


def report(plan: Plan, config: FromTrlConfig, typed: Sequence[str]) -> str:
    """Where the config lies, and what comes next."""
    path = plan.artifacts["config"]
    return f"config: {path}\nnext: nemotron-steps run rl/nemo_rl/dpo -c {path} --dry-run"
