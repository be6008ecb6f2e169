"""The policy that the config `tiny` starts from: random weights, fine-tuned on the sample pairs by our own stages.

The policy is made once and cached. The cache entry is named by a digest of everything that it is made from. It is published by
rename, so an interrupted run leaves no incomplete entry.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import cache_home
from nemotron_dpo.steps import tiny_policy
from nemotron_dpo.steps.compile.programs import executable, machine, program_version


@dataclass(frozen=True)
class Prelude:
    """Commands, each with its name, that make the folder `target`. They work in `scratch`, which the last one renames."""

    target: Path
    scratch: Path
    commands: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def checkpoint(self) -> Path:
        """The policy, as a Megatron checkpoint."""
        return self.target / "checkpoint_megatron"

    @property
    def is_cached(self) -> bool:
        """Whether the policy exists already, so that no command has to run."""
        return self.checkpoint.is_dir()


def cache_root() -> Path:
    """Where policies made or converted once are kept. Raises UserError where the user has no home, as in some containers."""
    try:
        return cache_home(os.environ) / "nemotron-dpo"
    except RuntimeError:
        remedy = "set XDG_CACHE_HOME or HOME"
        raise UserError("there is no home folder to keep the policy in", source="~/.cache", remedy=remedy) from None


def tiny_sft_prelude(step_folder: Path) -> Prelude:
    """The commands that make the tiny policy from the sample pairs and the recipe in `step_folder`."""
    data, recipe = step_folder / "data" / "train.jsonl", step_folder / "tiny_sft" / "sft.yaml"
    target = cache_root() / f"tiny-sft-{_digest(data, recipe)}"
    scratch = target.with_name(f"{target.name}.partial")
    model, pairs, run = scratch / "hf", scratch / "pairs.arrow", scratch / "run"
    commands = (
        ("tiny_policy", (sys.executable, "-m", "nemotron_dpo.steps.tiny_policy", str(data), "-o", str(model))),
        ("preference-tokenize", (executable("preference-tokenize"), str(data), "-o", str(pairs), "--tokenizer", str(model))),
        (
            "dpo-train",
            (executable("dpo-train"), str(pairs), "--policy", str(model), "--run-dir", str(run), "-c", str(recipe)),
        ),
        ("ckpt-export", (executable("ckpt-export"), str(run), "-o", str(scratch / "checkpoint_megatron"), "--to", "megatron")),
        ("publish", ("mv", "-T", str(scratch), str(target))),
    )
    return Prelude(target, scratch, commands)


def _digest(*files: Path) -> str:
    """The digest of all that the policy is made from: rows, recipe, programs, and the machine on which they would train it."""
    programs = ("preference-tokenize", "dpo-train", "ckpt-export")
    words = [word for name in programs for word in (program_version(name), machine(name, os.environ))]
    digest = hashlib.sha256("\0".join(words).encode())
    for path in (*files, Path(tiny_policy.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
