"""Check validation sets that are a share of the training pairs: where they may be, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from nemotron_dpo.config.data_spellings import HELD_OUT_KEYS
from nemotron_dpo.config.schema import DataConfig, DatasetConfig
from nemotron_dpo.errors import UserError

_KEY, _SEED = HELD_OUT_KEYS
_OWN = (*HELD_OUT_KEYS, "is_default")


def check_held_out(data: DataConfig) -> None:
    """Raise UserError, whose field is the dotted key, for a share that cannot be held out as it is said."""
    for place, dataset in _elsewhere(data):
        for key in (key for key in HELD_OUT_KEYS if getattr(dataset, key) is not None):
            message = f"is {getattr(dataset, key)}, and only a whole validation set can be held out of the training set"
            raise UserError(message, field=f"{place}.{key}", remedy=f"set data.validation.{key}")
    sets = [(f"data.validation.{name}", dataset) for name, dataset in data.validation]
    for place, dataset in sets:
        _check_alone(place, dataset)
    held_out = [(place, dataset) for place, dataset in sets if dataset.split_from_train is not None]
    if held_out and data.train.parts:
        place, dataset = held_out[0]
        message = f"is {dataset.split_from_train}, and data.train is a list: a prompt of one of its data sets may be in another"
        raise UserError(message, field=f"{place}.{_KEY}", remedy="name rows to validate on, or one data set to train on")
    if len(held_out) > 1:
        place, dataset = held_out[1]
        message = f"is {dataset.split_from_train}, and {held_out[0][0]} is held out as well: they would share prompts"
        raise UserError(message, field=f"{place}.{_KEY}", remedy="hold out one set")


def _elsewhere(data: DataConfig) -> Iterator[tuple[str, DatasetConfig]]:
    """The data sets that are no whole validation set."""
    yield "data.train", data.train
    for place, dataset in (("data.train", data.train), *((f"data.validation.{name}", rows) for name, rows in data.validation)):
        yield from ((f"{place}.{number}", part) for number, part in enumerate(dataset.parts))


def _check_alone(place: str, dataset: DatasetConfig) -> None:
    if dataset.split_from_train is None:
        if dataset.split_seed is not None:
            message = f"is {dataset.split_seed}, and {_KEY} is not set"
            raise UserError(message, field=f"{place}.{_SEED}", remedy=f"{place}.{_KEY}=0.05 holds out a twentieth")
        return
    for item in fields(DatasetConfig):
        value = getattr(dataset, item.name)
        if item.name not in _OWN and value != item.default:
            message = f"is {value}, and the set is held out of the training set ({_KEY}={dataset.split_from_train})"
            raise UserError(message, field=f"{place}.{item.name}", remedy="leave out one of them; data.train says what is read")
