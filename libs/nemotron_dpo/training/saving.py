"""`<checkpoint_dir>/step_N/`: the policy as a checkpoint_megatron beside what the run knew, published by rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import orjson
import torch.distributed as dist

from nemotron_dpo.checkpoint import megatron
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.model import PairPolicy


def save_step(
    checkpoint_dir: Path,
    step: int,
    model: PairPolicy,
    shape: Architecture,
    *,
    info: Mapping[str, float],
    config: str,
    tokenizer: Path | None,
) -> Path:
    """Write step_N/{policy/, training_info.json, config.yaml}; every rank calls it. An older step_N is replaced.

    Raises UserError where it cannot be written; nothing of the step is left then.
    """
    target, temporary = checkpoint_dir / f"step_{step}", checkpoint_dir / f".step_{step}.tmp"
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    try:
        megatron.save(model, shape, temporary / "policy", step, tokenizer)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, UserError):
            error.source = str(target)
        raise
    if dist.get_rank() == 0:
        (temporary / "training_info.json").write_bytes(orjson.dumps(dict(info), option=orjson.OPT_INDENT_2))
        (temporary / "config.yaml").write_text(config)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    dist.barrier()
    return target
