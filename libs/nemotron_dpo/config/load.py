"""From layers to a checked RunConfig and back to YAML; what is wrong is named with the file and line, or the override."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_dpo.config.build import build_plain, build_run
from nemotron_dpo.config.checks import Remark, check
from nemotron_dpo.config.idle import switched_off
from nemotron_dpo.config.layer import ConfigLayer, origin
from nemotron_dpo.config.merge import read_layers, resolve_layers
from nemotron_dpo.config.origins import origins
from nemotron_dpo.config.redact import hide_secrets
from nemotron_dpo.config.run_env import split_run_env
from nemotron_dpo.config.schema import RunConfig
from nemotron_dpo.config.spellings import canonical
from nemotron_dpo.errors import UserError


def load_run(
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    with_run_env: bool = False,
    validation: Collection[str] | None = None,
) -> tuple[RunConfig, list[str]]:
    """Merge `config` (after the files it names under `defaults`) and dotlist `overrides` into a checked RunConfig.

    `base` lies under the file (a profile's settings), `validation` names the sets that the run validates where these are not
    the config's. Returns the run with the warnings: one line a source, naming known keys that have no effect here, and one for
    each remark of `check`; run.env has effect where the caller reads it `with_run_env`. Raises UserError naming the file
    and line, or the override, for anything unreadable, unknown, of a wrong type or range, or that `check` refuses.
    """
    layers = read_layers(config, overrides, base)
    try:
        tree = resolve_layers(layers)
        tree, replaced = canonical(split_run_env(tree)[0] if with_run_env else tree)
        run, idle = build_run(tree)
    except UserError as error:
        raise error if error.source else _located(error, layers) from None
    try:
        remarks = check(run, [name for name, _ in run.data.validation] if validation is None else validation)
    except UserError as error:
        raise _located(error, layers, exact=True) from None
    idle = [*idle, *replaced, *switched_off(run, layers)]
    return run, [*_warnings(idle, layers), *(_placed(remark, layers) for remark in remarks)]


def load_plain(
    cls: type[Any], config: str | Path | None, overrides: Sequence[str], base: Mapping[str, Any] | None = None
) -> tuple[Any, list[str]]:
    """As `load_run`, for another step's dataclass `cls`; of `base` only the sections that it has are read."""
    layers = read_layers(config, overrides, _sections(cls, base))
    try:
        return build_plain(cls, _settings(layers)), []
    except UserError as error:
        raise error if error.source else _located(error, layers) from None


def run_origins(config: str | Path | None, overrides: Sequence[str], base: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Where each value of the run that `load_run` makes of the same arguments comes from; see `origins`."""
    layers = read_layers(config, overrides, base)
    return origins(layers, lambda some: run_tree(build_run(canonical(_settings(some))[0])[0]))


def plain_origins(
    cls: type[Any], config: str | Path, overrides: Sequence[str], base: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """As `run_origins`, for `load_plain`."""
    layers = read_layers(config, overrides, _sections(cls, base))
    return origins(layers, lambda some: asdict(build_plain(cls, _settings(some))))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain data as YAML, in its own order."""
    from yaml import safe_dump

    return safe_dump(dict(tree), sort_keys=False, width=120)


def dump_run(run: RunConfig) -> str:
    """`run` as YAML that `load_run` reads back to an equal RunConfig."""
    return to_yaml(run_tree(run))


def run_tree(run: RunConfig) -> dict[str, Any]:
    """`run` as plain data in the spelling of a config file."""
    tree = asdict(run)
    tree["data"]["validation"] = dict(tree["data"]["validation"])
    scheduler = tree["policy"]["scheduler"]
    if scheduler["name"] == "torch":
        chain = [{"name": f"torch.optim.lr_scheduler.{name}", "kwargs": kwargs} for name, kwargs in scheduler["schedulers"]]
        tree["policy"]["scheduler"] = [*chain, {"milestones": list(scheduler["milestones"])}]
    else:
        del scheduler["schedulers"], scheduler["milestones"]
    optimizer = tree["policy"]["optimizer"]
    optimizer["betas"] = list(optimizer["betas"])
    return tree


def _settings(layers: Sequence[ConfigLayer]) -> dict[str, Any]:
    """What the layers say of the run itself."""
    return split_run_env(resolve_layers(layers))[0]


def _sections(cls: type[Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: values for name, values in (base or {}).items() if name in cls.__dataclass_fields__}


def _located(error: UserError, layers: Sequence[ConfigLayer], *, exact: bool = False) -> UserError:
    """`error` with its place; what settings come to together may rest on a default, which has none (`exact`)."""
    source, line = origin(error.field, layers, exact=exact) if error.field else (None, None)
    return UserError(
        hide_secrets(error.message, error.field or ""), source=source, line=line, field=error.field, remedy=error.remedy
    )


def _placed(remark: Remark, layers: Sequence[ConfigLayer]) -> str:
    return str(_located(UserError(remark[1], field=remark[0]), layers, exact=True))


def _warnings(idle: Sequence[str], layers: Sequence[ConfigLayer]) -> list[str]:
    by_source: dict[str, list[str]] = {}
    for key in idle:
        by_source.setdefault(origin(key, layers)[0] or "config", []).append(key)
    return [f"{source}: known but without effect here: {', '.join(keys)}" for source, keys in by_source.items()]
