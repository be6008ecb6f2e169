"""A layer that is a recurrence alone, in megatron-core's TransformerBlock: what is around a mixer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron.core.dist_checkpointing.utils import apply_prefix_mapping
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from nemotron_dpo.policy.rows import PackedRow


@dataclass(frozen=True)
class RecurrentSubmodules:
    """What a layer is made of, and how checkpoints name what is saved by another name than its module has."""

    norm: ModuleSpec | type
    mixer: ModuleSpec
    sharded_state_dict_keys_map: dict[str, str] = field(default_factory=dict)


class RecurrentLayer(MegatronModule):
    """hidden + mixer(norm(hidden)); takes what TransformerBlock passes to its layers, and has the names of a MambaLayer."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: RecurrentSubmodules,
        layer_number: int = 1,
        pg_collection: Any = None,
        vp_stage: int | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        self.submodules_config = submodules
        self.layer_number = layer_number + get_transformer_layer_offset(config, vp_stage, pg_collection.pp.rank())
        self.norm = build_module(submodules.norm, config, config.hidden_size, eps=config.layernorm_epsilon)
        self.mixer = build_module(submodules.mixer, config, pg_collection=pg_collection)

    def forward(self, hidden_states: Tensor, *, packed_seq_params: PackedRow, context: Any = None, **_: Any) -> Any:
        """Hidden states [L, 1, H] -> (the same shape, context as it came)."""
        return hidden_states + self.mixer(self.norm(hidden_states), packed_seq_params), context

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict[str, Any]:
        """As megatron-core's MambaLayer has it."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        names = self.submodules_config.sharded_state_dict_keys_map.items()
        apply_prefix_mapping(state, {f"{prefix}{ours}": f"{prefix}{key}" for ours, key in names})
        return state
