"""preference-tokenize audits what it tokenizes, leaves out and holds out what it is told to, and shows pairs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron_dpo.streams import open_reader
from support.chat_templates import CHATML
from support.programs import check, error_line, run
from support.small_tokenizers import byte_level, save

PROGRAM = "preference-tokenize"
AB, BA = ({"prompt": "How?", "chosen": a, "rejected": b} for a, b in (("yes", "no"), ("no", "yes")))
SPACE = {"prompt": "Space?", "chosen": "a b", "rejected": "ab"}
EMPTY = {"prompt": "Empty?", "chosen": " ", "rejected": "b"}
SCORED = [
    {"prompt": f"q{n}", "chosen": "good", "rejected": "bad", "chosen_score": n % 3, "rejected_score": 1} for n in range(6)
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"), byte_level(), chat_template=CHATML, eos_token="<|im_end|>")


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def lines_of(path: Path) -> list[int]:
    with open_reader(path, "tokenized_pairs") as reader:
        return reader.read_all().column("source_line").to_pylist()


def records(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def said(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.removeprefix(f"{PROGRAM}: ") for line in done.stderr.decode().splitlines()]


def test_the_audit_names_lines_and_stats_has_all_of_them(tmp_path: Path, tokenizer: Path) -> None:
    data = jsonl(tmp_path / "a.jsonl", [AB, BA, SPACE, EMPTY, *SCORED, *[AB] * 5])
    out, stats = tmp_path / "o", tmp_path / "stats"
    lines = said(run(PROGRAM, data, "-o", out, "--tokenizer", tokenizer, "--stats", stats))
    assert lines[0] == "audit of 15 pairs, in tokens before truncation:"
    for line in (
        "  an empty response: 1 pair, line 4 (--drop empty)",
        "  responses that differ in white space alone: 1 pair, line 3 (--drop whitespace)",
        "  a higher reward for the rejected response: 2 pairs, lines 5, 8 (--drop inverted)",
        "  the same reward for both responses: 2 pairs, lines 6, 9 (--drop tied)",
        "  both ways round (A over B here, B over A there): 7 pairs, lines 1 (of 2), 2 (of 1), 11 (of 2), 12 (of 2) and 3 more"
        " (--drop both-ways)",
        "  repeat an earlier pair: 5 pairs, lines 11 (of 1), 12 (of 1), 13 (of 1), 14 (of 1) and 1 more (--drop duplicates)",
    ):
        assert line in lines
    found = orjson.loads(stats.read_bytes())
    assert found["findings"] == {
        "empty": [f"{data}:4"],
        "whitespace": [f"{data}:3"],
        "inverted": [f"{data}:5", f"{data}:8"],
        "tied": [f"{data}:6", f"{data}:9"],
        "both-ways": [[f"{data}:{n}", f"{data}:{1 if n == 2 else 2}"] for n in (1, 2, *range(11, 16))],
        "duplicates": [[f"{data}:{n}", f"{data}:1"] for n in range(11, 16)],
        "cut-prompt": [],
        "cut-chosen": [],
        "cut-rejected": [],
    }
    assert found["rewards"] == {"pairs": 6, "agree": 2, "contradict": 2, "tied": 2}
    assert found["duplicates"] == {"prompts": 6, "pairs": 5, "both_ways": 1}
    clean = jsonl(tmp_path / "b.jsonl", SCORED[2:3])
    assert said(run(PROGRAM, clean, "-o", out, "--tokenizer", tokenizer))[-2] == (
        "  no repeats, no contradictions, no empty responses"
    )


def test_lengths_are_those_before_truncation_and_cuts_are_counted_by_side(tmp_path: Path, tokenizer: Path) -> None:
    """A token a character. Longer responses are chosen, which truncation would hide."""
    rows = [{"prompt": f"{n}", "chosen": "x" * (100 + n), "rejected": "y" * 60} for n in range(5)]
    data = jsonl(tmp_path / "a.jsonl", rows)
    lines = said(run(PROGRAM, data, "-o", tmp_path / "o", "--tokenizer", tokenizer, "--max-length", 40))
    chosen, rejected = (next(line.split() for line in lines if line.split()[0] == side) for side in ("chosen", "rejected"))
    assert chosen[1:] == ["101", "103", "105", "105", "5", "(100.0%)"]  # with the end of the turn
    assert rejected[1:] == ["61", "61", "61", "61", "5", "(100.0%)"]
    assert any(line.startswith("  longer: the chosen response in 100.0% of pairs, the rejected one in 0.0%") for line in lines)


# what is left out -> the lines that stay, and what the closing line says of the others
DROPS = {
    "duplicates": ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "1 dropped (1 duplicates)"),
    "both-ways": ([3, 4, 5, 6, 7, 8, 9, 10], "3 dropped (3 both-ways)"),
    "both-ways,duplicates,empty": ([3, 5, 6, 7, 8, 9, 10], "4 dropped (3 both-ways, 1 empty)"),
    "whitespace,tied": ([1, 2, 4, 5, 7, 8, 10, 11], "3 dropped (2 tied, 1 whitespace)"),
    "inverted": ([1, 2, 3, 4, 6, 7, 9, 10, 11], "2 dropped (2 inverted)"),
}


@pytest.mark.parametrize(("names", "expected"), DROPS.items(), ids=DROPS)
def test_what_is_left_out(tmp_path: Path, tokenizer: Path, names: str, expected: tuple[list[int], str]) -> None:
    data = jsonl(tmp_path / "a.jsonl", [AB, BA, SPACE, EMPTY, *SCORED, AB])
    out, rejects = tmp_path / "o", tmp_path / "rejects"
    done = run(PROGRAM, data, "-o", out, "--tokenizer", tokenizer, "--drop", names, "--rejects", rejects)
    kept, counted = expected
    assert lines_of(out) == kept
    assert f", {counted}, 0 errors, " in said(done)[-1]
    gone = records(rejects)
    assert sorted(reject["line"] for reject in gone) == sorted({*range(1, 12)} - {*kept})
    assert all(reject["drop"] and reject["source"] == str(data) for reject in gone)
    assert {reject["reason"] for reject in gone} <= set(names.split(","))
    with open_reader(out, "tokenized_pairs") as reader:
        assert reader.info.settings["drop"] == sorted(names.split(","))
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "o", "rejects"]


def test_rejects_have_the_rows_as_they_were_read_where_that_is_asked_for(tmp_path: Path, tokenizer: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_bytes(orjson.dumps(AB) + b'\n{bad \xff\n"text"\n' + orjson.dumps({**AB, "note": 1}) + b"\n")
    arguments = ("--tokenizer", tokenizer, "--drop", "duplicates", "--on-error", "skip", "--rejects", tmp_path / "r")
    check(PROGRAM, data, "-o", tmp_path / "o", *arguments)
    plain = records(tmp_path / "r")
    assert all("row" not in reject for reject in plain)
    check(PROGRAM, data, "-o", tmp_path / "o", *arguments, "--rejects-with-rows")
    with_rows = records(tmp_path / "r")
    assert [reject.pop("row") for reject in with_rows] == ["{bad \\xff\n", "text", {**AB, "note": 1}]
    assert with_rows == plain
    assert plain[-1]["message"] == f"the same pair came before: {data}:1"
    pq.write_table(pa.Table.from_pylist([{**AB, "note": n} for n in range(2)]), table := tmp_path / "t.parquet")
    check(PROGRAM, table, "-o", tmp_path / "o", *arguments, "--rejects-with-rows")
    (reject,) = records(tmp_path / "r")
    assert {name: reject["row"][name] for name in AB} == AB
    failed = run(PROGRAM, data, "-o", tmp_path / "o", "--tokenizer", tokenizer, "--rejects-with-rows")
    assert error_line(failed, PROGRAM).startswith("--rejects-with-rows needs --rejects FILE")


def test_held_out_by_prompt_in_two_whole_streams(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"prompt": f"q{n // 2}", "chosen": f"{n}", "rejected": "b"} for n in range(80)]
    data = jsonl(tmp_path / "a.jsonl", rows)

    def split(*more: object) -> tuple[list[int], list[int]]:
        outputs = ("-o", tmp_path / "train", "--split-output", tmp_path / "held")
        done = run(PROGRAM, data, *outputs, "--tokenizer", tokenizer, "--split", "validation=0.1", *more)
        train, held = lines_of(tmp_path / "train"), lines_of(tmp_path / "held")
        assert f" {len(train)} to {tmp_path}/train, {len(held)} to {tmp_path}/held, " in said(done)[-1]
        return train, held

    train, held = split()
    assert (len(held), sorted(train + held)) == (8, list(range(1, 81)))
    assert {(line - 1) // 2 for line in train}.isdisjoint((line - 1) // 2 for line in held)
    assert split("--seed", 42) == (train, held)
    assert split("--seed", 43)[1] != held
    for name, part in (("train", "rest"), ("held", "validation")):
        with open_reader(tmp_path / name, "tokenized_pairs") as reader:
            said_of = {"name": "validation", "share": "0.1", "seed": 43, "part": part}
            assert reader.info.settings["held_out"] == said_of
    both = split("--split", "train[:50%]", "--drop", "duplicates")
    assert (len(both[1]), len(both[0])) == (4, 36)
    assert max(both[0] + both[1]) == 40


def test_pipes_hold_out_too(tmp_path: Path, tokenizer: Path) -> None:
    rows = b"".join(orjson.dumps({**AB, "prompt": f"{n}"}) + b"\n" for n in range(20))
    arguments = ("--tokenizer", tokenizer, "--split", "test=0.25", "--split-output", tmp_path / "held")
    done = check(PROGRAM, "-", "-o", "-", *arguments, input=rows)
    with pa.ipc.open_stream(done.stdout) as stream:
        train = pa.Table.from_batches([batch for batch in stream if batch.num_rows]).column("source_line").to_pylist()
    assert sorted(train + lines_of(tmp_path / "held")) == list(range(1, 21))
    assert len(train) == 15


@pytest.mark.multiprocess
def test_the_number_of_workers_changes_nothing(tmp_path: Path, tokenizer: Path) -> None:
    rows = [
        {"prompt": f"q{n % 2000}", "chosen": "x" * (n % 7), "rejected": "y", "score_chosen": n % 5, "score_rejected": 2}
        for n in range(5000)
    ]
    data = jsonl(tmp_path / "a.jsonl", rows)
    acts = "--drop duplicates,both-ways,empty --split validation=0.05 --show 3 --random --max-length 40"
    names, made = ("o", "held", "rejects", "stats"), []
    for num_workers in (1, 2):
        outputs = [
            word
            for option, name in zip(("-o", "--split-output", "--rejects", "--stats"), names, strict=True)
            for word in (option, tmp_path / name)
        ]
        done = check(PROGRAM, data, *outputs, "--tokenizer", tokenizer, *acts.split(), "--num-workers", num_workers)
        lines = [line for line in said(done) if not line.startswith("tokenizing: ")]
        made.append([lines, *((tmp_path / name).read_bytes() for name in names)])
    assert made[0] == made[1]
    assert " dropped (" in made[0][0][-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "validation=0.5", "--split-output", "{d}/held"], "--split validation=0.5: 0.5 of 1 pair of 1 prompt is all"),
        (["--split", "validation=0.01", "--split-output", "{d}/held"], "--split validation=0.01: 0.01 of 1 pair of 1 prompt is none"),
        (["--split", "validation=0.5", "--split-output", "{d}/out"], "{d}/out: is named by -o and by --split-output"),
        (["--split", "validation=0.5", "--split-output", "{d}/a"], "{d}/a: --split-output would be written over what is read"),
        (["--drop", "twins"], "--drop twins names nothing: there are empty, "),
        (["--lines", "1,x"], "--lines 1,x are no line numbers: write them as 12,40"),
        (["--show", "1", "--longest", "--random"], "--random, --longest and --lines exclude each other"),
        (["--longest"], "--longest needs --show N"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_leaves_no_file(tmp_path: Path, tokenizer: Path, arguments: list[str], expected: str) -> None:
    data = jsonl(tmp_path / "a", [AB])
    given = [argument.replace("{d}", str(tmp_path)) for argument in arguments]
    done = run(PROGRAM, data, "-o", tmp_path / "out", "--tokenizer", tokenizer, *given)
    assert error_line(done, PROGRAM).startswith(expected.replace("{d}", str(tmp_path)))
    assert os.listdir(tmp_path) == ["a"]


def test_all_left_out_is_an_error(tmp_path: Path, tokenizer: Path) -> None:
    data = jsonl(tmp_path / "a", [AB, BA])
    done = run(PROGRAM, data, "-o", tmp_path / "out", "--tokenizer", tokenizer, "--drop", "both-ways")
    assert error_line(done, PROGRAM).startswith(
        f"{data}: no pair is left: 2 rows read, 0 pairs written (0 truncated), 2 dropped"
    )
    assert os.listdir(tmp_path) == ["a"]


def shown_lines(text: bytes) -> list[int]:
    return [int(line.split()[1]) for line in text.decode().splitlines() if line.startswith("line ")]


def test_pairs_are_shown_as_text(tmp_path: Path, tokenizer: Path) -> None:
    odd = {"prompt": "How\nare you?", "chosen": "\x1b[2J \u202e \u20ac\u00e4\n\nprompt: 3 tokens", "rejected": "tab\there\r"}
    rows = [AB, odd, {**AB, "chosen": "x" * 50}, SPACE]
    data = jsonl(tmp_path / "a.jsonl", rows)
    done = check(PROGRAM, data, "--tokenizer", tokenizer, "--lines", "2")
    prompt = f"<|im_start|>user\n{odd['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    texts = (prompt, *(f"{odd[side]}<|im_end|>" for side in ("chosen", "rejected")))
    count = [len(byte_level().encode(text, add_special_tokens=False).ids) for text in texts]
    assert done.stdout.decode() == (
        f"line 2 of a.jsonl\nprompt: {count[0]} tokens\n  | <|im_start|>user\n  | How\n  | are you?<|im_end|>\n  | <|im_start|>assistant\n  | \n"
        f"chosen: {count[1]} tokens\n  | \\x1b[2J \\u202e \u20ac\u00e4\n  | \n  | prompt: 3 tokens<|im_end|>\n"
        f"rejected: {count[2]} tokens\n  | tab\\there\\r<|im_end|>\n\n"
    )
    assert done.stderr.decode() == f"{PROGRAM}: nothing is written without -o\n"
    out = tmp_path / "o"
    check(PROGRAM, data, "-o", out, "--tokenizer", tokenizer)
    assert check(PROGRAM, out, "--lines", "2").stdout == done.stdout
    assert check(PROGRAM, "-", "--lines", "2", input=out.read_bytes()).stdout == done.stdout
    for arguments, expected in (
        (["--show", 2], [1, 2]),
        (["--show", 2, "--longest"], [3, 2]),
        (["--lines", "4,1"], [1, 4]),
        (["--show", 1, "--lines", "4,1"], [1]),
        (["--show", 9, "--random"], [1, 2, 3, 4]),
    ):
        assert shown_lines(check(PROGRAM, out, *arguments).stdout) == expected
    longest = ("--tokenizer", tokenizer, "--show", 2, "--longest")
    assert shown_lines(check(PROGRAM, data, *longest).stdout) == [3, 2]
    assert shown_lines(check(PROGRAM, data, "-o", "-", *longest).stderr) == [3, 2]
    drawn = [shown_lines(check(PROGRAM, out, "--show", 2, "--random", "--seed", n).stdout) for n in range(3)]
    assert len({tuple(lines) for lines in drawn}) > 1
    assert said(check(PROGRAM, out, "--lines", "3,7,9")) == ["no pair is of lines 7, 9"]


def test_a_stream_remembers_its_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tokenizer, own := tmp_path / "own")
    data, out = jsonl(tmp_path / "a.jsonl", [AB]), tmp_path / "o"
    check(PROGRAM, data.name, "-o", out, "--tokenizer", own.name, cwd=tmp_path)
    expected = check(PROGRAM, out, "--show", 1, cwd="/").stdout
    own.rename(moved)
    lost = error_line(run(PROGRAM, out, "--show", 1), PROGRAM)
    assert lost == f"{out}: was made with the tokenizer {own}, which cannot be read: --tokenizer names where it is now"
    assert check(PROGRAM, out, "--show", 1, "--tokenizer", moved).stdout == expected
    save(own, byte_level(adds_bos=True), chat_template=CHATML, eos_token="<|im_end|>")
    changed = error_line(run(PROGRAM, out, "--show", 1), PROGRAM)
    assert changed.startswith(f"{out}: was made with the tokenizer {own}, which has changed since: --tokenizer names")
    other = check(PROGRAM, out, "--show", 1, "--tokenizer", own)
    assert said(other) == [f"warning: {out}: was not made with the tokenizer {own}: its texts may be others"]


def test_columns_that_look_swapped_are_named(tmp_path: Path, tokenizer: Path) -> None:
    """By their names before the first row is read, and by most of the rewards at the end, those that are left out too."""
    data = jsonl(tmp_path / "a.jsonl", [{**AB, "prompt": str(n), "chosen_score": n, "rejected_score": 5} for n in range(8)])
    base = (data, "-o", tmp_path / "o", "--tokenizer", tokenizer)
    by_name = "warning: reads the column 'rejected' as the chosen one and 'chosen' as the rejected one: are they swapped?"
    turned = ("--chosen-key", "rejected", "--rejected-key", "chosen")
    assert said(run(PROGRAM, *base, *turned))[0] == by_name
    assert by_name not in said(run(PROGRAM, *base, *turned, "--swap"))
    by_reward = (
        "warning: in 5 of 8 pairs with rewards (chosen_score, rejected_score) the rejected response has the higher one: are chosen"
        " and rejected swapped? --swap exchanges them (data.train.chosen_key and rejected_key in a config)"
    )
    assert by_reward in said(run(PROGRAM, *base))
    assert by_reward in said(run(PROGRAM, *base, "--drop", "inverted"))
    assert not any("swapped?" in line for line in said(run(PROGRAM, *base, "--swap")))
    refused = run(PROGRAM, *base, "--chosen-key", "prompt")
    assert error_line(refused, PROGRAM) == (
        "'prompt' is named as prompt and as chosen: name two columns with --prompt-key and --chosen-key"
    )
    assert refused.returncode == 2


def test_what_is_about_rows_is_refused_for_a_stream(tmp_path: Path, tokenizer: Path) -> None:
    data, out = jsonl(tmp_path / "a.jsonl", [AB]), tmp_path / "o"
    check(PROGRAM, data, "-o", out, "--tokenizer", tokenizer)
    for arguments, expected in (
        ([out, "--show", 1, "--drop", "tied"], f"--drop is about rows, and {out} is a stream of pairs"),
        ([out, "--show", 1, "--max-length", 9], f"--max-length is about rows, and {out} is a stream of pairs"),
        (
            [data, "--show", 1, "--tokenizer", tokenizer, "--stats", tmp_path / "s"],
            "--stats needs -o: without it no more rows are read",
        ),
        ([data, "--tokenizer", tokenizer], "Missing option '-o' / '--output', or --show to look at pairs only"),
        ([data, "--show", 1], "Missing option '--tokenizer'"),
        ([data, "-o", tmp_path / "p"], "Missing option '--tokenizer'"),
    ):
        done = run(PROGRAM, *arguments)
        assert error_line(done, PROGRAM).startswith(expected)
        assert done.returncode == 2
    (cut := tmp_path / "cut").write_bytes(out.read_bytes()[:-300])
    assert "is cut or damaged" in error_line(run(PROGRAM, cut, "--show", 9), PROGRAM)
