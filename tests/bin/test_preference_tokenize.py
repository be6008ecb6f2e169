"""preference-tokenize as a shell runs it: inputs, audit, exit codes and the exact words on stderr."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.selection import Choice, Picker, Shown
from nemotron_dpo.preferences.tokenize_chunk import Settings
from nemotron_dpo.preferences.tokenize_files import Tokenization, tokenize_files
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from nemotron_dpo.streams import open_reader
from support.chat_templates import CHATML
from support.preference_rows import NOON
from support.programs import BIN, check, command, error_line, run
from support.small_tokenizers import byte_level, save

PROGRAM = "preference-tokenize"
ROW = {"prompt": "How are you?", "chosen": "Fine.", "rejected": "no"}
LINE = orjson.dumps(ROW) + b"\n"
COUNTS = "preference-tokenize: {} read, {} written (0 truncated), {}, {}, {} tokens\n"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"), byte_level(), chat_template=CHATML, eos_token="<|im_end|>")


def read(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    with open_reader(path, "tokenized_pairs") as reader:
        return reader.info, reader.read_all().to_pylist()


def tokenize(tmp_path: Path, tokenizer: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return run(PROGRAM, *arguments, "-o", tmp_path / "out.arrow", "--tokenizer", tokenizer, **options)


def rows(count: int) -> bytes:
    return b"".join(orjson.dumps({**ROW, "prompt": f"question {i}"}) + b"\n" for i in range(count))


def test_pairs_provenance_and_counts(tmp_path: Path, tokenizer: Path) -> None:
    (data := tmp_path / "pairs.jsonl").write_bytes(LINE)
    done = tokenize(tmp_path, tokenizer, data, "--max-length", 99)
    info, (pair,) = read(tmp_path / "out.arrow")
    decode = byte_level().decode
    assert decode(pair["prompt_ids"], False) == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert decode(pair["chosen_ids"], False) == "Fine.<|im_end|>"
    assert decode(pair["rejected_ids"], False) == "no<|im_end|>"
    num_tokens = sum(len(pair[f"{k}_ids"]) for k in ("prompt", "chosen", "rejected"))
    assert done.stderr.decode().endswith(COUNTS.format("1 row", "1 pair", "0 dropped", "0 errors", num_tokens))
    assert done.stdout == b""
    digest = subprocess.run(["sha256sum", str(data)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert info.digests["input"] == f"sha256:{digest}"
    assert set(info.digests) == {"input", "tokenizer", "chat_template"}
    assert (info.producer, info.settings["max_length"]) == (PROGRAM, 99)


def test_rewards_and_the_name_of_the_data_travel_along(tmp_path: Path, tokenizer: Path) -> None:
    """From a table, of which only the columns that are needed are read, and from a CSV."""
    made = [{**ROW, "prompt": str(n), "mine": n / 2, "theirs": -n, "other": n} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "table.parquet")
    cells = "\n".join(["prompt,chosen,rejected,score_chosen,score_rejected", "a,b,c,1.5,0.5", "d,e,f,2,1"])
    (tmp_path / "cells.csv").write_text(cells)
    keys = ("--chosen-reward-key", "mine", "--rejected-reward-key", "theirs")
    done = tokenize(tmp_path, tokenizer, tmp_path / "table.parquet", *keys)
    assert "rewards of 3 pairs (mine, theirs), of which" not in done.stderr.decode()
    assert "; rewards of 3 pairs (mine, theirs)" in done.stderr.decode()
    info, found = read(tmp_path / "out.arrow")
    columns = ("source", "source_line", "chosen_reward", "rejected_reward")
    expected = [("table.parquet", 1, 0, 0), ("table.parquet", 2, 0.5, -1), ("table.parquet", 3, 1, -2)]
    assert [tuple(row[name] for name in columns) for row in found] == expected
    assert info.settings["reward_keys"] == ["mine", "theirs"]
    done = tokenize(tmp_path, tokenizer, tmp_path / "cells.csv", "--source-name", "sheet")
    info, found = read(tmp_path / "out.arrow")
    assert [tuple(row[name] for name in columns) for row in found] == [("sheet", 2, 1.5, 0.5), ("sheet", 3, 2, 1)]
    assert info.settings["source_name"] == "sheet"
    assert "reward_keys" not in info.settings
    done = tokenize(tmp_path, tokenizer, tmp_path / "cells.csv", *keys)
    assert error_line(done, PROGRAM) == (
        f'{tmp_path}/cells.csv:2: "mine" is missing; the row has prompt, chosen, rejected, '
        "score_chosen, score_rejected: --chosen-reward-key names another column (data.train.chosen_reward_key in a config)"
    )
    done = tokenize(tmp_path, tokenizer, tmp_path / "cells.csv", *keys[:2])
    assert done.returncode == 2
    assert "--chosen-reward-key needs --rejected-reward-key: a pair has two rewards" in done.stderr.decode()


def test_data_are_called_by_the_last_part_that_tells_them_apart(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("a/train.jsonl", "b/train.jsonl", "b/test.jsonl", "folder/x.jsonl", "folder/y.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)

    def names(*inputs: object, **options: Any) -> list[str]:
        tokenize(tmp_path, tokenizer, *inputs, **options)
        return [row["source"] for row in read(tmp_path / "out.arrow")[1]]

    assert names(tmp_path / "a/train.jsonl") == ["train.jsonl"]
    assert names(tmp_path / "folder") == ["folder", "folder"]
    assert names(tmp_path / "folder/*.jsonl") == ["x.jsonl", "y.jsonl"]
    both = names(tmp_path / "a/train.jsonl", tmp_path / "b/*.jsonl", tmp_path / "folder")
    assert both == ["a/train.jsonl", "b/test.jsonl", "b/train.jsonl", *[f"{tmp_path.name}/folder"] * 2]
    assert names("-", input=LINE) == ["stdin"]


def test_every_container_gives_the_same_pairs(tmp_path: Path, tokenizer: Path) -> None:
    table = pa.Table.from_pylist([ROW] * 3)
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "a.jsonl").write_bytes(LINE * 3)
    (stored / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") * 3)
    (stored / "c.jsonl.gz").write_bytes(gzip.compress(LINE * 2) + gzip.compress(LINE))
    (stored / "d.jsonl.zst").write_bytes(pa.compress(LINE * 3, "zstd", asbytes=True))
    pq.write_table(table, stored / "e.parquet")
    with pa.ipc.new_file(stored / "f.arrow", table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(stored / "g.arrow", table.schema) as stream:
        stream.write_table(table)
    files = sorted(stored.iterdir())
    for inputs in (files, [stored], [stored / "*"]):
        assert tokenize(tmp_path, tokenizer, *inputs).returncode == 0
        pairs = read(tmp_path / "out.arrow")[1]
        assert len(pairs) == 3 * len(files)
        assert len({pair["pair_id"] for pair in pairs}) == 1
        assert [pair["source_line"] for pair in pairs] == [1, 2, 3] * len(files)


def test_tables_are_read_where_they_are_sound_and_no_further(tmp_path: Path, tokenizer: Path) -> None:
    """A column that nobody reads does not matter; a value that cannot be read is the error of its row, by its number."""
    texts = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    far = pa.array([1 << 60] * 3).view(pa.timestamp("us", "Mars/Olympus"))
    columns = [texts, pa.array(["a"] * 3), pa.array(["b"] * 3), far, texts]
    pq.write_table(pa.table(columns, names=["prompt", "chosen", "rejected", "when", "note"]), data := tmp_path / "t.parquet")
    failed = tokenize(tmp_path, tokenizer, data)
    assert error_line(failed, PROGRAM) == f'{data}:2: "prompt" is not valid UTF-8'
    skipped = tokenize(tmp_path, tokenizer, data, "--on-error", "skip", "--rejects", tmp_path / "rejects")
    assert [pair["source_line"] for pair in read(tmp_path / "out.arrow")[1]] == [1, 3]
    assert b"3 rows read, 2 pairs written (0 truncated), 0 dropped, 1 error (1 invalid UTF-8)" in skipped.stderr
    (reject,) = [orjson.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    assert (reject["line"], reject["field"], reject["reason"]) == (2, "prompt", "invalid UTF-8")


def test_a_folder_of_shards_counts_the_empty_ones_and_names_all(tmp_path: Path, tokenizer: Path) -> None:
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "a.jsonl").write_bytes(LINE)
    (stored / "b.jsonl").touch()
    (stored / "c.json").write_bytes(b"[" + LINE + b"," + LINE + b"]")
    done = tokenize(tmp_path, tokenizer, stored, "--stats", tmp_path / "stats")
    assert done.stderr.decode().splitlines()[-1].startswith(f"{PROGRAM}: 3 rows read from 3 files (1 empty), 3 pairs written")
    files = orjson.loads((tmp_path / "stats").read_bytes())["files"]
    assert files == {str(stored / name): count for name, count in (("a.jsonl", 1), ("b.jsonl", 0), ("c.json", 2))}
    own = [("a.jsonl", 1), ("c.json", 1), ("c.json", 2)]
    places = ("source", "source_file", "source_line")
    for named, name in (((), "stored"), (("--source-name", "mine"), "mine")):  # source_line counts within the file
        assert tokenize(tmp_path, tokenizer, stored, *named).returncode == 0
        assert [tuple(pair[key] for key in places) for pair in read(tmp_path / "out.arrow")[1]] == [(name, *one) for one in own]
    shown = run(PROGRAM, "--show", "3", tmp_path / "out.arrow").stdout.decode()
    assert "c.json" in shown
    assert tokenize(tmp_path, tokenizer, stored / "a.jsonl").returncode == 0  # of one file, source is its name already
    assert [tuple(pair[key] for key in places) for pair in read(tmp_path / "out.arrow")[1]] == [("a.jsonl", None, 1)]


@pytest.mark.multiprocess
def test_workers_and_limits_treat_tables_and_arrays_as_lines(tmp_path: Path, tokenizer: Path) -> None:
    table = [{**ROW, "prompt": f"q{i}", "tools": [{"name": "t"}] if i % 2 else [{"parameters": {"a": i}}]} for i in range(600)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    (tmp_path / "array.json").write_bytes(orjson.dumps(table))
    for name in ("t.parquet", "array.json"):
        outputs = set()
        for num_workers in (1, 2):
            done = tokenize(tmp_path, tokenizer, tmp_path / name, "--num-workers", num_workers, "--limit", 520)
            assert done.returncode == 0, done.stderr
            outputs.add((tmp_path / "out.arrow").read_bytes())
        assert len(outputs) == 1, name
        assert [pair["source_line"] for pair in read(tmp_path / "out.arrow")[1]] == list(range(1, 521)), name


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, tokenizer: Path) -> None:
    (data := tmp_path / "a").write_bytes(LINE)

    def change(pair: Shown) -> None:
        data.write_bytes(LINE * 2)

    job = Tokenization((str(data),), str(tmp_path / "out"))
    with pytest.raises(UserError, match="was changed while it was read"):
        tokenize_files(job, Settings(open_folder(str(tokenizer)), NOON), Picker(Choice(number=1), change))
    assert os.listdir(tmp_path) == ["a"]


def test_pipes(tokenizer: Path) -> None:
    done = check(PROGRAM, "-", "-o", "-", "--tokenizer", tokenizer, input=gzip.compress(LINE))
    with pa.ipc.open_stream(done.stdout) as stream:
        assert sum(batch.num_rows for batch in stream) == 1
        assert b'"input":"stream"' in stream.schema.metadata[b"nemotron_dpo"]


def test_shapes_differ_from_file_to_file(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE)
    conversations = {k: [{"role": "user", "content": "q"}, {"role": "assistant", "content": k}] for k in ("chosen", "rejected")}
    (tmp_path / "b.jsonl").write_bytes(orjson.dumps(conversations))
    assert tokenize(tmp_path, tokenizer, tmp_path / "a.jsonl", tmp_path / "b.jsonl").returncode == 0
    forced = tokenize(tmp_path, tokenizer, tmp_path / "b.jsonl", "--format", "transcript")
    assert error_line(forced, PROGRAM) == f'{tmp_path}/b.jsonl:1: "chosen" is a list where a string is due'


def test_a_split_of_a_folder_and_a_part_of_a_file(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(rows(10))
    (tmp_path / "data" / "test.jsonl").write_bytes(rows(4))
    pq.write_table(
        table := pa.Table.from_pylist([orjson.loads(row) for row in rows(10).splitlines()]), tmp_path / "table.parquet"
    )
    with pa.OSFile(str(tmp_path / "table.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    for name, split, lines in (
        ("data", "train", list(range(1, 11))),
        ("data", "test[1:]", [2, 3, 4]),
        ("data", "train[:15%]+test[-1:]", [1, 2, 4]),  # 1.5 rows are 2, as for `datasets`
        ("data/train.jsonl", "train[-3:-1]", [8, 9]),
        ("data/train.jsonl", "validation", list(range(1, 11))),
        ("table.parquet", "train[:25%]", [1, 2]),  # 2.5 rows are 2
        ("table.arrow", "train[-10%:]", [10]),
    ):
        check(PROGRAM, tmp_path / name, "-o", tmp_path / "out.arrow", "--tokenizer", tokenizer, "--split", split)
        info, pairs = read(tmp_path / "out.arrow")
        assert [pair["source_line"] for pair in pairs] == lines, split
        assert info.settings["split"] == split


def test_a_built_in_name_needs_an_extra_and_says_so(tmp_path: Path, tokenizer: Path) -> None:
    if importlib.util.find_spec("datasets") is not None:
        pytest.skip("the package datasets is installed here")
    done = tokenize(tmp_path, tokenizer, "HelpSteer3")
    expected = (
        'nvidia/HelpSteer3: is read by the package datasets, which is not installed: pip install "nemotron-dpo[datasets]"'
    )
    assert error_line(done, PROGRAM) == expected
    assert done.returncode == 1


BAD_INPUTS = {
    "empty": (b"", "{f}: is empty"),
    "broken JSON": (LINE + b"{bad\n", "{f}:2: is broken JSON at column 2: unexpected character, expected a string key"),
    "no number": (b'{"prompt":"a","chosen":NaN}', "{f}:1: is broken JSON at column 24: NaN is no JSON: write null"),
    "missing field": (
        LINE + b'{"prompt":"a","chosen":"b"}\n',
        '{f}:2: "rejected" is missing; the row has prompt, chosen: --rejected-key names another column'
        " (data.train.rejected_key in a config)",
    ),
    "after a blank line": (
        LINE + b'\n{"prompt":"a","rejected":"b"}',
        '{f}:3: "chosen" is missing; the row has prompt, rejected: --chosen-key names another column'
        " (data.train.chosen_key in a config)",
    ),
    "columns of other names": (
        b'{"question":"a","good":"b","bad":"c"}',
        '{f}:1: "prompt" is missing; the row has question, good, bad: --prompt-key names another column'
        " (data.train.prompt_key in a config)",
    ),
    "a conversation without the other": (
        b'{"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}',
        '{f}:1: "rejected" is missing; the row has chosen: --rejected-key names another column'
        " (data.train.rejected_key in a config)",
    ),
    "no column of a pair": (
        b'{"context":"a","completions":[{"rank":0,"completion":"a"},{"rank":1,"text":"b"}]}',
        '{f}:1: "completion" is missing; the row has rank, text',
    ),
    "wrong type": (
        b'{"prompt":1,"chosen":"a","rejected":"b"}',
        '{f}:1: "prompt" is a number where a string or a list of messages is due',
    ),
    "invalid UTF-8": (b'{"prompt":"\xff"}', "{f}:1: is not valid UTF-8 at byte 12"),
    "lone surrogate": (b'{"prompt":"\\ud800"}', "{f}:1: is broken JSON at column 12: no low surrogate in string"),
    "no object": (b'"a"\n[1]\n', "{f}:1: holds a string where an object is due"),
    "no object in an array": (b"[" + LINE + b",[1]]", "{f}:2: holds a list where an object is due"),
    "deep nesting": (b'{"a":' * 100_000, "{f}:1: is broken JSON at column 5122: depth limit exceeded"),
    "array without end": (b"[" * 1_000, "{f}: is cut or damaged after row 0: its JSON array has no end"),
    "arrays without end": (b"[" * 100_000, "{f}: is cut or damaged after row 0: its JSON is nested more than 1100 levels deep"),
    "NUL bytes": (bytes(1000), "{f}:1: is broken JSON at column 1: unexpected character, expected a JSON value"),
    "nothing left": (b'{"prompt":"a","chosen":"b","rejected":"b"}', "{f}: no pair is left: 1 row read, 0 pairs written "
        "(0 truncated), 1 dropped (1 equal responses), 0 errors, 0 tokens"),
    "cut gzip": (gzip.compress(rows(500))[:-20], "{f}: is cut or damaged after line {n}: Compressed file ended before the "
        "end-of-stream marker was reached"),
    "no Parquet": (b"PAR1" + bytes(100), "{f}: is cut or damaged after row 0: Parquet magic bytes not found in footer. Either "
        "the file is corrupted or this is not a parquet file"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_one_clear_line(tmp_path: Path, tokenizer: Path, content: bytes, expected: str) -> None:
    (data := tmp_path / "bad").write_bytes(content)
    done = tokenize(tmp_path, tokenizer, data)
    line = error_line(done, PROGRAM)
    if "{n}" in expected:
        number = int(line.partition("after line ")[2].partition(":")[0])
        assert 400 < number < 500
        expected = expected.replace("{n}", str(number))
    assert line == expected.replace("{f}", str(data))
    assert done.returncode == 1
    assert os.listdir(tmp_path) == ["bad"]


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["{d}/none.jsonl"], 1, "{d}/none.jsonl: no such file"),
        (["{d}/*.none"], 1, "{d}/*.none: matches no file"),
        (["org/none"], 1, "org/none: no such file: a Hugging Face dataset is read with --split"),
        (["{d}/a", "--max-length", "x"], 2, "Invalid value for '--max-length': 'x' is not a valid integer range: see "),
        (["{d}/a", "--chat-template", "{d}/none"], 1, "{d}/none: no such file"),
        (["{d}/a", "--chat-template", "{d}/a"], 1, "{d}/a:1: the chat template does not compile"),
        (["{d}/a", "--chat-template", "{d}/a", "--num-workers", "2"], 1, "{d}/a:1: the chat template does not compile"),
        (["{d}/a", "--chat-template-kwargs", "[]"], 2, "Invalid value for --chat-template-kwargs: no JSON object: see "),
        (["{d}/a", "--template-date", "May"], 2, "Invalid value for --template-date: 'May' is no date like 2026-01-31"),
        (["{d}/a", "--system-prompt-file", "{d}/none"], 1, "{d}/none: no such file or directory"),
        (["{d}/a", "--rejects", "{d}/none/r"], 1, "{d}/none/r: no such file or directory"),
        (["{d}/b", "-o", "{d}/none/o"], 1, "{d}/none/o: no such file or directory"),
        (["{d}/b", "-o", "{d}"], 1, "{d}: is a directory"),
        (["{d}/b", "-o", "/dev/full"], 1, "/dev/full: no space left on device"),
        (["{d}/b", "--tokenizer", "{d}/none"], 1, "{d}/none: no such model folder"),
        (["{d}/b", "--tokenizer", "{d}"], 1, "{d}: is neither an HF folder"),
        (["{d}/b", "--max-line-bytes", "10"], 1, "{d}/b:1: has more than 10 bytes (--max-line-bytes)"),
    ],
)
def test_mistakes_of_the_caller(tmp_path: Path, tokenizer: Path, arguments: list[str], status: int, expected: str) -> None:
    (tmp_path / "a").write_text("{% for %}")
    (tmp_path / "b").write_bytes(LINE)
    given_arguments = [argument.replace("{d}", str(tmp_path)) for argument in arguments]
    done = run(PROGRAM, "-o", tmp_path / "out.arrow", "--tokenizer", tokenizer, *given_arguments)
    assert error_line(done, PROGRAM).startswith(expected.replace("{d}", str(tmp_path)))
    assert done.returncode == status
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_skipped_errors_and_drops_are_counted_and_listed(tmp_path: Path, tokenizer: Path) -> None:
    equal = orjson.dumps({**ROW, "rejected": "Fine."}) + b"\n"
    (data := tmp_path / "a").write_bytes(LINE + b"{bad\n" + equal + b'{"prompt":"' + b"x" * 300 + b'"}\n' + LINE)
    audit = ("--on-error", "skip", "--rejects", tmp_path / "rejects", "--stats", tmp_path / "stats", "--max-line-bytes", 200)
    done = tokenize(tmp_path, tokenizer, data, *audit)
    assert done.returncode == 0
    rejects = [orjson.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    assert [(r["line"], r["reason"], r["drop"]) for r in rejects] == [
        (2, "broken JSON", False),
        (3, "equal responses", True),
        (4, "line too long", False),
    ]
    stats = orjson.loads((tmp_path / "stats").read_bytes())
    assert (stats["rows"], stats["pairs"], stats["duplicates"]["pairs"]) == (5, 2, 1)
    num_tokens = sum(part["total"] for part in stats["tokens"].values())
    drops, errors = "1 dropped (1 equal responses)", "2 errors (1 broken JSON, 1 line too long)"
    first = f"{PROGRAM}: warning: 2 rows have errors, the first: {data}:2: is broken JSON at column 2: "
    assert [line for line in done.stderr.decode().splitlines() if line.startswith(first)]
    lost = f"{PROGRAM}: warning: 3 of 5 rows became no pair\n"
    assert done.stderr.decode().endswith(lost + COUNTS.format("5 rows", "2 pairs", drops, errors, num_tokens))


def test_where_every_row_has_an_error_the_first_is_said(tmp_path: Path, tokenizer: Path) -> None:
    (data := tmp_path / "a").write_bytes(b'{"prompt": \n[1]\n')
    line = error_line(tokenize(tmp_path, tokenizer, data, "--on-error", "skip"), PROGRAM)
    assert line.startswith(f"{data}: no pair is left: 2 rows read, ")
    assert f": the first error is {data}:1: is broken JSON at column " in line


def test_pairs_that_were_cut_are_said_by_side(tmp_path: Path, tokenizer: Path) -> None:
    """Of ten pairs the chosen response of two is too long, more than one in ten; of 20 pairs that would be one in ten."""
    long = orjson.dumps({**ROW, "chosen": "x" * 300}) + b"\n"
    for whole, expected in ((8, "--max-length cut 2 of 10 pairs (chosen in 2): a response"), (18, None)):
        (data := tmp_path / "a").write_bytes(rows(whole) + long * 2)
        said = tokenize(tmp_path, tokenizer, data, "--max-length", "200").stderr.decode()
        assert expected in said if expected else "warning" not in said


def test_what_was_not_read_or_left_out_is_said_at_the_end(tmp_path: Path, tokenizer: Path) -> None:
    odd = {**ROW, "images": ["a.png"]}
    asks = {**ROW, "system": "Be brief.", "score": 7, "source": "web"}
    listed = {**ROW, "prompt": [{"role": "human", "content": [{"type": "text", "text": "How are you?"}]}], "source": "book"}
    lost = {**ROW, "chosen": [{"role": "assistant", "content": "Fine.", "reasoning_content": "Am I?"}]}
    (data := tmp_path / "a").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in (asks, odd, listed, lost, ROW)))
    failed = tokenize(tmp_path, tokenizer, data)
    assert error_line(failed, PROGRAM) == f'{data}:2: "images" holds images or sound, and the policy reads text alone'
    assert os.listdir(tmp_path) == ["a"]
    done = tokenize(
        tmp_path, tokenizer, data, "--on-error", "skip", "--rejects", tmp_path / "rejects", "--stats", tmp_path / "stats"
    )
    errors = "2 errors (1 images or sound, 1 text left out)"
    assert done.stderr.decode().endswith("; columns part of the prompt: system; columns not read: score, source\n")
    assert f"5 rows read, 3 pairs written (0 truncated), 0 dropped, {errors}, " in done.stderr.decode()
    rejects = [orjson.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    assert [(r["line"], r["reason"]) for r in rejects] == [(2, "images or sound"), (4, "text left out")]
    stats = orjson.loads((tmp_path / "stats").read_bytes())
    assert (stats["columns_read_besides"], stats["columns_not_read"]) == ({"system": 1}, {"score": 1, "source": 2})
    assert stats["changed_by_template"] == {}
    decode = byte_level().decode
    heads = [decode(pair["prompt_ids"], False) for pair in read(tmp_path / "out.arrow")[1]]
    user = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert heads == [f"<|im_start|>system\nBe brief.<|im_end|>\n{user}", user, user]


def test_white_space_that_the_template_cuts_is_said(tmp_path: Path, tokenizer: Path) -> None:
    (cutting := tmp_path / "t.jinja").write_text(CHATML.replace("message['content']", "message['content'] | trim"))
    (data := tmp_path / "a").write_bytes(LINE + orjson.dumps({**ROW, "chosen": " Fine."}) + b"\n")
    done = tokenize(tmp_path, tokenizer, data, "--chat-template", cutting)
    assert done.stderr.decode().endswith(" tokens; white space at the ends of texts changed in 1 row\n")


def test_a_role_of_no_known_name_is_an_error_unless_the_template_knows_it(tmp_path: Path, tokenizer: Path) -> None:
    row = {**ROW, "prompt": [{"role": "narrator", "content": "Once."}, {"role": "user", "content": "How are you?"}]}
    (data := tmp_path / "a").write_bytes(orjson.dumps(row))
    said = f'{data}:1: has a turn of the role "narrator": roles are system, user, assistant, tool'
    assert error_line(tokenize(tmp_path, tokenizer, data), PROGRAM) == said
    (knowing := tmp_path / "t.jinja").write_text("{% if messages[0].role == 'narrator' %}A tale. {% endif %}" + CHATML)
    assert tokenize(tmp_path, tokenizer, data, "--chat-template", knowing).returncode == 0
    for placeholder in ("<image>", "<start_of_image>", "[IMG]", "<|vision_start|>"):
        (asking := tmp_path / "b").write_bytes(orjson.dumps({**ROW, "prompt": f"What is in {placeholder}?"}))
        assert error_line(tokenize(tmp_path, tokenizer, asking), PROGRAM) == (
            f"{asking}:1: a text of the prompt asks to look at {placeholder}, and the policy reads text alone"
        )
    for markup in ("<image>a</image>", "[IMG]a.png[/IMG]"):
        (forum := tmp_path / "c").write_bytes(orjson.dumps({**ROW, "prompt": f"What is in {markup}?"}))
        assert tokenize(tmp_path, tokenizer, forum).returncode == 0, markup


def test_two_columns_of_one_name_are_an_error(tmp_path: Path, tokenizer: Path) -> None:
    columns = [pa.array([text]) for text in ("q", "a", "b", "c")]
    table = pa.Table.from_arrays(columns, names=["prompt", "chosen", "rejected", "chosen"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_stream(tmp_path / "t.arrow", table.schema) as stream:
        stream.write_table(table)
    for file in ("t.parquet", "t.arrow"):
        line = error_line(tokenize(tmp_path, tokenizer, tmp_path / file), PROGRAM)
        assert line == f'{tmp_path}/{file}: "chosen" is the name of more than one column: rename or drop one'


def test_limit_reads_the_first_rows_only(tmp_path: Path, tokenizer: Path) -> None:
    (data := tmp_path / "a").write_bytes(rows(3) + b"{bad")
    assert tokenize(tmp_path, tokenizer, data, "--limit", 3).returncode == 0
    assert len(read(tmp_path / "out.arrow")[1]) == 3


@pytest.mark.multiprocess
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    broken = rows(4500) + b"{bad\n" + rows(4000) + LINE * 3  # three chunks
    (tmp_path / "a").write_bytes(broken)
    outputs = []
    for num_workers in (1, 2, 3):
        audit = ("--on-error", "skip", "--rejects", tmp_path / "rejects", "--stats", tmp_path / "stats")
        done = tokenize(tmp_path, tokenizer, tmp_path / "a", "--num-workers", num_workers, *audit)
        assert done.returncode == 0, done.stderr
        outputs.append([(tmp_path / name).read_bytes() for name in ("out.arrow", "rejects", "stats")])
    assert outputs[0] == outputs[1] == outputs[2]
    assert read(tmp_path / "out.arrow")[1][-1]["source_line"] == 8504
    failed = tokenize(tmp_path, tokenizer, tmp_path / "a", "--num-workers", 2)
    assert error_line(failed, PROGRAM).startswith(f"{tmp_path}/a:4501: is broken JSON")


def test_shown_pairs(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a").write_bytes(LINE + orjson.dumps({**ROW, "chosen": "\x1b[2J"}) + b"\n" + LINE)
    plain = tokenize(tmp_path, tokenizer, tmp_path / "a", "--show", 2, "--show-tokens").stderr.decode()
    assert plain.count("prompt: ") == plain.count("rejected: ") == 2
    assert "<|im_start|>|" in plain
    assert "\x1b" not in plain
    coloured = tokenize(tmp_path, tokenizer, tmp_path / "a", "--show", 1, env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b[35m<|im_end|>\x1b[0m" in coloured.stderr.decode()


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.multiprocess
def test_interrupts_leave_nothing_behind(
    tmp_path: Path, tokenizer: Path, number: signal.Signals, status: int, word: str, num_workers: int
) -> None:
    argv = command(PROGRAM, "-", "-o", tmp_path / "out.arrow", "--tokenizer", tokenizer, "--num-workers", num_workers)
    running = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdin is not None
    running.stdin.write(rows(5000))
    running.stdin.flush()
    while not os.listdir(tmp_path):
        time.sleep(0.01)
        assert running.poll() is None
    running.send_signal(number)
    _, said = running.communicate()
    assert (running.returncode, said.decode()) == (status, f"{PROGRAM}: error: {word}\n")
    assert os.listdir(tmp_path) == []


def test_a_closed_pipe_is_told(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a").write_bytes(LINE)
    argv = command(PROGRAM, tmp_path / "a", "-o", "-", "--tokenizer", tokenizer)
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read().decode() == f"{PROGRAM}: error: <stdout>: the reader closed the pipe early\n"
    assert running.wait() == 1


PROBE = """
import sys, preference_tokenize
try:
    preference_tokenize.main()
except SystemExit:
    pass
print({modules} & set(sys.modules), file=sys.stderr)
"""


def loaded_modules(modules: set[str], *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run main() with `arguments`; the last line on stderr says which of `modules` it imported."""
    argv = [sys.executable, "-c", PROBE.format(modules=modules), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": str(BIN)})


def test_help_is_the_docstring_and_imports_nothing_heavy() -> None:
    import preference_tokenize

    done = loaded_modules({"torch", "transformers", "pyarrow", "numpy", "jinja2", "tokenizers"}, "--help")
    assert (preference_tokenize.__doc__ or "").splitlines()[0] in " ".join(done.stdout.decode().split())
    assert done.stderr == b"set()\n"


def test_torch_and_transformers_are_never_imported(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a").write_bytes(LINE)
    done = loaded_modules({"torch", "transformers"}, tmp_path / "a", "-o", tmp_path / "o", "--tokenizer", tokenizer)
    assert done.stderr.decode().endswith("\nset()\n")
    assert (tmp_path / "o").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
COLUMNS = ["prompt", "chosen", "rejected", "context", "completions", "response1", "overall_preference", "tools"]
OBJECTS = st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=6).map(lambda row: json.dumps(row).encode())
FUZZED = st.one_of(st.binary(max_size=60), OBJECTS)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(FUZZED, min_size=1, max_size=4))
@pytest.mark.slow
def test_no_row_brings_a_traceback(tmp_path: Path, tokenizer: Path, lines: list[bytes]) -> None:
    """In this process, for speed: anything but a UserError would be a traceback for a user."""
    (tmp_path / "fuzzed").write_bytes(b"\n".join(lines))
    job = Tokenization((str(tmp_path / "fuzzed"),), str(tmp_path / "out"), skip_errors=True)
    try:
        tally = tokenize_files(job, Settings(open_folder(str(tokenizer)), NOON))
    except UserError as error:
        outcome = str(error)
    else:
        outcome = tally.closing_line()
        assert tally.num_pairs > 0
    assert "\n" not in outcome


def test_rows_that_no_template_renders_are_said_to_be_plain_text(tmp_path: Path) -> None:
    (data := tmp_path / "pairs.jsonl").write_bytes(LINE)
    bare = save(tmp_path / "bare", byte_level(), eos_token="</s>")
    lines = tokenize(tmp_path, bare, data).stderr.decode().splitlines()
    assert lines[0] == f"{PROGRAM}: {bare}: no chat template: rows are taken as plain text"
    assert lines[1] == f"{PROGRAM}: audit of 1 pair, in tokens before truncation:"


def test_a_class_that_transformers_5_builds_otherwise_is_named(tmp_path: Path) -> None:
    (data := tmp_path / "pairs.jsonl").write_bytes(LINE)
    folder = save(tmp_path / "gemma", byte_level(), chat_template=CHATML, eos_token="</s>", tokenizer_class="GemmaTokenizer")
    line = tokenize(tmp_path, folder, data).stderr.decode().splitlines()[0]
    assert line.startswith(f"{PROGRAM}: warning: {folder}: transformers 5 builds a GemmaTokenizer that is not tokenizer.json's")
