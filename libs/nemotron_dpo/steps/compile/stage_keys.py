"""The key of a stage, under which its outputs are cached: a digest of its command, its program's version and its machine.

In the command, each path is replaced by a digest of the content at that path. So every option of the command line counts, and
the place of a file does not. The output of an earlier stage counts by that stage's key. The machine counts only for a program
that computes, because another machine may round differently.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile.digests import Digests, Unknown
from nemotron_dpo.steps.compile.programs import machine, program_version
from nemotron_dpo.steps.compile.stages import Input, Plan, Stage


def stage_key(plan: Plan, stage: Stage, made: Mapping[str, str], digests: Digests, env: Mapping[str, str]) -> str | None:
    """The key of `stage`, run with `env` added to the environment; `made` maps what earlier stages make to their keys.

    None for a stage without outputs, and where an input cannot be digested yet. An input that is missing or wrong also gives
    None, so that the stage itself reports the mistake.
    """
    if not stage.outputs:
        return None
    outputs = {str(path): f"output {n}" for n, path in enumerate(stage.outputs)}
    words = [program_version(stage.program), machine(stage.program, {**os.environ, **env, **stage.env})]
    try:
        for n, word in enumerate(stage.argv[stage.num_launcher_words :]):
            read = stage.inputs.get(word)
            known = outputs.get(word, Path(word).name if n == 0 else word)
            words.append(known if read is None else _digest(read, plan, made, digests))
    except (Unknown, UserError, OSError):
        return None
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _digest(read: Input, plan: Plan, made: Mapping[str, str], digests: Digests) -> str:
    if read.kind == "stage":
        if read.name not in made:
            raise Unknown(read.name)
        return made[read.name]
    if read.kind == "file":
        texts = {str(plan.job / name): text for name, text in plan.files.items()}
        return digests.template(texts[read.name] if read.name in texts else Path(read.name).read_text(encoding="utf-8"))
    if read.kind == "data":
        return digests.data(read.name, read.split, read.subset)
    return getattr(digests, read.kind)(read.name)
