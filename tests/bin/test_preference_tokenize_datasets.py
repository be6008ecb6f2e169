"""preference-tokenize on what the package `datasets` itself writes: saved sets, its cache of the hub, folders of the hub.

No hub is reached: a folder is loaded and its cache given the name that a set of the hub has there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_dpo.streams import open_reader
from support import forks
from support.chat_templates import CHATML
from support.datasets_package import datasets_variables
from support.programs import command, execute
from support.small_tokenizers import byte_level, save

PROGRAM = "preference-tokenize"
IMPORTED = ("nemotron_dpo.preferences.hub_data", "nemotron_dpo.preferences.tokenize_files", "datasets")
WRITE = """
import sys, datasets
source, out = sys.argv[1:]
splits = datasets.load_dataset(f"{source}/HelpSteer3", "preference")
splits.save_to_disk(f"{out}/several")
splits["train"].save_to_disk(f"{out}/alone", num_shards=3)
datasets.load_dataset(f"{source}/llama-3.1-tulu-3-8b-preference-mixture")
print(len(splits["train"]))
"""
README = """---
configs:
- config_name: preference
  data_files: [{split: train, path: preference/first.jsonl}, {split: validation, path: preference/second.jsonl}]
---
"""


def helpsteer(number: int, preference: int) -> dict[str, object]:
    context = [{"role": "user", "content": f"question {number}"}]
    return {"context": context, "response1": "one", "response2": "two", "overall_preference": preference}


def tulu(number: int) -> dict[str, object]:
    asked = [{"role": "user", "content": f"ask {number}"}]
    chosen, rejected = ([*asked, {"role": "assistant", "content": answer}] for answer in ("good", "bad"))
    return {"id": str(number), "prompt": "another text", "chosen": chosen, "rejected": rejected}


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, what `save_to_disk` wrote, and a cache as that of two sets of the hub."""
    place = tmp_path_factory.mktemp("datasets")
    source = place / "source" / "HelpSteer3"
    write_rows(source / "preference" / "first.jsonl", [helpsteer(n, (-2, 1, 0)[n % 3]) for n in range(30)])
    write_rows(source / "preference" / "second.jsonl", [helpsteer(n, 3) for n in range(100, 105)])
    (source / "README.md").write_text(README)
    write_rows(source.with_name("llama-3.1-tulu-3-8b-preference-mixture") / "train.jsonl", [tulu(n) for n in range(6)])
    argv = [sys.executable, "-c", WRITE, str(place / "source"), str(place)]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, **datasets_variables(place / "cache")})
    for made in (path for path in (place / "cache").iterdir() if path.is_dir()):
        organization = "nvidia" if "help" in made.name else "allenai"
        made.rename(made.with_name(f"{organization}___{made.name}"))
    save(place / "tokenizer", byte_level(), chat_template=CHATML, eos_token="<|im_end|>")
    return place


def tokenize(place: Path, out: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run the program: as forks of a Python that has imported `datasets` under these variables, where forking can be had."""
    own = datasets_variables(place / "cache")
    env, python = {**os.environ, **own}, forks.Python(variables=tuple(own.items()), first=IMPORTED)
    argv = command(PROGRAM, *arguments, "-o", out, "--tokenizer", place / "tokenizer")
    if forks.can_fork(env, python):
        return forks.run(argv, env=env, cwd=place, python=python)
    return execute(argv, env=env, cwd=place, cold=True)


TRAIN = [n for n in range(1, 31) if n % 3]  # every third is a tie
# arguments -> numbers of the rows whose pairs are written
CASES = [
    (["HelpSteer3"], TRAIN),
    (["HelpSteer3", "--split", "validation[-2:]"], [4, 5]),
    (["nvidia/HelpSteer3", "--subset", "preference", "--split", "train[:15%]"], [1, 2, 4]),  # of 4.5 rows
    (["source/HelpSteer3", "--subset", "preference", "--split", "validation"], [1, 2, 3, 4, 5]),
    (["Tulu3Preference"], [1, 2, 3, 4, 5, 6]),
    (["several", "--split", "validation"], [1, 2, 3, 4, 5]),
    (["several/train"], TRAIN),
    (["alone", "--split", "train[-4:]"], [8, 9]),  # of the last of 3 files of 10 rows, whose rows 7 and 10 are ties
]


@pytest.mark.slow
def test_sets_are_read_as_datasets_lays_them_out(place: Path, tmp_path: Path) -> None:
    for number, (arguments, lines) in enumerate(CASES):
        done = tokenize(place, out := tmp_path / f"{number}.arrow", *arguments)
        assert done.returncode == 0, done.stderr.decode()
        with open_reader(out, "tokenized_pairs") as reader:
            assert reader.info.digests["input"].startswith("sha256:")
            pairs = reader.read_all().to_pylist()
        assert [pair["source_line"] for pair in pairs] == lines, arguments
        name = arguments[0]
        assert {pair["source"] for pair in pairs} == {Path(name).name if (place / name).exists() else name}
        if arguments == ["HelpSteer3"]:  # the strengths of the rows, in turn 2, 1 and the tie
            rewards = [(pair["chosen_reward"], pair["rejected_reward"]) for pair in pairs]
            assert rewards == [(2.0, 0.0), (1.0, 0.0)] * 10


REFUSED = [
    (["HelpSteer3", "--split", "test"], 'nvidia/HelpSteer3:preference (test): cannot be loaded by datasets: '),
    (["org/never-loaded", "--split", "train"], "org/never-loaded (train): cannot be loaded by datasets: HF_HUB_OFFLINE is set: "),
    (["several"], "several: holds files of several splits, which are not mixed: train, validation"),
    (["several", "--split", "test"], "several: has no split test, but train, validation"),
    (["alone", "--split", "validation"], "alone: was saved as one set, the split train, not validation"),
]  # fmt: skip


@pytest.mark.slow
def test_what_is_not_there_is_one_line(place: Path, tmp_path: Path) -> None:
    for arguments, expected in REFUSED:
        done = tokenize(place, tmp_path / "out.arrow", *arguments)
        assert done.returncode == 1
        lines = [line for line in done.stderr.decode().splitlines() if line.startswith(f"{PROGRAM}: error: ")]
        assert len(lines) == 1, done.stderr.decode()
        assert lines[0].startswith(f"{PROGRAM}: error: {expected}"), lines[0]
        assert "Traceback" not in done.stderr.decode()
        assert list(tmp_path.iterdir()) == []
