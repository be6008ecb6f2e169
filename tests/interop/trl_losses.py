"""TRL's own losses of the pairs of support/trl_pairs.py, by TRL's own code; nothing of ours runs.

    python3 -m venv work/trl && work/trl/bin/pip install torch==2.13.0 trl==1.16.0
    PYTHONPATH=tests work/trl/bin/python tests/interop/trl_losses.py

prints, for each case, the loss and the norm of its gradient by the log-probs of all response tokens, in float32. A model that
returns given log-probs stands in for the policy, and another one for the reference.
"""

# TRL is not installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer import dpo_trainer

from support.trl_pairs import LENGTHS, tokens

PAIRS, LONGEST = len(LENGTHS), max(max(pair) for pair in LENGTHS)
DPO: dict[str, dict[str, Any]] = {
    "dpo": {"loss_types": ["sigmoid"]},
    "dpo eps ignored": {"loss_types": ["sigmoid"], "label_smoothing": 0.1},
    "dpo_norm": {"loss_types": ["sigmoid_norm"]},
    "robust": {"loss_types": ["robust"], "label_smoothing": 0.1},
    "hinge": {"loss_types": ["hinge"]},
    "ipo": {"loss_types": ["ipo"]},
    "exo_pair": {"loss_types": ["exo_pair"], "label_smoothing": 0.1},
    "nca_pair": {"loss_types": ["nca_pair"]},
    "bco_pair": {"loss_types": ["bco_pair"]},
    "sppo_hard": {"loss_types": ["sppo_hard"]},
    "aot_paired": {"loss_types": ["aot"], "label_smoothing": 0.1},
    "aot_unpaired": {"loss_types": ["aot_unpaired"], "label_smoothing": 0.1},
    "apo_zero": {"loss_types": ["apo_zero"]},
    "apo_down": {"loss_types": ["apo_down"]},
    "discopop": {"loss_types": ["discopop"]},
    "sft": {"loss_types": ["sft"]},
    "mixture": {"loss_types": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]},
    "forward_kl": {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "js_divergence": {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
    "alpha_divergence": {"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence"},
    "ipo js_divergence": {"loss_types": ["ipo"], "f_divergence_type": "js_divergence"},
    "ld_alpha": {"loss_types": ["sigmoid"], "ld_alpha": 0.3},
    "ipo ld_alpha": {"loss_types": ["ipo"], "ld_alpha": 0.3},
    "nca_pair ld_alpha": {"loss_types": ["nca_pair"], "ld_alpha": 0.3},
    "wpo_weighting": {"loss_types": ["sigmoid"], "use_weighting": True},
}
DEFAULTS: dict[str, Any] = {
    "beta": 0.1,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "ld_alpha": None,
    "use_weighting": False,
    "aux_loss_enabled": False,
}
CPO: dict[str, dict[str, Any]] = {
    "cpo": {"loss_type": "sigmoid", "label_smoothing": 0.1},
    "simpo": {"loss_type": "simpo", "average": True},
    "alphapo": {"loss_type": "simpo", "average": True, "alpha": 0.25},
}


class Given(torch.nn.Module):
    """Returns the log-probs that it was made of."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor, log_sum_squares: Tensor) -> None:
        super().__init__()
        zero = torch.zeros_like(log_probs).detach()
        self.outputs = SimpleNamespace(
            log_probs=log_probs, log_sum_sq_probs=log_sum_squares, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )

    def forward(self, **_: Any) -> SimpleNamespace:
        return self.outputs


def columns() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, those of the reference, logs of sums of squares and the mask: [2 P, longest], chosen responses first."""
    values, mask = torch.zeros(3, 2 * PAIRS, LONGEST), torch.zeros(2 * PAIRS, LONGEST, dtype=torch.int64)
    for pair, lengths in enumerate(LENGTHS):
        for side, length in enumerate(lengths):
            values[:, side * PAIRS + pair, :length] = torch.tensor(tokens(pair, side)).T
            mask[side * PAIRS + pair, :length] = 1
    logps, ref, squares = values
    return logps, ref, squares, mask


@contextmanager
def _as_it_is(*_: Any, **__: Any) -> Any:
    yield


def dpo(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss by DPOTrainer, and the log-probs that it is of."""
    logps, ref, squares, mask = columns()
    logps.requires_grad_()
    dpo_trainer.disable_gradient_checkpointing = _as_it_is
    trainer = SimpleNamespace(**DEFAULTS, loss_weights=[1.0] * len(settings["loss_types"]))
    trainer.__dict__.update(settings)
    gather = {"gather_for_metrics": lambda value: value, "gather": lambda value: value}
    trainer.accelerator = SimpleNamespace(device="cpu", **gather)
    trainer.model, trainer.ref_model = Given(logps, squares), Given(ref, squares)
    trainer.args = SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None)
    trainer.precompute_ref_logps = trainer.gradient_checkpointing = False
    trainer.args.gradient_checkpointing, trainer._tp_size = False, 1
    trainer._metrics, trainer._total_train_tokens = {"train": defaultdict(list), "eval": defaultdict(list)}, 0
    prompt = torch.zeros(2 * PAIRS, 1, dtype=torch.int64)  # of one token
    completion_mask = torch.cat((prompt, mask), 1)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.cat((prompt + 1, mask), 1),
        "completion_mask": completion_mask,
    }
    return dpo_trainer.DPOTrainer._compute_loss(trainer, trainer.model, inputs, False), logps


def cpo(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The preference loss by CPOTrainer, without the likelihood."""
    logps, _, _, mask = columns()
    logps.requires_grad_()
    sums = logps.sum(1) / mask.sum(1) if settings.get("average") else logps.sum(1)
    trainer = SimpleNamespace(
        beta=2.0, alpha=0.0, simpo_gamma=0.5, label_smoothing=0.0, accelerator=SimpleNamespace(device="cpu")
    )
    trainer.__dict__.update(settings)
    return CPOTrainer.cpo_loss(trainer, *sums.chunk(2))[0].mean(), logps


def orpo() -> tuple[Tensor, Tensor]:
    """The preference loss by ORPOTrainer, without the likelihood."""
    logps, _, _, mask = columns()
    logps.requires_grad_()
    trainer = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    return -ORPOTrainer.odds_ratio_loss(trainer, *(logps.sum(1) / mask.sum(1)).chunk(2))[0].mean(), logps


def main() -> None:
    made = {name: dpo(settings) for name, settings in DPO.items()} | {name: cpo(settings) for name, settings in CPO.items()}
    made["orpo"] = orpo()
    for name, (loss, logps) in made.items():
        (slope,) = torch.autograd.grad(loss, logps)
        norm = slope[columns()[3].bool()].norm()  # padding has none
        print(f'    "{name}": ({json.dumps(loss.item())}, {json.dumps(norm.item())}),')


if __name__ == "__main__":
    main()
