"""Configs of the steps besides DPO. Their keys have one spelling; paths that are None lie in the job folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nemotron_dpo.config.field_kinds import PATH
from nemotron_dpo.config.schema import ClusterConfig, DatasetConfig

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


def _idle(default: Any, reason: str) -> Any:
    """A key that NVIDIA's config of the step has, and that has no meaning here for this reason."""
    return field(default=default, metadata={"idle": reason})


_DIVIDES = "divides the merge there; it takes one process here"
_ALWAYS = "is always done"
_PROGRAM = "belongs to the program that merges there"
_SOURCE = "names the model whose config the export reads there; a checkpoint says itself what model it is"


@dataclass(frozen=True)
class MergeLoraConfig:
    """`lora_checkpoint` holds adapters of dpo-train, of Megatron-Bridge or of peft; the base is where they say unless named.

    `backend` decides what is written where the output paths do not.
    """

    lora_checkpoint: str | None = field(default=None, metadata=PATH)
    base_hf_path: str | None = field(default=None, metadata=PATH)
    base_megatron_path: str | None = field(default=None, metadata=PATH)
    output_hf_path: str | None = field(default=None, metadata=PATH)
    output_megatron_path: str | None = field(default=None, metadata=PATH)
    export_hf: bool = True
    backend: Literal["auto", "hf_peft", "megatron_bridge"] = "auto"
    torch_dtype: Literal["auto", "bfloat16", "float32"] | None = None
    hf_model_id: str | None = _idle(None, _SOURCE)
    hf_model_path: str | None = _idle(None, _SOURCE)
    cpu: bool = _idle(True, "chooses where the product is computed; it is computed in float32 anywhere")
    tp: int = _idle(1, _DIVIDES)
    pp: int = _idle(1, _DIVIDES)
    ep: int = _idle(1, _DIVIDES)
    nproc_per_node: int = _idle(1, _DIVIDES)
    device_map: str | None = _idle(None, "chooses where the product is computed; it is computed in float32 anywhere")
    low_cpu_mem_usage: bool = _idle(True, "is about memory; the numbers are the same")
    trust_remote_code: bool = _idle(True, "runs code that lies in a model's folder there; none is run here")
    safe_serialization: Literal[True] = _idle(True, _ALWAYS)
    save_tokenizer: Literal[True] = _idle(True, _ALWAYS)
    strict: Literal[True] = _idle(True, _ALWAYS)
    upstream_script: str | None = _idle(None, _PROGRAM)
    debug: bool = _idle(False, _PROGRAM)
    show_progress: bool = _idle(True, _PROGRAM)


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
    """The rows are tokenized by the policy's tokenizer; without a reference there are log-probs but no rewards.

    `against` is a second policy on the same pairs, whose figures are subtracted.
    """

    data: DatasetConfig = field(default_factory=DatasetConfig)
    policy: ScoredModelConfig = ScoredModelConfig()
    reference: ScoredModelConfig = ScoredModelConfig()
    against: ScoredModelConfig = ScoredModelConfig()
    reference_policy_kl_penalty: float = field(default=0.05, metadata={"minimum": 0})
    max_length: int | None = field(default=None, metadata={"minimum": 2})
    precision: Precision = "bfloat16"
    micro_batch_tokens: int | None = field(default=None, metadata={"minimum": 1})
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class FromTrlConfig:
    """`config` is a YAML file of TRL, Axolotl or LLaMA-Factory; `program` None tells which by its keys.

    `processes` and `num_pairs` are what such a file does not say. `ignore` names keys of it that are to count for nothing.
    """

    config: str | None = field(default=None, metadata=PATH)
    output_path: str | None = field(default=None, metadata=PATH)
    force: bool = False
    processes: int | None = field(default=None, metadata={"minimum": 1})
    num_pairs: int | None = field(default=None, metadata={"minimum": 1})
    ignore: tuple[str, ...] = ()
    train_data: str | None = field(default=None, metadata=PATH)
    validation_data: str | None = field(default=None, metadata=PATH)
    program: Literal["trl", "axolotl", "llama_factory"] | None = None


@dataclass(frozen=True)
class EnvTomlConfig:
    """`template` is the file to start from; `sections` maps profiles to the keys to set in them."""

    template: str | None = field(default=None, metadata=PATH)
    output_path: str | None = field(default=None, metadata=PATH)
    force: bool = False
    sections: dict[str, Any] = field(default_factory=dict)
