"""`<checkpoint_dir>/step_N/`: the policy as a checkpoint_megatron beside what the run knew, published by rename."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import orjson
import torch
import torch.distributed as dist
from torch import nn

from nemotron_dpo.checkpoint import megatron, optimizer_state
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.streams import sync_folder, sync_tree
from nemotron_dpo.training.guards import STRATEGY
from nemotron_dpo.training.record import TrainingInfo
from nemotron_dpo.training.resume import Identity, ResumeState
from nemotron_dpo.training.retention import prune


@dataclass(frozen=True)
class Checkpoints:
    """Where the checkpoints of a run go, what they hold, and which of them stay.

    With an `identity`, which says whose they are, a run can be resumed from them; without, they hold weights alone.
    """

    folder: Path
    config: str
    identity: Identity | None = None
    tokenizer: Path | None = None
    keep_top_k: int | None = None
    metric_name: str | None = None
    higher_is_better: bool = False

    @property
    def can_resume(self) -> bool:
        """Whether a run goes on from them."""
        return self.identity is not None

    @property
    def kept(self) -> str:
        """Which of them stay, besides the newest."""
        return f"best {self.keep_top_k} by {self.metric_name}" if self.metric_name else f"newest {self.keep_top_k}"

    def save(self, step: int, policy: TrainablePolicy, info: TrainingInfo) -> tuple[Path, list[Path]]:
        """Write step_N, delete what need not stay, and return the one and the others; every rank calls it.

        step_N is {policy/, training_info.json, config.yaml} and, to resume, {optimizer/, resume.json}. An older step_N is
        replaced. Raises UserError where it cannot be written or a weight is not finite; nothing of the step is left then, and
        all other steps are.
        """
        if parallel.any_rank(not _are_finite(policy.model)):
            raise UserError(f"step {step} left weights that are not finite; it is not saved", remedy=STRATEGY)
        target, temporary = self.folder / f"step_{step}", self.folder / f".step_{step}.tmp"
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        try:
            self._fill(temporary, step, policy, info)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, UserError):
                error.source = str(target)
            raise
        removed = []
        if dist.get_rank() == 0:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            sync_folder(self.folder)
            removed = prune(self.folder, self.keep_top_k, self.metric_name, higher_is_better=self.higher_is_better)
        dist.barrier()
        return target, removed

    def _fill(self, folder: Path, step: int, policy: TrainablePolicy, info: TrainingInfo) -> None:
        megatron.save(policy.model, folder / "policy", step, self.tokenizer)
        if self.can_resume:
            optimizer_state.save(policy, folder / "optimizer")
        if dist.get_rank() == 0:
            (folder / "training_info.json").write_bytes(orjson.dumps(info.at(step), option=orjson.OPT_INDENT_2))
            (folder / "config.yaml").write_text(self.config)
            if self.identity is not None:
                ResumeState(folder, step, info.totals, self.identity).write()
            sync_tree(folder)


def _are_finite(model: nn.Module) -> bool:
    """Whether all weights of this rank are numbers."""
    ends = [torch.stack(torch.aminmax(parameter.detach())).float() for parameter in model.parameters()]
    return bool(torch.stack(ends).isfinite().all())
