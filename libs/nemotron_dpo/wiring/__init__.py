"""From a run's configuration to the plain arguments of the libraries. No other part knows both.

torch and megatron-core are imported inside the functions: an executable that imports this still prints its help at once.
"""

from nemotron_dpo.wiring.data import OpenPairs, data_rules, identity, open_pairs, resumed
from nemotron_dpo.wiring.loop import check_own_objective, rates_before, remarks, row_tokens, save_by, settings, watch
from nemotron_dpo.wiring.model import (
    check_router,
    cut_lines,
    layout,
    load_balancing,
    lora,
    open_trainable,
    optimization,
    recompute,
)
from nemotron_dpo.wiring.records import check_trackers, checkpoint_dir, checkpoints, recorded, samples

__all__ = [
    "OpenPairs",
    "check_own_objective",
    "check_router",
    "check_trackers",
    "checkpoint_dir",
    "checkpoints",
    "cut_lines",
    "data_rules",
    "identity",
    "layout",
    "load_balancing",
    "lora",
    "open_pairs",
    "open_trainable",
    "optimization",
    "rates_before",
    "recompute",
    "recorded",
    "remarks",
    "resumed",
    "row_tokens",
    "samples",
    "save_by",
    "settings",
    "watch",
]
