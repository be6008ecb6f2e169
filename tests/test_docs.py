"""The README's commands work as they are written: every `sh` block is run, in order, where a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)

# Blocks that start from a fresh clone are what CI itself runs; here their recipe need only exist.
FROM_CLONE = [block for block in BLOCKS if "pip install" in block]
# This one needs a gated model and your data; its plan is compiled instead.
OWN_MODEL = [block for block in BLOCKS if "meta-llama" in block]
QUICK = [block for block in BLOCKS if "tiny_policy" in block or "nemotron-steps list" in block]
CHAIN = [block for block in BLOCKS if block not in (*FROM_CLONE, *OWN_MODEL)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the root of a clone."""
    for name in ("configs", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _paste(block: str, folder: Path) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    argv = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return done.stdout


def test_every_block_is_accounted_for():
    assert (len(FROM_CLONE), len(OWN_MODEL), len(QUICK), len(CHAIN)) == (2, 1, 2, 8)


@pytest.mark.parametrize("block", QUICK, ids=lambda block: block.split()[0])
def test_quick_blocks(block: str, folder: Path):
    _paste(block, folder)


@pytest.mark.slow
def test_the_chain_by_hand_and_as_a_pipe(folder: Path):
    for block in CHAIN:
        _paste(block, folder)
    for made in ("pairs.arrow", "scored.arrow", "run/metrics.jsonl", "trained-hf/config.json", "piped/metrics.jsonl"):
        assert (folder / made).is_file(), made
    assert list(folder.glob(".nemotron/jobs/*-eval-preference_score/scores.json"))
    assert (folder / "env.slurm.toml").is_file()
    assert (folder / "trained-megatron" / "latest_checkpointed_iteration.txt").is_file()


def test_own_model_compiles(folder: Path):
    plan = _paste(OWN_MODEL[0].rstrip() + " --dry-run\n", folder)
    assert "--policy meta-llama/Llama-3.2-1B-Instruct" in plan


def test_recipes_exist():
    recipes = set(re.findall(r"^([a-z][\w-]*)(?: .*)?:", (ROOT / "Justfile").read_text(), re.M))
    named = set(re.findall(r"just (?:torch=\S+ )?([a-z][\w-]+)", README)) - {"alone"}
    assert named == {"dpo-tiny", "test", "setup", "dpo-smollm2", "bench"}
    assert named <= recipes


def test_files_named_exist():
    for path in set(re.findall(r"`?((?:configs|pipelines)/[\w./-]+)`?", README)):
        assert (ROOT / path).exists(), path
