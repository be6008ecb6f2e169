"""Tokenization takes the memory of the rows under way, however many pairs there are."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.preferences.tally import Tally
from support.chat_templates import CHATML
from support.preference_rows import tokenize
from support.programs import BIN
from support.small_tokenizers import byte_level, merging, save

# Runs preference-tokenize with the arguments and prints the peak of resident memory, in bytes.
PROGRAM = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import preference_tokenize

try:
    preference_tokenize.main()
finally:
    print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
ROW = {"chosen": "The quick brown fox jumps. " * 4, "rejected": "How are you today? " * 4}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc")
def test_memory_levels_off(tmp_path: Path) -> None:
    tokenizer = save(tmp_path / "chat", byte_level(), chat_template=CHATML, eos_token="<|im_end|>")
    few, many = (_peak(tmp_path, tokenizer, num_pairs) for num_pairs in (3_000, 18_000))
    assert many <= 1.5 * few  # 1.3, and 1.7 where the tokenizer is given a whole chunk


def _peak(tmp_path: Path, tokenizer: Path, num_pairs: int) -> int:
    data = tmp_path / f"{num_pairs}.jsonl"
    data.write_bytes(b"\n".join(orjson.dumps({"prompt": f"question {n}", **ROW}) for n in range(num_pairs)))
    argv = [sys.executable, "-c", PROGRAM, BIN, data, "-o", tmp_path / "out.arrow", "--tokenizer", tokenizer]
    env = {**os.environ, "RAYON_NUM_THREADS": "2"}
    return int(subprocess.run(argv, capture_output=True, check=True, env=env).stdout)


def test_a_tally_keeps_the_facts_alone(tmp_path: Path) -> None:
    folder = save(tmp_path, merging(), eos_token="</s>")
    result = tokenize(folder, *[{"prompt": "x", "chosen": "c", "rejected": "d"}] * 1000)
    tally = Tally()
    tracemalloc.start()
    try:
        for _ in range(100):
            tally.add(replace(result, facts=result.facts.copy()))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.1 * 100 * result.facts.nbytes
    assert result.facts.itemsize == 59
    assert tally.closing_line().startswith("100000 rows read, 100000 pairs written")
    assert len(tally.found["duplicates"].rows) == 99_999
