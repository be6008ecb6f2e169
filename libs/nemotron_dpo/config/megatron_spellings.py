"""The optimizer and schedule of NeMo-RL's Megatron backend, rewritten into policy.optimizer and policy.scheduler."""

from __future__ import annotations

from nemotron_dpo.config.tree import Tree, drop_empty
from nemotron_dpo.errors import UserError

MEGATRON_ADAM = {"optimizer": "name", "lr": "lr", "weight_decay": "weight_decay", "adam_eps": "eps"}
# our name in policy.scheduler -> theirs in policy.megatron_cfg
MEGATRON_SCHEDULE = {
    "name": "scheduler.lr_decay_style",
    "warmup_steps": "scheduler.lr_warmup_iters",
    "warmup_init": "scheduler.lr_warmup_init",
    "decay_steps": "scheduler.lr_decay_iters",
    "min_lr": "optimizer.min_lr",
}
_SAME_WEIGHT_DECAY = ("start_weight_decay", "end_weight_decay")


def megatron_optimizer(policy: Tree) -> dict[str, str]:
    """NeMo-RL's Megatron backend takes optimizer and schedule from megatron_cfg: so here, where it is enabled by name."""
    megatron = policy["megatron_cfg"]
    optimizer, schedule = megatron.get("optimizer"), megatron.get("scheduler")
    replaced = [name for name in ("optimizer", "scheduler") if isinstance(megatron.get(name), dict) and policy.get(name)]
    if isinstance(schedule, dict) and _takes(policy, "scheduler"):
        _check_weight_decay(schedule, optimizer if isinstance(optimizer, dict) else {})
        policy["scheduler"] = _megatron_schedule(schedule, optimizer if isinstance(optimizer, dict) else {})
    if isinstance(optimizer, dict) and _takes(policy, "optimizer"):
        taken = {new: optimizer.pop(old) for old, new in MEGATRON_ADAM.items() if old in optimizer}
        taken["betas"] = [optimizer.pop("adam_beta1", 0.9), optimizer.pop("adam_beta2", 0.999)]
        policy["optimizer"] = taken
        if "clip_grad" in optimizer:  # 0 is none, as in Megatron
            policy["max_grad_norm"] = optimizer.pop("clip_grad") or None
    drop_empty(megatron, "optimizer")
    drop_empty(megatron, "scheduler")
    return {f"policy.{name}": f"is replaced: policy.megatron_cfg is enabled and has its own {name}" for name in replaced}


def _takes(policy: Tree, name: str) -> bool:
    """Whether megatron_cfg's section `name` counts. Raises UserError where it would be set and say nothing."""
    megatron = policy["megatron_cfg"]
    if megatron.get("enabled") is True or policy.get(name) is None:
        return True
    if not megatron[name]:
        return False
    key = f"policy.megatron_cfg.{name}.{next(iter(megatron[name]))}"
    remedy = f"set it there, or policy.megatron_cfg.enabled=true, which takes {name} from policy.megatron_cfg"
    raise UserError(f"would say nothing: policy.{name} counts", field=key, remedy=remedy)


def _megatron_schedule(schedule: Tree, optimizer: Tree) -> Tree:
    """Megatron's schedule in our names; a constant one has no floor and no end."""
    found = {"name": schedule.pop("lr_decay_style", "constant"), "warmup_steps": schedule.pop("lr_warmup_iters", 0)}
    found["warmup_init"] = schedule.pop("lr_warmup_init", 0.0)
    decay_steps = schedule.pop("lr_decay_iters", None)
    if found["name"] == "constant":
        return found
    return {**found, "min_lr": optimizer.pop("min_lr", 0.0), "decay_steps": decay_steps}


def _check_weight_decay(schedule: Tree, optimizer: Tree) -> None:
    """The schedule's weight decay is the one that Megatron trains with: it must be the optimizer's."""
    own = optimizer.get("weight_decay")
    for key in _SAME_WEIGHT_DECAY:
        value = schedule.pop(key, None)
        if value is not None and value != own:
            message = f"is {value}, and policy.megatron_cfg.optimizer.weight_decay is {own}"
            raise UserError(message, field=f"policy.megatron_cfg.scheduler.{key}", remedy="set them to one value")
