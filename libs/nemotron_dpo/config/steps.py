"""Configs of the steps besides DPO. Their keys have one spelling; paths that are None lie in the job folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nemotron_dpo.config.schema import PATH, ClusterConfig, DatasetConfig

Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class HfToMegatronConfig:
    """`hf_model_id` is a Hugging Face id or folder; `torch_dtype` None keeps the stored precision."""

    hf_model_id: str | None = field(default=None, metadata=PATH)
    megatron_path: str | None = field(default=None, metadata=PATH)
    torch_dtype: Precision | None = None


@dataclass(frozen=True)
class MegatronToHfConfig:
    """`megatron_path` is a Megatron checkpoint (root or iter_*), or a run folder of dpo-train."""

    megatron_path: str | None = field(default=None, metadata=PATH)
    hf_path: str | None = field(default=None, metadata=PATH)
    torch_dtype: Precision | None = None


@dataclass(frozen=True)
class PreferenceTokenizeConfig:
    """`tokenizer` is a Hugging Face id or folder, or a Megatron checkpoint; `chat_template` a file instead of its own."""

    data: DatasetConfig = field(default_factory=DatasetConfig)
    tokenizer: str | None = field(default=None, metadata=PATH)
    chat_template: str | None = field(default=None, metadata=PATH)
    max_length: int | None = field(default=None, metadata={"minimum": 2})
    num_workers: int = field(default=1, metadata={"minimum": 1})


@dataclass(frozen=True)
class ScoredModelConfig:
    """A Hugging Face id or folder, or a Megatron checkpoint."""

    model_name: str | None = field(default=None, metadata=PATH)


@dataclass(frozen=True)
class PreferenceScoreConfig:
    """The rows are tokenized by the policy's tokenizer; without a reference there are log-probs but no rewards."""

    data: DatasetConfig = field(default_factory=DatasetConfig)
    policy: ScoredModelConfig = ScoredModelConfig()
    reference: ScoredModelConfig = ScoredModelConfig()
    reference_policy_kl_penalty: float = field(default=0.05, metadata={"minimum": 0})
    max_length: int | None = field(default=None, metadata={"minimum": 2})
    precision: Precision = "bfloat16"
    micro_batch_tokens: int | None = field(default=None, metadata={"minimum": 1})
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class EnvTomlConfig:
    """`template` is the file to start from; `sections` maps profiles to the keys to set in them."""

    template: str | None = field(default=None, metadata=PATH)
    output_path: str | None = field(default=None, metadata=PATH)
    force: bool = False
    sections: dict[str, Any] = field(default_factory=dict)
