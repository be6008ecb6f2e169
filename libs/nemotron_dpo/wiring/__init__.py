"""From a run's configuration to the plain arguments of the libraries. No other part knows both.

torch and megatron-core are imported inside the functions: an executable that imports this still prints its help at once.
"""

from nemotron_dpo.wiring.data import OpenPairs, check_goes_on, data_rules, identity, open_pairs, resumed
from nemotron_dpo.wiring.loop import remarks, remarks_on_rates, row_tokens, save_by, settings, watch
from nemotron_dpo.wiring.model import (
    check_router,
    cut_lines,
    initial_policy,
    layout,
    load_balancing,
    lora,
    open_trainable,
    optimization,
    recompute,
)
from nemotron_dpo.wiring.own_objective import blamed, check_own_objective
from nemotron_dpo.wiring.records import check_trackers, checkpoint_dir, checkpoints, held_folders, recorded, samples

__all__ = [
    "OpenPairs",
    "blamed",
    "check_goes_on",
    "check_own_objective",
    "check_router",
    "check_trackers",
    "checkpoint_dir",
    "checkpoints",
    "cut_lines",
    "data_rules",
    "held_folders",
    "identity",
    "initial_policy",
    "layout",
    "load_balancing",
    "lora",
    "open_pairs",
    "open_trainable",
    "optimization",
    "recompute",
    "recorded",
    "remarks",
    "remarks_on_rates",
    "resumed",
    "row_tokens",
    "samples",
    "save_by",
    "settings",
    "watch",
]
