"""megatron-core's GPTModel over packed pairs: one forward gives the log-prob of every response token.

Legend: S packed tokens, R response tokens, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.attention import PairAttention
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.logprobs import response_logps
from nemotron_dpo.policy.rows import PackedRow


class PairPolicy(GPTModel):
    """GPTModel whose forward takes a PackedRow; parameters, checkpoint keys and parallelism are GPTModel's own.

    The one override is `forward`: rotary positions come from the row, and the output layer runs on response tokens alone.
    """

    def forward(self, row: PackedRow) -> Tensor:  # type: ignore[override]
        """Log-probs float32 [R] on the last pipeline stage, hidden states [S, 1, H] on the others."""
        hidden = None
        if self.pre_process:
            hidden = self.embedding(input_ids=row.input_ids_S[None], position_ids=row.positions_S[None])
        rotary = self.rotary_pos_emb(self.max_sequence_length, packed_seq=True)
        hidden = self.decoder(
            hidden_states=hidden,
            attention_mask=None,
            rotary_pos_emb=rotary[row.positions_S],
            packed_seq_params=row,
        )
        if not self.post_process:
            return hidden
        hidden_RH = copy_to_tensor_model_parallel_region(hidden[row.predictors_R, 0])
        return response_logps(hidden_RH, self.output_weight(), row.targets_R, parallel_state.get_tensor_model_parallel_group())

    def output_weight(self) -> Tensor:
        """This rank's share of the vocabulary projection [V, H]: the embedding's where they are tied."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        weight = self.output_layer.weight
        assert weight is not None  # it is only where the embeddings are tied
        return weight

    def all_logits(self, row: PackedRow) -> Tensor:
        """Logits [S, V] at every packed position, for tests and inspection; TP = PP = 1 only."""
        post_process, self.post_process = self.post_process, False
        try:
            hidden = self.forward(row)
        finally:
            self.post_process = post_process
        return hidden[:, 0] @ self.output_weight().t()


def build_policy(shape: Architecture, dtype: torch.dtype, *, max_length: int, recompute: bool = False) -> PairPolicy:
    """An uninitialised PairPolicy of this rank's layers, on this rank's device, in `dtype`.

    `max_length` bounds the positions of one prompt + response. Raises UserError where the heads, groups, layers or
    vocabulary do not divide over the ranks.
    """
    if max_length > shape.max_position_embeddings:
        raise UserError(
            f"sequences of {max_length} tokens exceed the policy's {shape.max_position_embeddings} positions",
            remedy="lower policy.max_total_sequence_length",
        )
    config = _transformer_config(shape, dtype, recompute)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = PairAttention  # type: ignore[union-attr]
    model = PairPolicy(
        config,
        spec,
        shape.vocab_size,
        max_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=shape.rotary_base,  # type: ignore[arg-type]
        rope_scaling=shape.rope_scaling is not None,
        rope_scaling_factor=shape.rope_scaling.factor if shape.rope_scaling else 1.0,
    )
    _mark_partitions(model)
    return model.to(device=device(), dtype=dtype)


def _mark_partitions(model: nn.Module) -> None:
    """Say along which axis each weight is split; megatron-core does so only where it also initialises the weight.

    Loading reads it, and so does the gradient norm, which must count replicated weights once.
    """
    axes = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}
    for module in model.modules():
        axis = axes.get(type(module))
        weight = getattr(module, "weight", None)
        if axis is not None and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=axis, stride=1)


def _transformer_config(shape: Architecture, dtype: torch.dtype, recompute: bool) -> TransformerConfig:
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    pipeline = parallel_state.get_pipeline_model_parallel_world_size()
    _check_divisible(shape, tensor, pipeline)
    piped: dict[str, Any] = {}
    if pipeline > 1:  # rows differ in length; megatron-core wants this dispatcher with variable lengths, dense or not
        piped = {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall", "batch_p2p_sync": False}
    if recompute:
        piped |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        layernorm_epsilon=shape.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        calculate_per_token_loss=True,  # gradients are summed over ranks and divided by the global number of pairs
        use_cpu_initialization=True,
        perform_initialization=False,  # every weight is loaded
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,  # these two fusions are torch.compile, whose kernels differ between
        bias_dropout_fusion=False,  # training and inference: policy and reference would disagree at step 1
        **piped,
    )


def _check_divisible(shape: Architecture, tensor: int, pipeline: int) -> None:
    for what, size, ranks in (
        ("attention heads", shape.num_attention_heads, tensor),
        ("key/value heads", shape.num_query_groups, tensor),
        ("vocabulary entries", shape.vocab_size, tensor),
        ("layers", shape.num_layers, pipeline),
    ):
        if size % ranks:
            raise UserError(f"the policy's {size} {what} do not divide over {ranks} ranks", remedy="change the parallel size")
