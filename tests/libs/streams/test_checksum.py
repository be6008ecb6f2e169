"""A stream that was damaged, or put together from parts, is one line: checksums run from its description to its trailer."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import pyarrow as pa
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.streams import TOKENIZED_PAIRS, open_reader
from nemotron_dpo.streams.checksum import extended
from nemotron_dpo.streams.reader import Reader
from support.stream_rows import INFO, batch, lines_read, unannounced, write


@pytest.mark.slow
def test_every_flipped_bit_is_one_line_or_changes_nothing(tmp_path: Path) -> None:
    """1000 random bits of a stream, those of Arrow's own headers included, from a file and through a pipe."""
    path, rng = write(tmp_path / "a", batch(2), batch(5, 2)), random.Random(0)
    whole, flipped, refused = path.read_bytes(), tmp_path / "flipped", []
    with open_reader(path, "tokenized_pairs") as reader:
        rows = reader.read_all().to_pylist()
    for bit in rng.sample(range(8 * len(whole)), 1000):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(content)
        for source in (flipped, io.BytesIO(content)):
            try:
                with contextlib.ExitStack() as stack:
                    pipe = Reader(source, "<stdin>", ("tokenized_pairs",)) if source is not flipped else None
                    reader = pipe or stack.enter_context(open_reader(flipped, "tokenized_pairs"))
                    assert (reader.read_all().to_pylist(), reader.info, reader.warning) == (rows, INFO, None), bit
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 1000  # of 2000 readings; the others met padding
    assert all(line.startswith((f"{flipped}: ", "<stdin>: ")) and "\n" not in line for line in refused)


def test_parts_together_refuse_what_the_whole_does(tmp_path: Path) -> None:
    """200 random bits of a stream of seven batches, which three processes read: the first refusal is that of one alone."""
    path, rng = write(tmp_path / "a", *(batch(2 + n % 2, 3 * n) for n in range(7))), random.Random(1)
    whole, refused = path.read_bytes(), 0

    def read(part: int, parts: int) -> str:
        try:
            with open_reader(path, "tokenized_pairs") as reader:
                rows = reader.read_all(part, parts)  # not to be looked into before all parts have agreed
                return str(rows.to_pylist() if parts == 1 else rows.num_rows)
        except UserError as error:
            return f"refused: {error}"

    good, taken = read(0, 1), read(0, 3)
    for bit in rng.sample(range(8 * len(whole)), 200):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        alone, parts = read(0, 1), [read(part, 3) for part in range(3)]
        refusals = [said for said in parts if said.startswith("refused")]
        assert (refusals[:1] or parts) == ([taken] * 3 if alone == good else [alone]), bit
        refused += alone != good
    assert refused > 80
    path.write_bytes(whole)
    for parts in (2, 9, 40):  # also more of them than batches
        assert [read(part, parts) for part in range(parts)] == [taken] * parts


def test_a_part_looks_at_its_own_rows_alone(tmp_path: Path) -> None:
    """Otherwise it would not be of much use. Rows 7 to 9 are damaged, in the third of four batches."""
    path = write(tmp_path / "a", *(batch(3, 3 * n) for n in range(4)))
    content = bytearray(path.read_bytes())
    content[content.index((7).to_bytes(16, "big") + (8).to_bytes(16, "big")) + 3] ^= 1
    path.write_bytes(content)
    verdicts = []
    for part in range(5):  # one a batch, and the trailer is one too
        with open_reader(path, "tokenized_pairs") as reader:
            try:
                verdicts.append(len(reader.read_all(part, 5)))
            except UserError as error:
                verdicts.append(error.message)
    damaged = "the stream from preference-tokenize is damaged in rows 7 to 9: its checksum differs"
    assert verdicts == [12, 12, damaged, 12, 12]


def changed(batches: list[tuple[pa.RecordBatch, dict]], path: Path, schema: pa.Schema | None = None) -> None:
    """A stream of those batches with their metadata, as another program might put it together."""
    with path.open("wb") as file, pa.ipc.new_stream(file, schema or INFO.attach(TOKENIZED_PAIRS)) as stream:
        for rows, metadata in batches:
            stream.write_batch(rows, custom_metadata=metadata)


def test_what_was_put_together_otherwise_is_refused(tmp_path: Path) -> None:
    """The batches of a good stream: swapped, lost with the trailer set right, without checksums, behind the trailer, joined."""
    path, made = write(tmp_path / "a", batch(2), batch(2, 2)), tmp_path / "made"
    with pa.ipc.open_stream(path.read_bytes()) as stream:
        (one, m1), (two, m2), (end, m3) = [
            (b.batch, dict(b.custom_metadata)) for b in stream.iter_batches_with_custom_metadata()
        ]
    copy = "copy it again, or run preference-tokenize again"
    where = f"{made}: the stream from preference-tokenize"
    for batches, schema, words in (
        (
            [(two, m2), (one, m1), (end, m3)],
            None,
            f"is damaged in rows 1 to 2: its checksum differs: {copy}",
        ),
        (
            [(one, m1), (end, {**m3, b"rows": b"2"})],
            None,
            f"is damaged in its trailer: its checksum differs: {copy}",
        ),
        ([(one, {}), (two, {}), (end, {b"rows": b"4"})], None, "has no checksum in rows 1 to 2, though it announces them"),
        ([(one, m1), (two, {}), (end, m3)], None, "has no checksum in rows 3 to 4, though it announces them"),
        ([(one, m1), (two, m2), (end, m3)], unannounced(INFO), "has a checksum in rows 1 to 2, though it announces none"),
        ([(one, m1), (two, m2), (end, {b"rows": b"4"})], None, "has no checksum in its trailer, though it announces them"),
        ([(one, m1), (two, m2), (end, m3), (one, m1)], None, f"goes on behind its trailer: {copy}"),
        ([(one, m1), (two, m2), (end, m3), (end, m3)], None, f"goes on behind its trailer: {copy}"),
    ):
        changed(batches, made, schema)
        with pytest.raises(UserError) as caught:
            lines_read(made)
        assert str(caught.value).startswith(f"{where} {words}")
    changed([(one, m1), (two, m2), (end, m3)], made)
    assert lines_read(made) == [0, 1, 2, 3]
    made.write_bytes(made.read_bytes() * 2)
    with pytest.raises(UserError, match="is followed by something else, as where two files were joined: copy it"):
        lines_read(made)


def test_nulls_are_refused_where_there_are_no_checksums(tmp_path: Path) -> None:
    for column, values in (("source_line", [1, None]), ("prompt_ids", [[1], None]), ("chosen_ids", [[1], [None]])):
        rows = batch(2).set_column(
            TOKENIZED_PAIRS.get_field_index(column), column, pa.array(values, TOKENIZED_PAIRS.field(column).type)
        )
        rows = pa.RecordBatch.from_arrays(rows.columns, schema=unannounced(INFO))
        changed([(rows, {}), (rows.slice(0, 0), {b"rows": b"2"})], tmp_path / "a", unannounced(INFO))
        with pytest.raises(UserError, match="the stream from preference-tokenize has nulls in rows 1 to 2"):
            lines_read(tmp_path / "a")


def test_a_checksum_is_of_the_rows_and_not_of_how_they_are_stored() -> None:
    """Slices, which begin in the middle of bytes of bits, against copies; and every value counts, a null and a length too."""
    types = {
        "n": pa.int64(),
        "id": pa.binary(2),
        "x": pa.float32(),
        "b": pa.bool_(),
        "l": pa.list_(pa.int32()),
        "t": pa.string(),
    }
    columns: dict[str, list] = {
        "n": [1, 2, None, 4, 5], "id": [b"ab", b"cd", b"ef", None, b"gh"], "x": [0.5, None, -0.5, 1.5, 2.5],
        "b": [True, False, None, True, True], "l": [[1], [2, 3], None, [], [4, None]], "t": ["ab", "c", None, "", "ab"],
    }  # fmt: skip

    def checksum(values: dict[str, list], start: int = 0, stop: int = 5) -> int:
        made = pa.RecordBatch.from_pydict({name: pa.array(v, types[name]) for name, v in values.items()})
        return extended(7, made.slice(start, stop - start))

    for start, stop in ((0, 5), (1, 4), (2, 5), (3, 3)):
        assert checksum(columns, start, stop) == checksum({name: v[start:stop] for name, v in columns.items()}, 0, stop - start)
    others = {"n": [1, 0, 9], "id": [b"\0\0", b"ba"], "x": [0.0, 7.0], "b": [False, True], "l": [[0], [3, 2], [], None]}
    others["t"] = ["a", "bc", ""]
    sums = [checksum(columns)]
    for name, values in others.items():
        for place in range(5):
            changes = [value for value in (*values, None) if value != columns[name][place]]
            sums += [
                checksum({**columns, name: [*columns[name][:place], v, *columns[name][place + 1 :]]}) for v in changes[:-1]
            ]
    assert len(set(sums)) > 50
    assert sums.count(sums[0]) == 1


def test_names_have_the_checksum_of_their_texts_however_a_dictionary_lists_them() -> None:
    field, texts = pa.field("name", pa.dictionary(pa.int32(), pa.string())), ["a", None, "bc", "a"]

    def checksum(places: list[int | None], dictionary: list[str]) -> int:
        names = pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), pa.array(dictionary, pa.string()))
        return extended(5, pa.RecordBatch.from_arrays([names], schema=pa.schema([field])))

    plain = extended(
        5, pa.RecordBatch.from_pylist([{"name": text} for text in texts], schema=pa.schema([("name", pa.string())]))
    )
    assert checksum([0, None, 1, 0], ["a", "bc"]) == checksum([2, None, 1, 2], ["x", "bc", "a"]) == plain
    assert checksum([1, None, 0, 1], ["a", "bc"]) != plain
