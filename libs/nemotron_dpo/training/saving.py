"""Write `<checkpoint_dir>/step_N/`: the policy as a checkpoint_megatron and the state of the run. It is published by rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import torch
import torch.distributed as dist
from torch import nn

from nemotron_dpo import machine_errors
from nemotron_dpo.checkpoint import megatron, optimizer_state
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.trainable import TrainablePolicy
from nemotron_dpo.published import sync_folder, sync_tree
from nemotron_dpo.step_folders import step_folders, step_of
from nemotron_dpo.training.guards import STRATEGY
from nemotron_dpo.training.record import TrainingInfo
from nemotron_dpo.training.resume import Identity, ResumeState
from nemotron_dpo.training.retention import prune, remove_whole


@dataclass(frozen=True)
class Checkpoints:
    """Where the checkpoints of a run go, what they hold, and which of them stay.

    With an `identity`, which says whose run they belong to, a run can be resumed from them. Without it they hold only weights.
    With a `ranked_period` only its multiples are ranked, and of all the newest `keep_latest_k` stay.
    """

    folder: Path
    config: str
    identity: Identity | None = None
    tokenizer: Path | None = None
    keep_top_k: int | None = None
    metric_name: str | None = None
    higher_is_better: bool = False
    ranked_period: int | None = None
    keep_latest_k: int | None = None

    @property
    def can_resume(self) -> bool:
        """Whether a run can be resumed from these checkpoints."""
        return self.identity is not None

    @property
    def kept(self) -> str:
        """In words, which checkpoints stay besides the newest."""
        ranked = f"best {self.keep_top_k} by {self.metric_name}" if self.metric_name else f"newest {self.keep_top_k}"
        if self.ranked_period is None:
            return ranked
        periodic = "those" if self.keep_top_k is None else f"{ranked} of those"
        latest = f", nor among the newest {self.keep_latest_k} of all" if self.keep_latest_k else ""
        return f"{periodic} of every {self.ranked_period} steps{latest}"

    def save(
        self,
        step: int,
        policy: TrainablePolicy,
        info: TrainingInfo,
        needed: Callable[[Sequence[int]], Collection[int]] = lambda steps: (),
    ) -> tuple[Path, dict[Path, str]]:
        """Write step_N, delete the checkpoints that do not stay, and return step_N and why each went; every rank calls it.

        Of all steps that are there, those that are `needed` stay.

        step_N holds policy/, training_info.json and config.yaml; to resume, also optimizer/ and resume.json. It replaces an
        older step_N. Raises UserError if it cannot be written or a weight is not finite. The new step_N is removed then, and
        all other checkpoints stay.
        """
        if parallel.any_rank(not _are_finite(policy.model)):
            raise UserError(f"step {step} left weights that are not finite; it is not saved", remedy=STRATEGY)
        target, temporary = self.folder / f"step_{step}", self.folder / f".step_{step}.tmp"
        self._fill_whole(temporary, target, step, policy, info)
        removed = self._publish(temporary, target, needed) if dist.get_rank() == 0 else {}
        dist.barrier()
        unmeasured = f"was not validated, and without {self.metric_name} it counts as worst"
        return target, {old: f"not among the {self.kept}" if had else unmeasured for old, had in removed.items()}

    def _fill_whole(self, temporary: Path, target: Path, step: int, policy: TrainablePolicy, info: TrainingInfo) -> None:
        """Write the files of a step into `temporary`, all of them or none; errors name `target`."""
        try:
            if dist.get_rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            dist.barrier()
            self._fill(temporary, step, policy, info)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, UserError) and (error.source is None or Path(error.source).is_relative_to(temporary)):
                error.source = str(target)
            if isinstance(error, OSError) and _is_below(error, temporary):
                raise machine_errors.at(error, target) from error
            raise

    def _publish(
        self, temporary: Path, target: Path, needed: Callable[[Sequence[int]], Collection[int]]
    ) -> Mapping[Path, bool]:
        """Put a written step in its place and delete those that do not stay: each with whether it had been measured."""
        if target.exists():
            remove_whole(target)
        os.replace(temporary, target)
        sync_folder(self.folder)
        return prune(
            self.folder,
            self.keep_top_k,
            self.metric_name,
            higher_is_better=self.higher_is_better,
            period=self.ranked_period,
            keep_latest_k=self.keep_latest_k,
            needed=needed,
        )

    def good(self, step: int) -> tuple[Path | None, list[Path]]:
        """The newest checkpoint up to `step`, None where there is none, and those that are later."""
        folders = step_folders(self.folder)
        later = [folder for folder in folders if step_of(folder) > step]
        return next(iter(folders[: len(folders) - len(later)][::-1]), None), later

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


def _is_below(error: OSError, folder: Path) -> bool:
    """Whether `error` names a file below `folder`, or none: the tokenizer's files are copied from elsewhere."""
    named = machine_errors.places(error)
    return not named or any(Path(name).is_relative_to(folder) for name in named)


def _are_finite(model: nn.Module) -> bool:
    """Whether all weights of this rank are finite."""
    ends = [torch.stack(torch.aminmax(parameter.detach())).float() for parameter in model.parameters()]
    return bool(torch.stack(ends).isfinite().all())
