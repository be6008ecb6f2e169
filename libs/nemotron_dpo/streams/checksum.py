"""CRC-32 over the rows of a stream, by which a reader notices a flipped bit, a lost batch or a batch of another stream.

The checksum starts from the stream's description and runs on through every batch to the trailer. Each of them carries the
value so far. It covers the values of the rows and not how they are stored, so a slice has the checksum of its copy.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa

from nemotron_dpo.streams.crc32 import crc32

CHECKSUM_KEY = b"crc32"


def encoded(checksum: int) -> bytes:
    """The checksum as metadata carries it: eight hexadecimal digits."""
    return b"%08x" % checksum


def decoded(text: bytes) -> int:
    """The checksum that metadata carry; -1, which is none, where they carry something else."""
    try:
        return int(text, 16)
    except ValueError:
        return -1


def extended(checksum: int, batch: pa.RecordBatch) -> int:
    """The checksum of a stream that stood at `checksum`, once `batch` is appended."""
    for column in batch.columns:
        checksum = _extended(checksum, column)
    return checksum


def _extended(checksum: int, array: pa.Array) -> int:
    """Extend by the length, the number of nulls, which values are null, and the values. A null counts as 0 or as empty."""
    if isinstance(array, pa.DictionaryArray):  # by its values: what a dictionary lists, and where, is how they are stored
        return _extended(checksum, array.dictionary_decode())
    checksum = crc32(struct.pack("<qq", len(array), array.null_count), checksum)
    if not len(array):
        return checksum  # such a list array may lack its first offset, or hold an arbitrary one
    if array.null_count == len(array) and not isinstance(array, pa.ListArray):
        return _of_nulls(checksum, array)
    if array.null_count:
        checksum = crc32(_bits(array.is_valid()), checksum)
    if isinstance(array, pa.ListArray):
        offsets = array.offsets.to_numpy()
        checksum = crc32(np.diff(offsets), checksum)
        return _extended(checksum, array.values.slice(offsets[0], offsets[-1] - offsets[0]))
    if pa.types.is_string(array.type):
        return _of_texts(checksum, array)
    if pa.types.is_boolean(array.type):
        return crc32(_bits(array.fill_null(False) if array.null_count else array), checksum)
    return crc32(_values(array), checksum)


def _of_nulls(checksum: int, array: pa.Array) -> int:
    """Extend by nulls alone: of each that it is none, and its value, all of which are zero."""
    bits = bytes((len(array) + 7) // 8)
    if pa.types.is_boolean(array.type):
        return crc32(bits, crc32(bits, checksum))
    width = 4 if pa.types.is_string(array.type) else array.type.byte_width  # of a text its length
    return crc32(bytes(width * len(array)), crc32(bits, checksum))


def _of_texts(checksum: int, array: pa.Array) -> int:
    """Extend by the lengths in bytes, and by the bytes."""
    array = array.fill_null("") if array.null_count else array
    _, ends, text = array.buffers()
    offsets = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1]
    checksum = crc32(np.diff(offsets).tobytes(), checksum)
    return crc32(memoryview(text or b"")[offsets[0] : offsets[-1]], checksum)


def _bits(array: Any) -> bytes:
    return np.packbits(array.to_numpy(zero_copy_only=False)).tobytes()


def _values(array: pa.Array) -> memoryview:
    """The bytes of an array of fixed width. Only an array with nulls is copied."""
    if array.null_count:
        zero = bytes(array.type.byte_width) if pa.types.is_fixed_size_binary(array.type) else 0
        array = array.fill_null(pa.scalar(zero, array.type))
    width, start = array.type.byte_width, array.offset
    buffer = array.buffers()[1]
    return memoryview(buffer or b"")[start * width : (start + len(array)) * width]
