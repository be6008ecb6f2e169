"""The auxiliary loss that makes a mixture's router spread tokens over its experts (Shazeer et al., 2017; Switch Transformer,
arXiv 2101.03961, equations 4 to 6), as a setting. Knows no torch; `balanced_routers` computes it.

Of a layer and a group of T tokens, with E experts of which each token picks k:

    loss = E * sum over e of f_e P_e,   f_e = (tokens that picked e) / (k T),   P_e = mean over tokens of softmax(logits)_e

This is megatron-core's, whose coefficient weighs the sum over layers. transformers' load_balancing_loss_func of one layer is k
times as much; of several layers it takes f and P over all of them together. f is a constant: it has no gradient.

A pair counts as two sequences, the prompt in both, so its tokens weigh 2. Padding counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["aux_loss", "seq_aux_loss", "global_aux_loss", "transformers_aux_loss"]

# kind -> its metric, as megatron-core calls it; of the last as transformers does
METRICS: dict[Kind, str] = {
    "aux_loss": "moe/load_balancing_loss",
    "seq_aux_loss": "moe/seq_load_balancing_loss",
    "global_aux_loss": "moe/global_load_balancing_loss",
    "transformers_aux_loss": "moe/aux_loss",
}


@dataclass(frozen=True)
class LoadBalancing:
    """Which tokens are balanced together, and the coefficient by which the auxiliary loss is added; None is the model's own.

    aux_loss: the two sequences of a pair; the mean over pairs. megatron-core's where a micro batch is a pair.
    seq_aux_loss: each sequence; the mean over sequences.
    global_aux_loss: all sequences of the global batch.
    transformers_aux_loss: these as well, and all layers together, as TRL has it where a micro batch is the global batch.
    """

    kind: Kind = "aux_loss"
    coeff: float | None = None

    def coeff_of(self, own: float | None) -> float | None:
        """The coefficient for a model that says `own`; None where neither says one."""
        return own if self.coeff is None else self.coeff

    @property
    def counts_first(self) -> bool:
        """Whether f of the global batch must be known first, for which its experts are picked in a forward pass of its own."""
        return self.kind in ("global_aux_loss", "transformers_aux_loss")
