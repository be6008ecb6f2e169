"""What shape of model a policy is: one frozen description between HF config.json, run_config.yaml and megatron-core.

Which architectures are known, and how their files say it, is `checkpoint.families`' and `checkpoint.run_config`'s to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Llama3Scaling:
    """The rope scaling of Llama 3.1 and later; megatron-core fixes the other three numbers of that rule."""

    factor: float


@dataclass(frozen=True)
class Experts:
    """A mixture of `num` feed-forward experts, of which a router picks `top_k` a token.

    With `renormalize` the picked probabilities are made to sum to one (softmax over the picked logits).
    """

    num: int
    top_k: int
    renormalize: bool = True


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer: sizes in elements, `dtype` the precision its weights are stored in.

    `family` is Hugging Face's model_type. `zero_centered_norm` stores norm weights less one. `window` is how many tokens
    back attention sees, None all. With `experts` the feed-forward part is a mixture and `ffn_hidden_size` an expert's.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rotary_base: float
    tied_embeddings: bool
    dtype: str
    family: str = "llama"
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    zero_centered_norm: bool = False
    activation: Literal["silu", "relu2", "gelu_tanh"] = "silu"
    gated: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    rotary_percent: float = 1.0
    rope_scaling: Llama3Scaling | None = None
    window: int | None = None
    embedding_scale: float = 1.0
    experts: Experts | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def max_length(self) -> int:
        """How many tokens a sequence may have: within the positions, and within the window, which is never applied."""
        return min(self.max_position_embeddings, self.window or self.max_position_embeddings)
