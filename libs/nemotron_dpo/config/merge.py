"""The layers of a config merged into one tree, and its interpolations resolved."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from nemotron_dpo.config.data_spellings import HELD_OUT_KEYS, ROW_FORMS
from nemotron_dpo.config.dpo_spellings import TRL_NAMES, in_our_names, replaced
from nemotron_dpo.config.layer import ConfigLayer, origin
from nemotron_dpo.config.redact import secret_within, secrets_of
from nemotron_dpo.config.tree import Tree
from nemotron_dpo.errors import UserError

# What may be a list or a mapping: key -> (what the list holds, the keys one of which a mapping has that can stand alone).
_PLACES = ("path", "data_path", "prompt_file", "dataset_name")
_LISTED = {
    "policy.scheduler": ("torch schedulers", ("name",)),
    "data.train": ("data sets", _PLACES),
    "data.validation": ("data sets", (*_PLACES, "split_from_train")),
}

_BACKEND = ("dtensor_cfg", "automodel_cfg")


def resolve_layers(layers: Sequence[ConfigLayer]) -> Tree:
    """The layers merged, every interpolation resolved, as plain dicts and lists."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged: Any = OmegaConf.create({})
    for layer in layers:
        merged = _merged(merged, layer)
    try:
        tree = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = error.full_key or None
        source, line = origin(key, layers) if key else (layers[-1].source, None)
        remedy = (
            "set it, or give another value after it: ${oc.env:NAME,value}" if "Environment variable" in str(error) else None
        )
        raise UserError(_reason(error), source=source, line=line, field=key, remedy=remedy) from None
    assert isinstance(tree, dict)
    if found := secret_within(tree, secrets_of(os.environ)):
        source, line = origin(found[0], layers)
        what, remedy = (
            f"holds the secret ${found[1]}, and is written into files",
            "give secrets to env_vars, or to no key at all",
        )
        raise UserError(what, source=source, line=line, field=found[0], remedy=remedy)
    return {str(key): value for key, value in tree.items()}


def _merged(below: Any, layer: ConfigLayer) -> Any:
    """`layer` over `below`; a schedule or data of another shape replace what is below instead of mixing with it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = _renamed(_both_names(_hoisted(layer.tree)), layer)
    _make_room(below, tree, layer)
    if "data" in tree:
        _name_single_sets(below, tree)
        _forget_rows(below, tree)
    for key, (kind, names) in _LISTED.items():
        if (new := _selected(tree, key)) is None or (old := _selected(below, key)) is None:
            continue
        if OmegaConf.is_list(old) == OmegaConf.is_list(new):
            continue
        if OmegaConf.is_dict(new) and not any(name in new for name in names):
            raise UserError(f"is a list of {kind}", source=layer.source, field=key, remedy=f"give {key} as a whole")
        OmegaConf.update(below, key, None)
    try:
        below.merge_with(tree)  # OmegaConf.merge, without its copy of all that is below
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"cannot be merged ({_reason(error)})", source=layer.source) from None
    return below


def _renamed(tree: Any, layer: ConfigLayer) -> Any:
    """`tree` with TRL's names in the section dpo rewritten into ours."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(tree)
    dpo = plain.get("dpo") if isinstance(plain, dict) else None
    if not isinstance(dpo, dict) or not dpo.keys() & TRL_NAMES.keys():
        return tree
    return OmegaConf.create({**plain, "dpo": in_our_names(dpo, layer.source)})


def _make_room(below: Any, tree: Any, layer: ConfigLayer) -> None:
    """Remove from `below` what `layer`, whose tree is `tree`, says anew as a whole. Raises UserError for a part of nothing."""
    from omegaconf import OmegaConf

    old, new = (_selected(config, "dpo") for config in (below, tree))
    if not OmegaConf.is_dict(new):
        return
    path, key = ("" if layer.is_file else layer.text.partition("=")[0].strip()), "dpo.preference_loss"
    given: Any = OmegaConf.to_container(new)  # not resolved: what it refers to may be in another layer
    for name in replaced(given, path) if OmegaConf.is_dict(old) else ():
        old.pop(name, None)
    if path.startswith(f"{key}.") and not OmegaConf.is_dict(_selected(below, key)):
        remedy = f"give all of it: {key}={{NAME: WEIGHT, NAME: WEIGHT}}"
        raise UserError("leads into a mixture, and none is below", source=layer.source, field=path, remedy=remedy)


def _name_single_sets(*configs: Any) -> None:
    """Where one of `configs` has a single validation set and another has sets by name, the single one is called `default`."""
    from omegaconf import OmegaConf

    sets = [(config, found) for config in configs if OmegaConf.is_dict(found := _selected(config, "data.validation")) and found]
    named = [all(OmegaConf.is_config(_item(found, name)) for name in found) for _, found in sets]
    for (config, found), is_named in zip(sets, named, strict=True):
        if not is_named and any(named):
            config.data.validation = {"default": found}


def _forget_rows(below: Any, tree: Any) -> None:
    """Remove from the data sets of `below` the place of the rows that `tree` names anew, under whatever name it was given."""
    from omegaconf import OmegaConf

    sets = ["data.default", "data.train", "data.validation"]
    validation = _selected(tree, "data.validation")
    sets += [f"data.validation.{name}" for name in validation] if OmegaConf.is_dict(validation) else []
    for key in sets:
        old, new = _selected(below, key), _selected(tree, key)
        if not OmegaConf.is_dict(old) or not OmegaConf.is_dict(new):
            continue
        if _item(new, "split_from_train") is not None:
            old.clear()  # another set altogether: it has no rows of its own
        names = [name for name in _PLACES if _selected(new, name) is not None and not _is_form(_selected(new, name))]
        for name in (*_PLACES, *HELD_OUT_KEYS) if names else ():
            if name in old and not _is_form(_selected(old, name)):
                del old[name]


def _is_form(name: Any) -> bool:
    return isinstance(name, str) and name in ROW_FORMS


def _selected(config: Any, key: str) -> Any:
    """What the dotted `key` leads to in `config`; None where it leads nowhere, as where its section is no mapping."""
    from omegaconf import OmegaConf

    return _if_any(lambda: OmegaConf.select(config, key))


def _item(mapping: Any, name: str) -> Any:
    """What `mapping` has under `name`; None where it has nothing, or names what is not there."""
    return _if_any(lambda: mapping.get(name))


def _if_any(look: Callable[[], Any]) -> Any:
    from omegaconf.errors import OmegaConfBaseException

    try:
        return look()
    except OmegaConfBaseException:
        return None


def _hoisted(tree: Any) -> Any:
    """`tree` with `policy.optimizer.kwargs` also one level up, so that the later of the two spellings wins in the merge."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(tree) and "policy" not in tree and "data" not in tree:
        return tree  # nothing of it will be written anew
    tree = OmegaConf.create(tree)
    try:
        kwargs = OmegaConf.to_container(tree)["policy"]["optimizer"]["kwargs"]  # type: ignore[index,call-overload] - a mapping gives a dict
    except (KeyError, TypeError):
        return tree
    return OmegaConf.merge({"policy": {"optimizer": kwargs or {}}}, tree) if isinstance(kwargs, dict) else tree


def _both_names(tree: Any) -> Any:
    """`tree` with the section of NeMo-RL's second backend under its old and its new name, so that the later file wins.

    Interpolations may go to either. What one file says under both stays as it is, for the check that the two agree.
    """
    from omegaconf import OmegaConf

    found = {name: section for name in _BACKEND if OmegaConf.is_dict(section := _selected(tree, f"policy.{name}"))}
    for name, other in (_BACKEND, _BACKEND[::-1]) if found else ():
        if other in found:
            tree = OmegaConf.merge({"policy": {name: found[other]}}, tree)
    return tree


def _reason(error: Exception) -> str:
    """What OmegaConf says, without the name of the exception that a resolver raised."""
    said = str(getattr(error, "msg", None) or error).splitlines()[0]
    raised = re.fullmatch(r"\w+ raised while resolving interpolation: [\"']?(.*?)[\"']?", said)
    return raised[1] if raised else said
