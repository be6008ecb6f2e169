"""ref-logprobs with a store: nothing is computed twice, a killed run goes on, and its store is looked after."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.scoring import store
from nemotron_dpo.scoring.claims import FOLDER, Claims
from nemotron_dpo.streams import open_reader
from support import small
from support.programs import BIN, check, error_line, execute, run, torchrun

pytestmark = pytest.mark.slow

OPTIONS = ("--precision", "float32", "--micro-batch-tokens", 64)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.arrow", small.random_pairs(60, seed=21))


@pytest.fixture(scope="module")
def undisturbed(pairs_file: Path, llama: Path) -> bytes:
    """What a run without a store writes."""
    out = pairs_file.with_name("undisturbed.arrow")
    check("ref-logprobs", pairs_file, "-o", out, "--policy", llama, *OPTIONS)
    return out.read_bytes()


def reused(done: subprocess.CompletedProcess[bytes]) -> tuple[int, int]:
    """The two counts of the closing line."""
    line = done.stderr.decode().splitlines()[-1]
    counts = re.fullmatch(r"ref-logprobs: (\d+) pairs scored, (\d+) of them reused, [\d.]+ s, [\d.]+ new pairs/s", line)
    assert counts, line
    return int(counts[1]), int(counts[2])


@pytest.mark.multiprocess
def test_all_forms_of_a_policy_have_the_same_entries(pairs_file: Path, undisturbed: bytes, llama: Path, tmp_path: Path) -> None:
    """Scored from the HF folder; found for its import, for a copy, by the variable, and by two ranks."""
    out, cache = tmp_path / "out.arrow", ("--cache", tmp_path / "cache")
    done = check("ref-logprobs", pairs_file, "-o", out, "--policy", llama, *OPTIONS, *cache)
    assert reused(done) == (60, 0)
    assert out.read_bytes() == undisturbed
    check("ckpt-export", llama, "-o", tmp_path / "imported", "--to", "megatron")
    variable = {**os.environ, "NEMOTRON_DPO_CACHE": str(tmp_path / "cache")}
    done = check(
        "ref-logprobs", pairs_file, "-o", tmp_path / "again.arrow", "--policy", tmp_path / "imported", *OPTIONS, env=variable
    )
    assert reused(done) == (60, 60)
    done = check("ref-logprobs", pairs_file, "-o", tmp_path / "half.arrow", "--policy", llama, *cache)
    assert reused(done) == (60, 0), "in bfloat16 they are others"
    torchrun(2, "ref-logprobs", pairs_file, "-o", tmp_path / "two.arrow", "--policy", llama, *OPTIONS, *cache)
    assert (tmp_path / "two.arrow").read_bytes() == undisturbed


def test_only_what_is_new_is_computed(pairs_file: Path, llama: Path, tmp_path: Path) -> None:
    """More rows, and a set that overlaps, in another order and twice."""
    old, new = small.random_pairs(60, seed=21), small.random_pairs(7, seed=22)
    sides = zip((new.prompts, new.chosen, new.rejected), (old.prompts, old.chosen, old.rejected), strict=True)
    mixed = small.Tokens(*([*some[:4], *known[10:40], *some[2:], *known[5:20]] for some, known in sides))
    more = small.write_pairs(tmp_path / "more.arrow", mixed)
    cache = (*OPTIONS, "--cache", tmp_path / "cache")
    check("ref-logprobs", pairs_file, "-o", tmp_path / "first.arrow", "--policy", llama, *cache)
    done = check("ref-logprobs", more, "-o", tmp_path / "out.arrow", "--policy", llama, *cache)
    assert reused(done) == (54, 47)
    earlier = check(
        "ref-logprobs", more, "-o", tmp_path / "fresh.arrow", "--policy", llama, *OPTIONS, "--reuse", tmp_path / "out.arrow"
    )
    assert reused(earlier) == (54, 54)
    into = ("--cache", tmp_path / "other", "--reuse", tmp_path / "first.arrow")
    check("ref-logprobs", more, "-o", tmp_path / "into.arrow", "--policy", llama, *OPTIONS, *into)
    done = check("ref-logprobs", pairs_file, "-o", tmp_path / "last.arrow", "--policy", llama, *OPTIONS, *into[:2])
    assert reused(done) == (60, 60), "--reuse reads into the store"


def test_the_whole_batches_of_a_cut_output_are_reused(pairs_file: Path, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.arrow"
    check("ref-logprobs", pairs_file, "-o", out, "--policy", llama, "--precision", "float32", "--micro-batch-tokens", 16)
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(out.read_bytes()[: out.stat().st_size * 2 // 3])
    done = check("ref-logprobs", pairs_file, "-o", tmp_path / "again.arrow", "--policy", llama, *OPTIONS, "--reuse", cut)
    (line,) = (line for line in done.stderr.decode().splitlines() if "warning" in line)
    told = re.search(r"cut\.arrow: the stream from ref-logprobs .*: its first (\d+) pairs can be taken, and no more$", line)
    assert told, line
    assert reused(done) == (60, int(told[1]))
    assert 0 < int(told[1]) < 60


KILLED = """
import os, runpy, signal, sys
from nemotron_dpo.scoring import store
left = int(sys.argv[1])
publish = store.Store.publish
def counted(self):
    global left
    publish(self)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
store.PUBLISH_SECONDS, store.Store.publish = 0.0, counted
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_run_goes_on_and_writes_what_an_undisturbed_one_does(
    pairs_file: Path, undisturbed: bytes, llama: Path, tmp_path: Path
) -> None:
    """Killed twice, in the middle of a window, each time later; the program is told to publish after each packed row."""
    out, program = tmp_path / "out.arrow", BIN / "ref_logprobs.py"
    arguments = [pairs_file, "-o", out, "--policy", llama, *OPTIONS, "--cache", tmp_path / "cache"]
    (killed := tmp_path / "killed.py").write_text(KILLED)
    for rows in ("3", "5"):
        done = execute([sys.executable, str(killed), rows, str(program), *map(str, arguments)])
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not out.exists()
    done = check("ref-logprobs", *arguments)
    assert out.read_bytes() == undisturbed
    total, kept = reused(done)
    assert total == 60
    assert 8 <= kept < 60


def test_runs_at_the_same_time_score_each_pair_once(llama: Path, tmp_path: Path) -> None:
    """Three equal ones, and one whose pairs come in another order: as many pairs are scored as there are."""
    tokens = small.random_pairs(120, seed=23)
    turned = small.Tokens(tokens.prompts[::-1], tokens.chosen[::-1], tokens.rejected[::-1])
    file, other = small.write_pairs(tmp_path / "pairs.arrow", tokens), small.write_pairs(tmp_path / "turned.arrow", turned)
    options = ("--policy", llama, *OPTIONS)
    check("ref-logprobs", file, "-o", tmp_path / "alone.arrow", *options)

    def together(source: Path, name: str, cache: str) -> int:
        done = check("ref-logprobs", source, "-o", tmp_path / name, *options, "--cache", tmp_path / cache)
        total, known = reused(done)
        assert total == 120
        return total - known

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(together, [file] * 3, "123", ["equal"] * 3)) == 120
        assert sum(pool.map(together, [file, other], "45", ["turned"] * 2)) == 120
    for name in "123":
        assert (tmp_path / name).read_bytes() == (tmp_path / "alone.arrow").read_bytes()


@pytest.mark.multiprocess
def test_pairs_that_another_run_has_begun_are_waited_for(
    pairs_file: Path, undisturbed: bytes, llama: Path, tmp_path: Path
) -> None:
    """Taken from it once it publishes them, and scored here once it is gone; a job of two ranks waits, too."""
    cache, seed = tmp_path / "cache", small.write_pairs(tmp_path / "seed.arrow", small.random_pairs(1, seed=24))
    options = ("--policy", llama, *OPTIONS, "--cache", cache)
    check("ref-logprobs", seed, "-o", tmp_path / "seed-out.arrow", *options)
    ((folder, context),) = store.contexts(cache).items()
    with open_reader(pairs_file, "tokenized_pairs") as reader:
        pairs = Pairs.of(reader.read_all())
    begun = [pairs.pair_ids[row] for row in range(5, 25)]

    def away(publishes: bool) -> None:
        """Another run, which has begun twenty pairs, and is gone a second later."""
        assert claims.take(begun) == [True] * 20
        time.sleep(1)
        if publishes:
            one = store.Store(cache, context, print)
            for row in range(5, 25):
                lengths = pairs.chosen.lengths[row], pairs.rejected.lengths[row]
                one.add(pairs.pair_ids[row], *(np.full(length, -1.5, np.float32) for length in lengths))
            one.publish()
        claims.close()

    for processes, publishes in ((1, False), (2, True)):
        with ThreadPoolExecutor(1) as pool:
            claims = Claims(folder / FOLDER)
            other = pool.submit(away, publishes)
            torchrun(processes, "ref-logprobs", pairs_file, "-o", tmp_path / f"{processes}.arrow", *options)
            other.result()
        for file in folder.glob("*.arrow"):
            file.unlink()
    assert (tmp_path / "1.arrow").read_bytes() == undisturbed
    with open_reader(tmp_path / "2.arrow", "scored_pairs") as reader:
        scored = reader.read_all().column("ref_chosen_logps").to_pylist()
    assert [row for row in range(60) if set(scored[row]) == {-1.5}] == list(range(5, 25))


def test_a_store_is_no_excuse_for_another_policy(pairs_file: Path, llama: Path, untied_llama: Path, tmp_path: Path) -> None:
    cache = (*OPTIONS, "--cache", tmp_path / "cache")
    check("ref-logprobs", pairs_file, "-o", tmp_path / "one.arrow", "--policy", llama, *cache)
    done = check("ref-logprobs", pairs_file, "-o", tmp_path / "two.arrow", "--policy", untied_llama, *cache)
    assert reused(done) == (60, 0)
    done = run(
        "ref-logprobs", pairs_file, "-o", tmp_path / "x.arrow", "--policy", llama, *cache, "--reuse", tmp_path / "two.arrow"
    )
    assert "cannot be reused: it was scored by another policy" in error_line(done, "ref-logprobs")


def test_a_store_is_listed_verified_and_cleared(pairs_file: Path, llama: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    check("ref-logprobs", pairs_file, "-o", tmp_path / "out.arrow", "--policy", llama, *OPTIONS, "--cache", root)
    (line,) = check("ref-logprobs", "cache", "ls", "--cache", root).stdout.decode().splitlines()
    assert re.match(r" +60 pairs +0\.\d MB  \d{4}-\d\d-\d\d \d\d:\d\d  float32   tensors:\w{16}  (c|torch) ", line), line
    done = check("ref-logprobs", "cache", "verify", env={**os.environ, "NEMOTRON_DPO_CACHE": str(root)})
    assert done.stderr.decode() == "ref-logprobs: 60 records are whole, 0 files are damaged\n"
    (file,) = root.glob("scores/*/*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)
    done = run("ref-logprobs", "cache", "verify", "--cache", root)
    assert done.returncode == 1
    assert f"{file}: 1 of 60 records are damaged: remove it, and its pairs are scored again" in done.stderr.decode()
    done = check("ref-logprobs", pairs_file, "-o", tmp_path / "out.arrow", "--policy", llama, *OPTIONS, "--cache", root)
    assert reused(done) == (60, 59)
    os.utime(file, (1e9, 1e9))
    (file.parent / f".{file.name}.1.tmp").write_bytes(b"")
    os.utime(file.parent / f".{file.name}.1.tmp", (1e9, 1e9))
    done = check("ref-logprobs", "cache", "gc", "--older-than", "90d", "--cache", root)
    assert done.stderr.decode().startswith("ref-logprobs: 2 files removed, ")
    done = check("ref-logprobs", pairs_file, "-o", tmp_path / "out.arrow", "--policy", llama, *OPTIONS, "--cache", root)
    assert reused(done) == (60, 1)
    for arguments, message in (
        (("gc", "--older-than", "9x"), "--older-than 9x: is no age: give a number and m, h, d or w: 90d"),
        (("ls", "--cache", tmp_path / "none"), f"{tmp_path}/none: is no store of scores: name one with --cache, or make one"),
    ):
        assert error_line(run("ref-logprobs", "cache", *arguments), "ref-logprobs").startswith(message)


def test_shards_are_merged_and_none_may_be_missing(pairs_file: Path, undisturbed: bytes, llama: Path, tmp_path: Path) -> None:
    """Three shards, merged in any order, are the bytes of one run; so they are without windows in common."""
    parts = []
    for number in (2, 3, 1):
        parts.append(tmp_path / f"{number}.arrow")
        done = check("ref-logprobs", pairs_file, "-o", parts[-1], "--policy", llama, *OPTIONS[:2], "--shard", f"{number}/3")
        assert done.stderr.decode().splitlines()[-1].startswith("ref-logprobs: 20 pairs scored, ")
    whole = check("ref-logprobs", pairs_file, "-o", tmp_path / "whole.arrow", "--policy", llama, *OPTIONS[:2])
    assert whole.returncode == 0
    done = check("ref-logprobs", "merge", pairs_file, *parts, "-o", tmp_path / "merged.arrow")
    assert done.stderr.decode() == "ref-logprobs: 60 pairs merged from 3 parts, each of them once\n"
    assert (tmp_path / "merged.arrow").read_bytes() == (tmp_path / "whole.arrow").read_bytes()
    again = check(
        "ref-logprobs", parts[0], "-o", tmp_path / "again.arrow", "--policy", llama, *OPTIONS[:2], "--reuse", parts[0]
    )
    assert b": 20 pairs scored, 20 of them reused" in again.stderr  # all that a part has, and not every third of it again
    tokens = small.random_pairs(60, seed=21)
    few = small.write_pairs(tmp_path / "few.arrow", small.Tokens(tokens.prompts[:7], tokens.chosen[:7], tokens.rejected[:7]))
    done = check("ref-logprobs", "merge", few, *parts, "-o", tmp_path / "of-few.arrow")
    assert sorted(done.stderr.decode().splitlines()) == [
        "ref-logprobs: 7 pairs merged from 3 parts, each of them once",
        *(
            f"ref-logprobs: warning: {tmp_path}/{number}.arrow: has {left} pairs that {few} has not: left out"
            for number, left in ((1, 17), (2, 18), (3, 18))
        ),
    ]
    done = run("ref-logprobs", "merge", pairs_file, *parts[:2], "-o", tmp_path / "lacks.arrow")
    line = f"{pairs_file}: has 20 pairs that no part has, the first line 1 of the input: score the shard that is missing, or"
    assert error_line(done, "ref-logprobs").startswith(line)
    assert not (tmp_path / "lacks.arrow").exists()
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0"):
        done = run("ref-logprobs", pairs_file, "-o", tmp_path / "x.arrow", "--policy", llama, "--shard", wrong)
        assert (done.returncode, error_line(done, "ref-logprobs")) == (
            2, f"--shard {wrong}: is no part of a whole: give I/N, such as 1/8 for the first of eight",
        )  # fmt: skip
