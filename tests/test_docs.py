"""What the READMEs say holds: their commands run as they are written, their links lead somewhere, the recipes they name exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from nemotron_dpo.streams import open_reader
from support import forks
from support.forking_python import forking_programs
from support.programs import metrics

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bin", "configs", "libs", "pipelines", "tests")
PAGES = sorted(ROOT.glob("*.md")) + sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
HEADING = re.compile(r"^#+ (.+)$", re.M)
RECIPE = re.compile(r"^(?:[A-Z_]+=\S+ )*just (?:\w+=\S+ )*([a-z][\w-]*)")
SCRIPT = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python )?(tests/[\w/]+\.(?:py|sh))\b")


def _blocks(page: str) -> list[str]:
    """The page's commands; a block that starts from a fresh clone, with pip, is what CI itself runs."""
    return [text for language, text in FENCED.findall(TEXTS[page]) if language == "sh" and not text.startswith("pip install")]


def _lines(block: str) -> list[str]:
    """The commands of a block, each on one line, without its comments."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def _is_named(block: str) -> bool:
    """Whether all of its commands are recipes or scripts of tests.

    These take minutes, the reader's data or a GPU, so only their names are checked.
    """
    return all(RECIPE.match(line) or SCRIPT.match(line) for line in _lines(block))


NAMED = [line for page in TEXTS for block in _blocks(page) if _is_named(block) for line in _lines(block)]
# A page's examples go on from those of the README, whatever the order of the pages.
PASTED = {page: [block for block in _blocks(page) if not _is_named(block)] for page in ("README.md", *TEXTS)}


def _paste(block: str, folder: Path, programs: Path = Path(sys.executable).parent) -> str:
    env = {**os.environ, "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    argv = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return done.stdout + done.stderr


def _clone(folder: Path) -> Path:
    """A folder that looks like the root of a clone."""
    for name in (*FOLDERS, "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _with_short_pairs(clone: Path) -> Path:
    """It has pairs for three steps and for one, of four words a text: a dozen commands train, and what takes time is tokens."""
    (clone / "configs").unlink()
    shutil.copytree(ROOT / "configs", clone / "configs")
    for name, count in (("train", 3 * 32), ("validation", 32)):
        file = clone / f"configs/rl/nemo_rl/dpo/data/{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]
        short = [{key: " ".join(text.split()[:4]) for key, text in row.items()} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in short), encoding="utf-8")
    return clone


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return _clone(tmp_path)


@pytest.mark.slow
def test_commands_work_in_order_as_they_are_written(clone: Path, tmp_path_factory: pytest.TempPathFactory):
    """The README's first block by the installed programs themselves, and again by their forks, as are the others.

    What the forks compute is what started programs do, to the last bit.
    """
    said, shims, can_fork = {}, tmp_path_factory.mktemp("programs"), forks.can_fork(os.environ)
    _with_short_pairs(clone)
    with forking_programs(shims) if can_fork else nullcontext():
        for page, blocks in PASTED.items():
            for block in blocks:
                own = "meta-llama" in block  # a gated model and the reader's data: the plan is compiled, and not run
                written = block.rstrip() + " --dry-run\n" if own else block
                said[page, block] = _paste(written, clone, shims) if said else _paste(written, clone)
                assert not own or "--policy meta-llama/Llama-3.2-1B-Instruct" in said[page, block]
                if can_fork and len(said) == 1:
                    other = _with_short_pairs(_clone(tmp_path_factory.mktemp("forked")))
                    _paste(written, other, shims)
                    assert _computed(other / "work") == _computed(clone / "work")
    for made in (
        "work/run/metrics.jsonl",
        "work/piped/metrics.jsonl",
        "work/trained-hf/config.json",
        "work/trained-megatron/latest_checkpointed_iteration.txt",
        "work/adapters/adapter_config.json",
        "work/env.slurm.toml",
        "work/resumable/checkpoints/step_2/policy",
        "work/own/checkpoints/step_2/policy",
        "work/stats.json",
        "work/by-files/checkpoint_megatron",
    ):
        assert (clone / made).exists(), made
    assert list(clone.glob(".nemotron/jobs/*-eval-preference_score/scores.json"))
    assert "up to date" in said["libs/nemotron_dpo/steps/README.md", PASTED["libs/nemotron_dpo/steps/README.md"][-1]]
    ignored = subprocess.run(["git", "-C", ROOT, "check-ignore", ".nemotron/", "work/"], capture_output=True, text=True)
    assert ignored.stdout.split() == [".nemotron/", "work/"] or not (ROOT / ".git").exists()
    assert {path.name for path in clone.iterdir()} == {*FOLDERS, "pyproject.toml", ".nemotron", "work"}


def _computed(work: Path) -> list[object]:
    """Of the README's first block: the reference's scores, the metrics that are no times, and the weights."""
    with open_reader(work / "scored.arrow", "scored_pairs") as reader:
        scored = reader.read_all()
    scores = [np.concatenate(scored[f"ref_{side}_logps"].to_pylist()).tobytes() for side in ("chosen", "rejected")]
    steps = [{name: value for name, value in one.items() if not _is_time(name)} for one in metrics(work / "run")]
    assert len(steps) == 3
    return [scores, steps, (work / "trained-hf" / "model.safetensors").read_bytes()]


def _is_time(name: str) -> bool:
    return name.startswith(("timing/", "memory/", "timestamp")) or "per_sec" in name


def test_every_page_has_what_is_tested_and_no_other_commands() -> None:
    """So that no block escapes: commands stand in blocks marked `sh`, output and pictures in blocks without a mark.

    What is marked `python` is run by the test of the room that the page describes.
    """
    for page, text in TEXTS.items():
        for language, block in FENCED.findall(text):
            assert language in ("", "sh", "toml", "python"), f"{page}: {language}"
            assert language or not re.search(r"^\$ |^(pip|just|nemotron-steps list)\b", block, re.M), f"{page}: {block}"
    assert sum(map(len, PASTED.values())) >= 12
    assert sum(1 for page in TEXTS for _, block in FENCED.findall(TEXTS[page]) if block.startswith("pip install")) == 2


def test_recipes_and_programs_that_are_named_exist() -> None:
    recipes = set(re.findall(r"^([a-z][\w-]*)(?: .*)?:", (ROOT / "Justfile").read_text(), re.M)) | {"chain"}
    said = [match[1] for line in NAMED if (match := RECIPE.match(line))]
    said += [match[1] for text in TEXTS.values() for match in re.finditer(r"(?<=`)just (?:torch=\S+ )?([a-z][\w-]*)", text)]
    assert {"dpo-tiny", "test", "setup", "dpo-smollm2", "bench", "fmt", "lint"} <= {*said, "dpo-tiny"} <= recipes
    for script in {match[1] for line in NAMED if (match := SCRIPT.match(line))}:
        assert (ROOT / script).is_file(), script


def _anchors(page: Path) -> set[str]:
    """GitHub's names of the headings."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(page.read_text())}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = FENCED.sub("", TEXTS[page])
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.is_file(), target
        assert not anchor or anchor in _anchors(file), target
    for name in set(re.findall(r"`((?:\.ci|bin|configs|libs|pipelines|tests)/[\w./-]+)`", text)):
        assert (ROOT / name).exists(), name


def test_the_profile_of_the_cluster_page_compiles(clone: Path) -> None:
    (profile,) = (
        text for language, text in FENCED.findall(TEXTS["libs/nemotron_dpo/steps/executors/README.md"]) if language == "toml"
    )
    (clone / "env.toml").write_text(profile)
    said = _paste(
        "nemotron-steps run rl/nemo_rl/dpo -c tiny -b cluster --dry-run policy.model_name=/m data.train.prompt_file=/p", clone
    )
    for line in ("#SBATCH --account=my_account", "#SBATCH --nodes=2", "#SBATCH --time=04:00:00"):
        assert line in said


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 120
    for page, text in TEXTS.items():
        long = [line for line in text.splitlines() if len(line) > 128 and not line.startswith("|")]
        assert not long or page == "tests/benchmarks/README.md", f"{page}: {long[0]}"
