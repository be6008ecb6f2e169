"""What kind of value each key of theirs has: another is refused before anything is computed of it."""

from __future__ import annotations

from typing import Any

from nemotron_dpo.config.theirs.tables import COUNTS, OWN

# Keys without a default of a kind of their own, whose values are numbers.
NUMBERS = frozenset(
    ["eval_steps", "save_total_limit", "ld_alpha", "rpo_alpha", "simpo_gamma", "router_aux_loss_coef", "num_processes"]
) | {key for key, (default, _) in COUNTS.items() if isinstance(default, int | float) and not isinstance(default, bool)}
_WHOLE = frozenset(
    ["max_steps", "max_length", "seed", "save_total_limit", "max_samples", "evals_per_epoch", "saves_per_epoch", "lora_r"]
)
_COUNTS = frozenset(
    ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_processes", "lora_r"]
)
_ABOVE_0 = frozenset(["logging_steps", "eval_steps", "save_steps"])
_FLAGS = frozenset(key for key, (default, _) in COUNTS.items() if isinstance(default, bool))
_LISTS = frozenset(["loss_type", "loss_weights", "lora_target_modules", "report_to"])
_TREES = frozenset(["datasets", "test_datasets", "lr_scheduler_kwargs", "val_set_size", "plugins", "special_tokens"])
_READ = frozenset(COUNTS).union(*OWN.values())
_MOST = 1e15  # beyond it a float is no count, and no rate of theirs


def unfit(key: str, value: Any) -> str | None:
    """What is wrong with `value` of `key` (by TRL's name, or one of a program's own); None where it may be meant."""
    if key in NUMBERS | _WHOLE | _COUNTS:
        return _unfit_number(key, value)
    if key in _LISTS:
        return _unfit_list(key, value if isinstance(value, list) else [value])
    if key in _TREES or key not in _READ or not isinstance(value, dict | list):
        return None
    due = "true or false" if key in _FLAGS else "a name or a number"
    return f"is a {'mapping' if isinstance(value, dict) else 'list'} where {due} is due"


def _unfit_list(key: str, values: list[Any]) -> str | None:
    if key == "loss_weights":
        return None if all(isinstance(one, str | int | float) for one in values) else "has a weight that is no number"
    names = all(isinstance(one, str) for one in values) or (key == "lora_target_modules" and values in ([True], [False]))
    return None if names else "has what is no name"


def _unfit_number(key: str, value: Any) -> str | None:
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= _MOST:
        return f"is {_short(value)} where a number is due"
    if key in _COUNTS and (number < 1 or number != int(number)):
        return f"is {_short(value)} where a count from 1 on is due"
    if key in _WHOLE and number != int(number):
        return f"is {_short(value)} where a whole number is due"
    return f"is {_short(value)} where a number above 0 is due" if key in _ABOVE_0 and number <= 0 else None


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else f"of {value.bit_length()} bits"
    return text if len(text) <= 60 else f"{text[:57]}..."
