"""The section `dpo` of a config: which objective is trained, with which settings, and how long the run is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from nemotron_dpo.objective.registry import Entry


def _setting() -> Any:
    """A setting of some of the objectives: None is the default of the objective that has it, which checks it as well."""
    return field(default=None, metadata={"is_setting": True})


@dataclass(frozen=True)
class OwnObjective:
    """A user's objective, from a file that the command line named; `digest` is the file's."""

    entry: Entry
    digest: str


@dataclass(frozen=True)
class ValSetConfig:
    """Of one validation set, what it has in place of the keys of `dpo` that have these names; None is as they say."""

    val_period: int | None = None
    val_batches: int | None = None
    val_global_batch_size: int | None = field(default=None, metadata={"minimum": 1})
    val_at_start: bool | None = None
    val_at_end: bool | None = None


@dataclass(frozen=True)
class DpoConfig:
    """The objective and the length of the run; batch sizes count pairs.

    `max_num_steps` 0 validates every set, and trains nothing. `preference_loss` is a name, or maps several names to their
    weights. `val_batches` <= 0 means all, `val_period` <= 0 never. `val_sets` has, by the names of validation sets, what of the
    five val_ keys is otherwise for them alone. `on_divergence` says what becomes of a run that goes wrong: it is warned of, or
    stopped (exit status 3) with the last good checkpoint kept, or nobody looks. `own_objective` stands in place of
    `preference_loss`; it is no key of a config, because a config may be a stranger's.
    """

    max_num_epochs: int = field(default=1, metadata={"minimum": 1})
    max_num_steps: int = field(default=500, metadata={"minimum": 0})
    val_period: int = 50
    val_batches: int = 8
    val_global_batch_size: int = field(default=8, metadata={"minimum": 1})
    val_at_start: bool = True
    val_at_end: bool = True
    val_sets: dict[str, ValSetConfig] = field(default_factory=dict)
    seed: int = field(default=42, metadata={"minimum": 0, "less_than": 2**63})
    preference_loss: str | dict[str, float] = "dpo"
    reference_policy_kl_penalty: float = field(default=0.05, metadata={"minimum": 0})
    preference_average_log_probs: bool | None = _setting()
    sft_average_log_probs: bool | None = None
    preference_loss_weight: float = field(default=1.0, metadata={"minimum": 0})
    sft_loss_weight: float = field(default=0.0, metadata={"minimum": 0})
    label_smoothing: float | None = _setting()
    f_divergence: str | None = _setting()
    f_alpha: float | None = _setting()
    ld_alpha: float | None = _setting()
    length_alpha: float | None = _setting()
    wpo_weighting: bool | None = _setting()
    gamma: float | None = _setting()
    gt_reward_scale: float | None = _setting()
    alphapo_alpha: float | None = _setting()
    beta_dpo_alpha: float | None = _setting()
    beta_dpo_momentum: float | None = _setting()
    chi_po_r_max: float | None = _setting()
    cpo_alpha: float | None = _setting()
    discopop_tau: float | None = _setting()
    dpop_lambda: float | None = _setting()
    odpo_alpha: float | None = _setting()
    odpo_gap: str | None = _setting()
    orpo_lambda: float | None = _setting()
    allow_reference_mismatch: bool = False
    on_divergence: Literal["warn", "stop", "off"] = "warn"
    own_objective: OwnObjective | None = field(default=None, metadata={"is_key": False, "is_built": False})


def of_val_set(dpo: DpoConfig, name: str) -> dict[str, Any]:
    """The val_ keys as they are for the validation set `name`."""
    own = dpo.val_sets.get(name, ValSetConfig())
    keys = [item.name for item in dataclasses.fields(ValSetConfig)]
    return {key: getattr(dpo, key) if getattr(own, key) is None else getattr(own, key) for key in keys}


def is_key(item: dataclasses.Field[Any]) -> bool:
    """Whether a config may set this field by its name."""
    return item.metadata.get("is_key", True)


def is_built(item: dataclasses.Field[Any]) -> bool:
    """Whether this field comes from a config at all: some are written by other names, one comes from the command line alone."""
    return item.metadata.get("is_built", True)
