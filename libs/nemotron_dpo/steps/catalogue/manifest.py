"""Step manifests: find and read every `step.toml` under the configs, and resolve step and config names that a user typed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo import documents
from nemotron_dpo.errors import UserError

# the tables of a manifest, and the texts that each has
_TABLES = {
    "consumes": ("type",),
    "produces": ("type",),
    "parameters": ("name",),
    "strategies": ("when", "then"),
    "errors": ("name", "recovery"),
}


@dataclass(frozen=True)
class Step:
    """One step. The tuples hold the tables of its manifest unchanged, and `folder` is where the manifest lies."""

    id: str
    name: str
    category: str
    description: str
    tags: tuple[str, ...]
    consumes: tuple[dict[str, Any], ...]
    produces: tuple[dict[str, Any], ...]
    parameters: tuple[dict[str, Any], ...]
    strategies: tuple[dict[str, Any], ...]
    errors: tuple[dict[str, Any], ...]
    resources: dict[str, Any]
    folder: Path

    @property
    def configs(self) -> tuple[str, ...]:
        """Names of the configs beside the manifest, `default` first."""
        return tuple(sorted((p.stem for p in self.folder.glob("*.yaml")), key=lambda name: (name != "default", name)))


def configs_root() -> Path:
    """The folder of shipped configs: in an installed wheel it lies in the package, in a checkout at the root."""
    here = Path(__file__).resolve()
    installed = here.parents[1] / "configs"
    return installed if installed.is_dir() else here.parents[4] / "configs"


def discover(root: Path) -> list[Step]:
    """Every step under `root`, sorted by id. Raises UserError for a manifest that is no TOML or lacks a key."""
    return sorted((_read(path) for path in root.rglob("step.toml")), key=lambda step: step.id)


def matching(
    steps: list[Step], *, category: str | None, consumes: str | None, produces: str | None, tag: str | None
) -> list[Step]:
    """Those of `steps` that match every argument that is not None."""
    return [
        step
        for step in steps
        if category in (None, step.category)
        and (tag is None or tag in step.tags)
        and (consumes is None or consumes in [item["type"] for item in step.consumes])
        and (produces is None or produces in [item["type"] for item in step.produces])
    ]


def find_step(name: str, steps: list[Step]) -> Step:
    """The step whose id is `name`; else the only step whose id ends in `/name`.

    Raises UserError where several ids end so, and where none does; the error then suggests the most similar name.
    """
    exact = [step for step in steps if step.id == name]
    ending = exact or [step for step in steps if step.id.endswith(f"/{name}")]
    if len(ending) == 1:
        return ending[0]
    how = "`nemotron-steps list` shows all"
    if ending:
        raise UserError(f"is ambiguous ({', '.join(step.id for step in ending)})", source=name, remedy="give more of it")
    names = {key: step.id for step in steps for key in (step.id, step.id.rpartition("/")[2])}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    guess = f"did you mean {names[close[0]]}? " if close else ""
    raise UserError("no such step", source=name or "STEP", remedy=f"{guess}{how}")


def find_config(step: Step, name_or_path: str | None) -> Path:
    """The config file that the user means: an existing path, else a name among the step's configs, `default` for None.

    Raises UserError where there is no such file; it suggests the most similar config of the step.
    """
    name = "default" if name_or_path is None else name_or_path
    path = Path(name)
    if path.is_file():
        return path
    beside = step.folder / f"{name.removesuffix('.yaml')}.yaml"
    if "/" not in name and beside.is_file():
        return beside
    close = difflib.get_close_matches(name, step.configs, n=1, cutoff=0.4)
    guess = f"did you mean {close[0]}? " if close else ""
    remedy = f"{guess}{step.id} has {', '.join(step.configs)}; or give a path"
    if name and path.is_dir():
        raise UserError("is a folder where a YAML file is due", source=name)
    if name and path.name != name:
        raise UserError("no such file", source=name, remedy=f"configs of {step.id} by name: {', '.join(step.configs)}")
    raise UserError("no such config", source=name or "-c", remedy=remedy)


def _read(path: Path) -> Step:
    try:
        tree = documents.read_toml(path)
        head = tree["step"]
        values: dict[str, Any] = {name: _text(head[name], name) for name in ("id", "name", "category", "description")}
        for name, keys in _TABLES.items():
            values[name] = _tables(tree.get(name, []), name, keys)
        values["resources"] = dict(tree.get("resources", {}))
        return Step(**values, tags=tuple(_text(tag, "a tag") for tag in head.get("tags", [])), folder=path.parent)
    except KeyError as error:
        raise UserError(f"the manifest lacks {error}", source=path) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is no manifest ({error})", source=path) from None


def _tables(given: Any, name: str, keys: Sequence[str]) -> tuple[dict[str, Any], ...]:
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise TypeError(f"{name} is no list of tables")
    for table in given:
        for key in (*keys, *({"description"} & table.keys())):
            _text(table[key], f"{name}.{key}")
        if not isinstance(table.get("choices", []), list):
            raise TypeError(f"{name}.choices is no list")
    return tuple(given)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value
