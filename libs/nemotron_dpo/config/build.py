"""Build a RunConfig from a canonical tree: check types and choices, refuse unknown keys, collect keys without effect."""

from __future__ import annotations

import difflib
import operator
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from nemotron_dpo.config.dpo import OwnObjective, is_built
from nemotron_dpo.config.foreign_keys import NO_MEANING, REFUSED
from nemotron_dpo.config.held_out import check_held_out
from nemotron_dpo.config.idle import idle_settings
from nemotron_dpo.config.key_names import foreign_prefix, known_keys, leaves, nearest
from nemotron_dpo.config.schema import DataConfig, DatasetConfig, PeftConfig, RunConfig
from nemotron_dpo.config.tree import Tree
from nemotron_dpo.config.values import WORDS, as_kind, kinds_of, spelled
from nemotron_dpo.errors import UserError

_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", operator.ge),
    "more_than": ("more than", operator.gt),
    "less_than": ("less than", operator.lt),
}


def build_run(tree: Tree, own: OwnObjective | None = None) -> tuple[RunConfig, dict[str, str]]:
    """The RunConfig that the canonical `tree` describes, and the keys in it without effect (dotted key -> reason).

    It trains the user's `own` objective where there is one.

    Takes the known keys out of `tree`. Raises UserError for a wrong type or value, a setting that is not built, and an unknown
    key; the field of the error is the dotted key.
    """
    _refuse_unbuilt(tree)
    length = tree["data"].pop("max_input_seq_length", None) if isinstance(tree.get("data"), dict) else None
    run = _build(RunConfig, tree, "")
    run = replace(run, dpo=replace(run.dpo, own_objective=own))
    _refuse_unbuilt(tree)  # again: _build has put the remaining keys of every set directly under data.validation
    _check_peft(run.policy.megatron_cfg.peft)
    _check_length(length, run.policy.max_total_sequence_length)
    check_held_out(run.data)
    idle: dict[str, str] = {}
    for key in leaves(tree):
        prefix = foreign_prefix(key)
        if prefix is None:
            raise UserError("is no known key", field=key, remedy=nearest(key))
        idle[prefix] = NO_MEANING.get(prefix, "asks for nothing")
    return run, dict(sorted({**idle, **idle_settings(run)}.items()))


def _check_peft(peft: PeftConfig, section: str = "policy.megatron_cfg.peft") -> None:
    if peft.enabled and peft.target_modules and peft.exclude_modules:
        remedy = "give them with target_modules=[]"
        raise UserError("are named beside target_modules", field=f"{section}.exclude_modules", remedy=remedy)
    if peft.enabled and peft.dropout > 0:
        raise UserError(f"is {peft.dropout}, which is not built", field=f"{section}.dropout", remedy="leave it 0.0")


def _check_length(length: Any, most: int) -> None:
    if length not in (None, most):
        message = f"is {spelled(length)}, and policy.max_total_sequence_length, which bounds a pair here, is {most}"
        raise UserError(message, field="data.max_input_seq_length", remedy="set them to one value")


def build_plain(cls: Any, tree: Tree) -> Any:
    """The dataclass `cls` that the plain `tree` describes, for steps whose keys have only one spelling.

    Raises UserError for a wrong type or value and for an unknown key; the field of the error is the dotted key.
    """
    built = _build(cls, tree, "")
    if tree:
        section, value = next(iter(tree.items()))
        while isinstance(value, dict) and value:
            name, value = next(iter(value.items()))
            section = f"{section}.{name}"
        known = known_keys(cls)
        close = difflib.get_close_matches(section, known, n=1, cutoff=0.5)
        remedy = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
        raise UserError("is no known key", field=section, remedy=remedy)
    return built


def _refuse_unbuilt(tree: Tree) -> None:
    for refused in REFUSED:
        value = _select(tree, refused.key)
        if value is not None and value not in refused.harmless:
            remedy = refused.remedy or f"leave it {spelled(refused.harmless[0])}"
            message = f"is {spelled(value)}, which {refused.why} and is not built"
            raise UserError(message, field=refused.key, remedy=remedy)


def _select(tree: Any, key: str) -> Any:
    """The value of the dotted `key`; None if `tree` does not have it."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _build(cls: Any, tree: Tree, prefix: str) -> Any:
    """Build `cls` from the keys of `tree` that it knows, and delete them there. The caller checks the keys that remain."""
    hints = kinds_of(cls)
    values: Tree = {}
    for item in fields(cls):
        key = f"{prefix}{item.name}"
        if item.name not in tree or not is_built(item):
            continue
        if is_dataclass(hints[item.name]):
            section = tree[item.name]
            if section is not None:
                values[item.name] = _build(hints[item.name], as_kind(section, dict, key), f"{key}.")
            if not section:
                del tree[item.name]
        elif cls is DataConfig and item.name == "validation":
            values["validation"] = _validation(tree.pop("validation"), tree)
        elif cls is DatasetConfig and item.name == "parts":
            values["parts"] = _parts(tree.pop("parts"), tree, prefix)
        else:
            values[item.name] = _checked(item, _convert(tree.pop(item.name), hints[item.name], key), key)
    return cls(**values)


def _validation(sets: Tree, tree: Tree) -> tuple[tuple[str, DatasetConfig], ...]:
    for name in sets:
        if not re.fullmatch(r"[\w.-]+", str(name)):
            message = f"has a set called {name!r}: its name is part of file and metric names"
            raise UserError(message, field="data.validation", remedy="use letters, digits, and . _ -")
    built = tuple((str(name), _build(DatasetConfig, rows, f"data.validation.{name}.")) for name, rows in sets.items())
    if left := _left(sets.values()):
        tree["validation"] = left
    return tuple((name, rows) for name, rows in built if rows.path is not None or rows.parts or _is_held_out(rows))


def _is_held_out(dataset: DatasetConfig) -> bool:
    """Whether keys of a share are set, which are looked at later."""
    return dataset.split_from_train is not None or dataset.split_seed is not None


def _parts(parts: list[Tree], tree: Tree, prefix: str) -> tuple[DatasetConfig, ...]:
    built = tuple(_build(DatasetConfig, part, f"{prefix}{number}.") for number, part in enumerate(parts))
    tree |= _left(parts)
    return built


def _left(sets: Iterable[Tree]) -> Tree:
    """The keys that were not built, of all `sets` together."""
    left: Tree = {}
    for key, value in (item for rows in sets for item in rows.items()):
        left[key] = value if left.get(key) is None else left[key]  # a null of one set must not hide another set's value
    return left


def _checked(item: Field[Any], value: Any, key: str) -> Any:
    if item.metadata.get("is_path") and value == "":
        raise UserError("is empty", field=key, remedy="name one; is an environment variable of it set to nothing?")
    parts = value if isinstance(value, tuple) else (value,)
    for name, (words, holds) in _BOUNDS.items():
        bound = item.metadata.get(name)
        if bound is not None and not all(part is None or holds(part, bound) for part in parts):
            shown = list(value) if isinstance(value, tuple) else value
            remedy = item.metadata.get("remedy")
            raise UserError(f"is {shown} where {words} {bound} is due", field=key, remedy=remedy)
    return value


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [kind for kind in args if kind is not type(None)]
        fitting = [kind for kind in kinds if _may_be(value, kind)]
        return _convert(value, [*fitting, *kinds][0], key)
    if origin is Literal:
        if isinstance(value, bool):  # YAML reads off as false, and on as true
            value = next((word for word in args if WORDS.get(str(word)) is value), value)
        if value not in args:
            raise UserError(f"is {value!r} where {' or '.join(map(repr, args))} is due", field=key)
        return value
    if origin is tuple:
        return _convert_tuple(value, args, key)
    if is_dataclass(hint):
        return _named_section(hint, as_kind(value, dict, key), key)
    if origin is dict and args[1] is not Any:
        return {str(name): _convert(part, args[1], f"{key}.{name}") for name, part in as_kind(value, dict, key).items()}
    return as_kind(value, origin or hint, key)


def _may_be(value: Any, kind: Any) -> bool:
    """Whether `value` is of a form that only this one of several kinds has: a mapping, or a whole number, maybe as text."""
    if kind is int:
        return type(value) is int or (isinstance(value, str) and value.isdecimal())
    return get_origin(kind) is dict and isinstance(value, dict)


def _named_section(hint: Any, section: Tree, key: str) -> Any:
    """The dataclass `hint` of a section that has a name of the user's own."""
    built = _build(hint, section, f"{key}.")
    for unknown in section:
        remedy = f"the keys there are {', '.join(item.name for item in fields(hint))}"
        raise UserError("is no known key", field=f"{key}.{unknown}", remedy=remedy)
    return built


def _convert_tuple(value: Any, args: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (args[-1] is not ... and len(args) != len(value)):
        raise UserError(f"is {value!r} where a list{'' if args[-1] is ... else f' of {len(args)}'} is due", field=key)
    kinds = [args[0]] * len(value) if args[-1] is ... else args
    return tuple(_convert(part, kind, key) for part, kind in zip(value, kinds, strict=True))
