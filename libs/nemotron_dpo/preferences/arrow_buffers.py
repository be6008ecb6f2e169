"""The buffers of a stranger's record batch fit each other: pyarrow reads them unasked, and ends the process where they do not.

Text need not be UTF-8 here. What reads the values of a row tells that for the row alone, so texts are looked at as bytes.
"""

from __future__ import annotations

import functools

import pyarrow as pa
from pyarrow import types


def check_buffers(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid where an offset, a length or an index of `batch` leads out of its buffers."""
    batch.validate()
    for column in batch.columns:
        storage = column.storage if isinstance(column, pa.ExtensionArray) else column
        try:
            seen = storage.view(_as_bytes(storage.type))
        except pa.ArrowNotImplementedError:  # as for unions, in which no column of preferences lies
            seen = storage
        seen.validate(full=True)


@functools.lru_cache(maxsize=64)
def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """`kind` with bytes in place of its texts, at any depth."""
    for is_text, plain in _BYTES:
        if is_text(kind):
            return plain
    if types.is_struct(kind):
        return pa.struct([_field(kind.field(number)) for number in range(kind.num_fields)])
    if types.is_map(kind):
        if types.is_null(kind.key_type):
            return kind  # as pyarrow makes none; nor does it have entries
        return pa.map_(_field(kind.key_field), _field(kind.item_field), keys_sorted=kind.keys_sorted)
    if types.is_fixed_size_list(kind):
        return pa.list_(_field(kind.value_field), kind.list_size)
    for is_list, made in _LISTS:
        if is_list(kind):
            return made(_field(kind.value_field))
    return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered) if types.is_dictionary(kind) else kind


def _field(field: pa.Field) -> pa.Field:
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    nullable = field.nullable or types.is_null(kind)  # what was damaged may say otherwise, and pyarrow makes no such field
    return pa.field(field.name, _as_bytes(kind), nullable)


def _there(names: dict[str, str]) -> list[tuple]:
    """(test, maker) of those of pyarrow's types that this version has."""
    return [(getattr(types, test), getattr(pa, maker)) for test, maker in names.items() if hasattr(types, test)]


_LISTS = _there(
    {"is_list": "list_", "is_large_list": "large_list", "is_list_view": "list_view", "is_large_list_view": "large_list_view"}
)
_BYTES = [
    (test, maker())
    for test, maker in _there({"is_string": "binary", "is_large_string": "large_binary", "is_string_view": "binary_view"})
]
