"""megatron-core's GPTModel over packed pairs: one forward gives the log-prob of every response token.

Legend: S packed tokens, L those that this context-parallel rank holds, R response tokens, M those that this rank predicts,
H hidden, V this rank's share of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

from nemotron_dpo.errors import UserError
from nemotron_dpo.kernels.logits import kept_tokens
from nemotron_dpo.policy import parallel
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.policy.device import device
from nemotron_dpo.policy.layers import (
    block_spec,
    mark_experts,
    mark_partitions,
    name_as_hybrid,
    scale_embeddings,
    specialize,
)
from nemotron_dpo.policy.logprobs import Slope, response_logps, trained_logps
from nemotron_dpo.policy.precision import set_precision
from nemotron_dpo.policy.recompute import Recompute
from nemotron_dpo.policy.rows import PackedRow, parts_of_pairs
from nemotron_dpo.policy.token_values import TokenValues
from nemotron_dpo.policy.transformer_config import transformer_config

if TYPE_CHECKING:
    from nemotron_dpo.policy.balanced_routers import Balancer


class PairPolicy(GPTModel):
    """GPTModel whose forward takes a PackedRow; parameters, checkpoint keys and parallelism are GPTModel's own.

    The one override is `forward`, where the output layer runs on response tokens alone.
    `architecture` is that of the whole policy, of which this rank may hold a part; its dtype is the weights'.
    """

    architecture: Architecture
    balancer: Balancer | None = None

    def forward(self, row: PackedRow, slope: Slope | None = None, values: TokenValues | None = None) -> Tensor:  # type: ignore[override] - one row is all that a forward takes
        """Log-probs float32 [R] on the last pipeline stage, hidden states [L, 1, H] on the others.

        Under sequence parallelism the hidden states are this rank's part of L. With the slope of the loss that is going to be
        differentiated the output layer has its gradients at once. `values` takes what it asks for of the response tokens.
        """
        hidden = None
        if self.pre_process:
            hidden = self.embedding(input_ids=row.input_ids_L[None], position_ids=row.positions_L[None])
        hidden = self.decoder(
            hidden_states=hidden,
            attention_mask=None,
            packed_seq_params=row,
            padding_mask=self._sequences(row),
        )
        return self._logps(hidden, row, slope, values) if self.post_process else hidden

    def _sequences(self, row: PackedRow) -> Tensor | None:
        """What routers that are balanced are told of the tokens of this rank: which are of which sequence."""
        moves_biases = self.config.moe_router_enable_expert_bias and self.config.moe_router_bias_update_rate > 0
        is_counting = self.balancer is not None and self.balancer.is_counting
        if not is_counting and not (self.training and (self.balancer is not None or moves_biases)):
            return None
        sequences_NL = row.sequences()
        if not self.config.sequence_parallel:
            return sequences_NL
        ranks, rank = self.config.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
        return sequences_NL.chunk(ranks, dim=1)[rank]

    def _logps(self, hidden: Tensor, row: PackedRow, slope: Slope | None, values: TokenValues | None) -> Tensor:
        """Log-probs [R]: of the tokens predicted here, then of all, where context-parallel ranks predict some each."""
        share, group = row.share, parallel_state.get_tensor_model_parallel_group()
        predictors, targets = row.predictors_R, row.targets_R
        if share is not None:
            predictors, targets = share.predictors_M, row.targets_R[share.held_M]
        if self.config.sequence_parallel:
            hidden_MH = gather_from_sequence_parallel_region(hidden)[predictors, 0]
        else:
            hidden_MH = copy_to_tensor_model_parallel_region(hidden[predictors, 0])
        hidden_MH = self._divided(hidden_MH)
        weight, softcap = self.output_weight(), self.architecture.logit_softcap
        parts = None if slope is None or share is not None else parts_of_pairs(row, kept_tokens(weight))
        if slope is not None and parts is not None:
            return trained_logps(hidden_MH, weight, targets, slope, parts, group, values, softcap)
        logps_M = response_logps(hidden_MH, weight, targets, group, values, softcap)
        if share is None:
            return logps_M
        spread_R = torch.zeros(len(row.targets_R), device=logps_M.device).index_copy(0, share.held_M, logps_M)
        if values is not None:
            values.spread(share.held_M, len(row.targets_R), parallel_state.get_context_parallel_group())
        return reduce_from_tensor_model_parallel_region(spread_R, parallel_state.get_context_parallel_group())

    def _divided(self, hidden: Tensor) -> Tensor:
        """Hidden states whose logits are divided as they should be."""
        divisor = self.architecture.logits_divisor
        return hidden if divisor == 1.0 else hidden / divisor

    def output_weight(self) -> Tensor:
        """This rank's share of the vocabulary projection [V, H]: the embedding's where they are tied."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        weight = self.output_layer.weight
        assert weight is not None  # it is only where the embeddings are tied
        return weight

    def all_logits(self, row: PackedRow) -> Tensor:
        """Logits [S, V] at every packed position, for tests and inspection; TP = PP = CP = 1 only."""
        with self.without_output():
            hidden = self.forward(row)
        logits, softcap = self._divided(hidden[:, 0]) @ self.output_weight().t(), self.architecture.logit_softcap
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    @contextmanager
    def without_output(self) -> Iterator[None]:
        """In the block `forward` gives hidden states on the last pipeline stage too."""
        post_process, self.post_process = self.post_process, False
        try:
            yield
        finally:
            self.post_process = post_process


def build_policy(
    architecture: Architecture, dtype: torch.dtype, *, max_length: int, recompute: Recompute | None = None
) -> PairPolicy:
    """An uninitialised policy of this rank's layers, on this rank's device, in `dtype`.

    `max_length` bounds the positions of one prompt + response. Raises UserError where the heads, groups, layers, experts or
    vocabulary do not divide over the ranks.
    """
    _check_length(architecture, max_length)
    config = transformer_config(architecture, dtype, recompute=recompute)
    model = PairPolicy(
        config,
        block_spec(architecture, config),  # type: ignore[arg-type] - megatron-core takes the submodules too
        architecture.vocab_size,
        max_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=architecture.tied_embeddings,
        position_embedding_type="none",  # each layer has positions of its own (policy.attention)
    )
    model.architecture = architecture
    specialize(model)
    if architecture.is_hybrid:
        name_as_hybrid(model)
    mark_partitions(model)
    mark_experts(model, parallel.layout())
    scale_embeddings(model, architecture)
    return set_precision(model.to(device=device()), dtype, states_in_float32=False)


def _check_length(architecture: Architecture, max_length: int) -> None:
    """Raise UserError where sequences are to be longer than the policy takes."""
    most = architecture.max_position_embeddings
    if max_length > most:
        what = f"sequences of {max_length} tokens exceed the policy's {most} positions"
        raise UserError(what, remedy="lower policy.max_total_sequence_length")
