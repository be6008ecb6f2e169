"""Streams with weights become one stream: whole copies, a part that is drawn, exact counts, and where it all comes from."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.mixture import closing_line, mix
from nemotron_dpo.streams import StreamInfo, open_reader, open_writer
from support.programs import execute

DIGESTS = {"input": "sha256:1", "tokenizer": "sha256:2", "chat_template": "sha256:3"}
INFO = StreamInfo("tokenized_pairs", "preference-tokenize", "9.9", DIGESTS, {"max_length": 8, "limit": None})
SCORED = replace(INFO, schema="scored_pairs", digests={**DIGESTS, "reference": "sha256:4"}, settings={"kernels": "c"})


def write(path: Path, count: int, *sources: str, info: StreamInfo = INFO, at_once: int = 3) -> str:
    """Pairs 0, 1, ... of the `sources` in turn, in batches of `at_once`."""
    rows = []
    for n in range(count):
        ids = {"prompt_ids": [n, n], "chosen_ids": [n], "rejected_ids": [n, 1]}
        cut = {"chosen_truncated": False, "rejected_truncated": False}
        scores = {"ref_chosen_logps": [-float(n)], "ref_rejected_logps": [-1.0, -2.0]} if info.schema == "scored_pairs" else {}
        about = {"source": (sources or (path.stem,))[n % (len(sources) or 1)], "chosen_reward": n / 2}
        rows.append({"pair_id": n.to_bytes(16, "big"), "source_line": n, **ids, **cut, **about, **scores})
    with open_writer(path, info) as writer:
        for start in range(0, count, at_once):
            writer.write(pa.RecordBatch.from_pylist(rows[start : start + at_once], schema=writer.schema))
    return str(path)


def read(path: Path | str, schema: str = "tokenized_pairs") -> tuple[StreamInfo, list[dict[str, Any]]]:
    with open_reader(path, schema) as reader:
        return reader.info, reader.read_all().to_pylist()


@pytest.mark.parametrize("info", [INFO, SCORED], ids=["tokenized", "scored"])
def test_copies_of_the_one_and_half_of_the_other(tmp_path: Path, info: StreamInfo) -> None:
    a, b = write(tmp_path / "a", 5, info=info), write(tmp_path / "b", 4, "x", "y", info=info)
    parts = mix([a, b], ["2", "0.5"], str(tmp_path / "mixed"), seed=7)
    made, rows = read(tmp_path / "mixed", info.schema)
    ours, theirs = read(a, info.schema)[1], read(b, info.schema)[1]
    assert rows[:10] == ours * 2
    drawn = [row["source_line"] for row in rows[10:]]
    assert len(drawn) == 2
    assert rows[10:] == [theirs[n] for n in sorted(set(drawn))]
    counts = dict(Counter(row["source"] for row in rows))
    described = made.settings["mixture"]
    assert [(d["weight"], d["pairs"]) for d in described] == [("2", 5), ("0.5", 4)]
    assert described[0]["written"] | described[1]["written"] == counts
    assert described[0]["digests"] == {"input": "sha256:1"}
    assert (made.producer, made.settings["mixture_seed"]) == ("mixture", 7)
    assert {name: value for name, value in made.digests.items() if name != "input"} == {
        name: value for name, value in info.digests.items() if name != "input"
    }
    assert {name: made.settings[name] for name in info.settings} == info.settings
    few = ", ".join(f"{name} {counts[name]}" for name in ("x", "y") if name in counts)
    few = few.split()[0] if ", " not in few else f"2 ({few})"
    assert closing_line(parts) == f"12 pairs written: 10 (83.3%) of a, 2 x 5; 2 (16.7%) of {few}, 0.5 x 4"


@pytest.mark.parametrize(
    ("count", "weight", "written"),
    [
        (25, "0.1", 3),
        (25, "2.1", 53),
        (24, "0.1", 2),
        (3, "1/3", 1),
        (7, "1", 7),
        (7, "1.0", 7),
        (10, "1e-1", 1),
        (2, "3.25", 7),
    ],
)
def test_a_part_is_rounded_from_the_weight_as_it_is_written(tmp_path: Path, count: int, weight: str, written: int) -> None:
    """Half a pair is one. 2.1 - 2 in floating point is more than a tenth; and no pair is drawn twice."""
    (part,) = mix([write(tmp_path / "a", count)], [weight], str(tmp_path / "mixed"), 42)
    rows = read(tmp_path / "mixed")[1]
    assert len(rows) == part.num_written == written
    times = Counter(row["source_line"] for row in rows).values()
    assert max(times) - min(times) <= 1


@pytest.mark.slow
def test_draws_follow_the_seed_and_the_name_and_nothing_else(tmp_path: Path) -> None:
    """Not the place, the batches, or what else is mixed. The same stream twice gives other pairs; more includes less."""
    (tmp_path / "other").mkdir()
    a, again = write(tmp_path / "a", 400), write(tmp_path / "other/b", 400, "a", at_once=64)

    def drawn(seed: int, *streams: tuple[str, str], of: int = 0) -> set[int]:
        mix([path for path, _ in streams], [weight for _, weight in streams], str(tmp_path / "mixed"), seed)
        lines = [row["source_line"] for row in read(tmp_path / "mixed")[1]]
        return set(lines[100 * of : 100 * (of + 1)] if len(streams) > 1 else lines)

    quarter = drawn(1, (a, "0.25"))
    assert quarter == drawn(1, (again, "0.25")) == drawn(1, (a, "0.25"), (again, "0.25"))
    assert len(quarter) == 100
    others = (drawn(1, (a, "0.25"), (a, "0.25"), of=1), drawn(2, (a, "0.25")), drawn(1, (write(tmp_path / "c", 400), "0.25")))
    assert all(5 < len(quarter & other) < 60 for other in others)  # 25 by chance, 4.1 standard deviations at least
    assert quarter < drawn(1, (a, "0.5"))


REFUSED: dict[str, tuple[StreamInfo, str, str]] = {
    "kind": (SCORED, "1", "holds scored_pairs, and {a} tokenized_pairs: score all of them with ref-logprobs, or none"),
    "tokenizer": (
        replace(INFO, digests={**DIGESTS, "tokenizer": "sha256:9"}), "1",
        "was tokenized with another tokenizer than {a}: make all of them with the same one",
    ),
    "template": (
        replace(INFO, digests={"input": "sha256:1", "tokenizer": "sha256:2"}), "1",
        "was rendered by another chat template than {a}: make all of them with the same one",
    ),
    "weight": (INFO, "0", "'0' is no weight above 0"),
    "negative": (INFO, "-1", "'-1' is no weight above 0"),
    "no number": (INFO, "nan", "'nan' is no weight above 0"),
    "too little": (INFO, "0.1", "weight 0.1 leaves none of its 4 pairs: leave it out"),
}  # fmt: skip


@pytest.mark.parametrize(("info", "weight", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path: Path, info: StreamInfo, weight: str, words: str) -> None:
    a, b = write(tmp_path / "a", 4), write(tmp_path / "b", 4, info=info)
    with pytest.raises(UserError) as caught:
        mix([a, b], ["1", weight], str(tmp_path / "mixed"), 42)
    assert str(caught.value) == f"{b}: {words.format(a=a)}"
    assert not (tmp_path / "mixed").exists()


def test_scores_of_other_policies_and_precisions_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 4, info=SCORED)
    for info, words in (
        (replace(SCORED, digests={**SCORED.digests, "reference": "sha256:9"}), f"was scored by another policy than {a}"),
        (replace(SCORED, settings={"reference_precision": "float32"}), f"was scored in float32, and {a} in None"),
    ):
        with pytest.raises(UserError, match=words):
            mix([a, write(tmp_path / "b", 4, info=info)], ["1", "1"], str(tmp_path / "mixed"), 42)
    mix([a, write(tmp_path / "b", 4, info=replace(SCORED, settings={"kernels": "gpu"}))], ["1", "1"], str(tmp_path / "m"), 42)
    assert read(tmp_path / "m", "scored_pairs")[0].settings["kernels"] == "c, gpu"


def test_the_program(tmp_path: Path) -> None:
    a, mixed = write(tmp_path / "a", 4), tmp_path / "mixed"
    damaged = tmp_path / "damaged"
    damaged.write_bytes(Path(a).read_bytes()[:-200])

    def run(*arguments: object) -> tuple[int, str]:
        argv = [sys.executable, "-m", "nemotron_dpo.preferences.mixture", *map(str, arguments)]
        done = execute(argv)
        assert done.stdout == b""
        return done.returncode, done.stderr.decode().splitlines()[-1]

    said = "mixture: 6 pairs written: 6 (100.0%) of a, 1.5 x 4"
    assert run(a, "--weights", "1.5", "-o", mixed, "--seed", 3) == (0, said)
    assert len(read(mixed)[1]) == 6
    status, line = run(a, damaged, "-o", tmp_path / "none")
    assert (status, line.startswith(f"mixture: error: {damaged}: the stream from preference-tokenize ")) == (1, True)
    assert run(a, "-o", a) == (2, f"mixture: error: {a}: -o would be written over what is read: {a}: name another file")
    assert run(a, a, "--weights", 1, "-o", mixed)[0] == 2
    assert not (tmp_path / "none").exists()


def test_a_weight_that_would_fill_the_disk_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    """A hundred thousand million copies of a file of some kilobytes are some hundred terabytes."""
    a = write(tmp_path / "a", 1)
    size = Path(a).stat().st_size
    line = rf"weight 1e11 makes 100000000000 pairs of 1, about {size * 100} GB, and \d+ GB are free: give a smaller weight"
    with pytest.raises(UserError, match=line):
        mix([a], ["1e11"], str(tmp_path / "mixed"), seed=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
