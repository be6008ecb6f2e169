"""A canonical tree becomes a RunConfig: types and choices checked, unknown keys refused, keys without effect collected."""

from __future__ import annotations

import difflib
import types
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nemotron_dpo.config.schema import NO_EFFECT, ONLY_VALUES, DataConfig, DatasetConfig, MegatronConfig, PeftConfig, RunConfig
from nemotron_dpo.config.shapes import Tree
from nemotron_dpo.errors import UserError

_DUE = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


def build_run(tree: Tree) -> tuple[RunConfig, list[str]]:
    """The RunConfig that the canonical `tree` describes, and the dotted keys in it that have no effect.

    Raises UserError whose field is the dotted key: a wrong type or value, a setting that is not built, an unknown key.
    """
    _refuse_unbuilt(tree)
    run = _build(RunConfig, tree, "")
    _check_peft(run.policy.megatron_cfg.peft)
    idle = []
    for key in _leaves(tree):
        prefix = _no_effect_prefix(key)
        if prefix is None:
            raise UserError("is no known key", field=key, remedy=nearest(key))
        idle.append(prefix)
    return run, sorted({*idle, *_not_built_yet(run)})


def _not_built_yet(run: RunConfig) -> list[str]:
    """Keys whose value asks for something that dpo-train does not do yet; the trained policy is the same without."""
    logger, megatron = run.logger, run.policy.megatron_cfg
    asked = {
        "logger.log_dir": logger.log_dir is not None,
        "logger.tensorboard_enabled": logger.tensorboard_enabled,
        "logger.wandb_enabled": logger.wandb_enabled,
        "policy.megatron_cfg.sequence_parallel": megatron.sequence_parallel and megatron.tensor_model_parallel_size == 1,
    }
    return [key for key, is_asked in asked.items() if is_asked] + _idle_recompute(megatron)


def _idle_recompute(megatron: MegatronConfig) -> list[str]:
    """The recompute keys that are set where, as in NeMo-RL, another one decides that they count for nothing."""
    full = ("recompute_method", "recompute_num_layers")
    idle = ("recompute_modules",) if megatron.recompute_granularity != "selective" else full
    if not megatron.activation_checkpointing:
        idle = ("recompute_granularity", "recompute_modules", *full)
    return [f"policy.megatron_cfg.{name}" for name in idle if getattr(megatron, name) is not None]


def _check_peft(peft: PeftConfig, section: str = "policy.megatron_cfg.peft") -> None:
    if peft.enabled and peft.target_modules and peft.exclude_modules:
        remedy = "give them with target_modules=[]"
        raise UserError("are named beside target_modules", field=f"{section}.exclude_modules", remedy=remedy)
    if peft.enabled and peft.dropout > 0:
        raise UserError(f"is {peft.dropout}, which is not built", field=f"{section}.dropout", remedy="leave it 0.0")


def build_plain(cls: Any, tree: Tree) -> Any:
    """The dataclass `cls` that the plain `tree` describes, for steps whose keys have one spelling.

    Raises UserError whose field is the dotted key: a wrong type or value, or an unknown key.
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


def nearest(key: str) -> str:
    """The remedy naming the known key nearest to `key`: in its own section first, then by its last part anywhere."""
    section, _, leaf = key.rpartition(".")
    known = sorted({*known_keys(), *NO_EFFECT})
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    close = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6)
    if close:
        return f"did you mean {beside[close[0]]}?"
    elsewhere = [k for k in known_keys() if k.rpartition(".")[2] == leaf]
    near = elsewhere or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"the sections are {', '.join(get_type_hints(RunConfig))}"


def known_keys(cls: Any = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key that means something, in the order of the dataclasses."""
    keys: list[str] = []
    for name, hint in get_type_hints(cls).items():
        nested = is_dataclass(hint)
        keys += known_keys(hint, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys


def _refuse_unbuilt(tree: Tree) -> None:
    for key, allowed in ONLY_VALUES:
        value: Any = tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and value not in allowed:
            raise UserError(f"is {_shown(value)}, which is not built", field=key, remedy=f"leave it {_shown(allowed[0])}")


def _build(cls: Any, tree: Tree, prefix: str) -> Any:
    """Take from `tree` what `cls` knows; what is left in it afterwards is for the unknown-key check."""
    hints = get_type_hints(cls)
    values: Tree = {}
    for item in fields(cls):
        key = f"{prefix}{item.name}"
        if item.name not in tree:
            continue
        if is_dataclass(hints[item.name]):
            section = tree[item.name]
            if section is not None:
                values[item.name] = _build(hints[item.name], _expect(section, dict, key), f"{key}.")
            if not section:
                del tree[item.name]
        elif cls is DataConfig and item.name == "validation":
            values["validation"] = _validation(tree.pop("validation"), tree)
        else:
            values[item.name] = _checked(item, _convert(tree.pop(item.name), hints[item.name], key), key)
    return cls(**values)


def _validation(sets: Tree, tree: Tree) -> tuple[tuple[str, DatasetConfig], ...]:
    built = tuple((str(name), _build(DatasetConfig, rows, f"data.validation.{name}.")) for name, rows in sets.items())
    left = {key: value for rows in sets.values() for key, value in rows.items()}
    if left:
        tree["validation"] = left
    return tuple((name, dataset) for name, dataset in built if dataset.path is not None)


def _checked(item: Field[Any], value: Any, key: str) -> Any:
    minimum = item.metadata.get("minimum")
    if minimum is not None and value is not None and not value >= minimum:
        raise UserError(f"is {value} where at least {minimum} is due", field=key)
    return value


def _convert(value: Any, hint: Any, key: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), key)
    if origin is Literal:
        if value not in args:
            raise UserError(f"is {value!r} where {' or '.join(map(repr, args))} is due", field=key)
        return value
    if origin is tuple:
        return _convert_tuple(value, args, key)
    return dict(value) if origin is dict else _expect(value, hint, key)


def _convert_tuple(value: Any, args: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (args[-1] is not ... and len(args) != len(value)):
        raise UserError(f"is {value!r} where a list{'' if args[-1] is ... else f' of {len(args)}'} is due", field=key)
    kinds = [args[0]] * len(value) if args[-1] is ... else args
    return tuple(_convert(part, kind, key) for part, kind in zip(value, kinds, strict=True))


def _expect(value: Any, kind: Any, key: str) -> Any:
    """`value` as `kind`; numbers and switches may be given as text, as environment variables are."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and kind is not str:
        value = _parsed(value, kind)
    if isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    raise UserError(f"is {_shown(value)} where {_DUE[kind]} is due", field=key)


def _parsed(text: str, kind: Any) -> Any:
    try:
        return _WORDS.get(text.lower(), text) if kind is bool else kind(text)
    except (TypeError, ValueError):
        return text


def _shown(value: Any) -> str:
    """`value` as YAML spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _leaves(tree: Tree, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and _no_effect_prefix(key) is None:
            keys += _leaves(value, f"{key}.")
        elif not (value == {} and _is_section(key)):
            keys.append(key)
    return keys


def _is_section(key: str) -> bool:
    return any(known.startswith(f"{key}.") for known in (*known_keys(), *NO_EFFECT))


def _no_effect_prefix(key: str) -> str | None:
    parts = key.split(".")
    prefixes = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in NO_EFFECT), None)
