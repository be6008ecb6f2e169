"""From layers to a checked RunConfig; what is wrong is named with the file and line, or the override."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemotron_dpo.config.build import build_plain, build_run
from nemotron_dpo.config.checks import Remark, check
from nemotron_dpo.config.dpo import OwnObjective
from nemotron_dpo.config.dpo_spellings import trl_remarks
from nemotron_dpo.config.dump import plain_tree, run_tree
from nemotron_dpo.config.idle import switched_off, taken_elsewhere
from nemotron_dpo.config.layer import ConfigLayer, origin
from nemotron_dpo.config.merge import resolve_layers
from nemotron_dpo.config.origins import origins
from nemotron_dpo.config.read_layers import read_layers
from nemotron_dpo.config.redact import hide_secrets
from nemotron_dpo.config.run_env import split_run_env
from nemotron_dpo.config.schema import RunConfig
from nemotron_dpo.config.spellings import canonical
from nemotron_dpo.config.tree import Tree
from nemotron_dpo.errors import UserError


@dataclass(frozen=True)
class IdleKey:
    """A known `key` that changes nothing here, for a `reason`.

    It is `unexpected` where it was typed for this run, or where its section was never enabled.
    """

    key: str
    source: str
    line: int | None
    reason: str
    unexpected: bool

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f'{where}: "{self.key}" has no meaning here: it {self.reason}'


def load_run(
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    with_run_env: bool = False,
    validation: Collection[str] | None = None,
    shipped: Path | None = None,
) -> tuple[RunConfig, list[str]]:
    """Merge `config` (after the files it names under `defaults`) and dotlist `overrides` into a checked RunConfig.

    `base` lies under the file (a profile's settings), `shipped` is the folder of the step's configs, `validation` names the
    sets that the run validates where these are not the config's. Returns the run with the warnings: one for each unexpected
    key without meaning, and one for each remark of `check`; run.env has meaning where the caller reads it `with_run_env`.
    Raises UserError naming the file and line, or the override, for anything unreadable, unknown, of a wrong type or range, or
    that `check` refuses.
    """
    run, idle, remarks = _loaded(config, overrides, base, shipped, with_run_env=with_run_env, validation=validation)
    return run, [*(str(key) for key in idle if key.unexpected), *remarks]


def idle_keys(
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    with_run_env: bool = False,
    shipped: Path | None = None,
) -> list[IdleKey]:
    """The keys without meaning here of the run that `load_run` makes of the same arguments, but those it warns of."""
    _, idle, _ = _loaded(config, overrides, base, shipped, with_run_env=with_run_env)
    return [key for key in idle if not key.unexpected]


def load_run_and_idle(
    config: str | Path | None, overrides: Sequence[str], validation: Collection[str], own: OwnObjective | None = None
) -> tuple[RunConfig, list[str], list[IdleKey]]:
    """What `load_run` and `idle_keys` give, of one reading, for a run that validates the sets named in `validation`.

    It trains the user's `own` objective where there is one.
    """
    run, idle, remarks = _loaded(config, overrides, None, None, with_run_env=False, validation=validation, own=own)
    warnings = [*(str(key) for key in idle if key.unexpected), *remarks]
    return run, warnings, [key for key in idle if not key.unexpected]


def _loaded(
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None,
    shipped: Path | None,
    *,
    with_run_env: bool,
    validation: Collection[str] | None = None,
    own: OwnObjective | None = None,
) -> tuple[RunConfig, list[IdleKey], list[str]]:
    """The run, its keys without meaning, and the remarks on it."""
    layers = read_layers(config, overrides, base, shipped)
    try:
        tree = resolve_layers(layers)
        tree = split_run_env(tree)[0] if with_run_env else tree
        taken = taken_elsewhere(tree, layers)
        tree, replaced = canonical(_without_base_run(tree, base or {}))
        run, idle = build_run(tree, own)
    except UserError as error:
        raise error if error.source else _located(error, layers) from None
    try:
        remarks = check(run, [name for name, _ in run.data.validation] if validation is None else validation)
        sections = [layer.plain.get("dpo") for layer in layers if isinstance(layer.plain, dict)]
        remarks += trl_remarks([one for one in sections if isinstance(one, dict)], averages=bool(run.dpo.sft_average_log_probs))
    except UserError as error:
        raise _located(error, layers, exact=True) from None
    unsaid = switched_off(run, layers)
    reasons = {key: reason for key, reason in {**idle, **replaced, **unsaid}.items() if key not in taken}
    return run, _idle(reasons, unsaid, layers), [_placed(remark, layers) for remark in remarks]


def _without_base_run(tree: Tree, base: Mapping[str, Any]) -> Tree:
    """`tree` without the section run that `base` gave it for interpolations alone: a config's own is not dropped."""
    return {key: value for key, value in tree.items() if key != "run" or value != base.get("run")}


def load_plain(
    cls: type[Any],
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    shipped: Path | None = None,
) -> tuple[Any, list[str]]:
    """As `load_run`, for another step's dataclass `cls`; of `base` only the sections that it has are read."""
    layers = read_layers(config, overrides, _sections(cls, base), shipped)
    try:
        built = build_plain(cls, _settings(layers))
    except UserError as error:
        raise error if error.source else _located(error, layers) from None
    return built, [str(key) for key in _plain_idle(cls, layers) if key.unexpected]


def plain_idle_keys(
    cls: type[Any],
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    shipped: Path | None = None,
) -> list[IdleKey]:
    """As `idle_keys`, for `load_plain`: the fields of `cls` that are marked so."""
    keys = _plain_idle(cls, read_layers(config, overrides, _sections(cls, base), shipped))
    return [key for key in keys if not key.unexpected]


def _plain_idle(cls: type[Any], layers: Sequence[ConfigLayer]) -> list[IdleKey]:
    given = _settings(layers)
    reasons = {item.name: item.metadata["idle"] for item in fields(cls) if "idle" in item.metadata and item.name in given}
    return _idle(reasons, (), layers)


def run_origins(
    config: str | Path | None,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    shipped: Path | None = None,
) -> dict[str, str]:
    """Where each value of the run that `load_run` makes of the same arguments comes from; see `origins`."""
    layers = read_layers(config, overrides, base, shipped)
    return origins(layers, lambda some: run_tree(build_run(canonical(_settings(some))[0])[0]))


def plain_origins(
    cls: type[Any],
    config: str | Path,
    overrides: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    shipped: Path | None = None,
) -> dict[str, str]:
    """As `run_origins`, for `load_plain`."""
    layers = read_layers(config, overrides, _sections(cls, base), shipped)
    return origins(layers, lambda some: plain_tree(build_plain(cls, _settings(some))))


def _settings(layers: Sequence[ConfigLayer]) -> dict[str, Any]:
    """What the layers say of the run itself."""
    return split_run_env(resolve_layers(layers))[0]


def _sections(cls: type[Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: values for name, values in (base or {}).items() if name in cls.__dataclass_fields__}


def _located(error: UserError, layers: Sequence[ConfigLayer], *, exact: bool = False) -> UserError:
    """`error` with its place; what settings come to together may rest on a default, which has none (`exact`)."""
    source, line = origin(error.field, layers, exact=exact) if error.field else (None, None)
    message, remedy = hide_secrets(error.message, error.field or ""), error.remedy and hide_secrets(error.remedy, "")
    return UserError(message, source=source, line=line, field=error.field, remedy=remedy)


def _placed(remark: Remark, layers: Sequence[ConfigLayer]) -> str:
    return str(_located(UserError(remark[1], field=remark[0]), layers, exact=True))


def _idle(reasons: Mapping[str, str], unsaid: Collection[str], layers: Sequence[ConfigLayer]) -> list[IdleKey]:
    typed = {layer.source for layer in layers if not layer.is_file}
    places = [(key, *origin(key, layers), reason) for key, reason in reasons.items()]
    return [
        IdleKey(key, source or "config", line, reason, source in typed or key in unsaid) for key, source, line, reason in places
    ]
