"""The points of a sweep: KEY=A,B,C once or several times, and every combination of these."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nemotron_dpo.config import redact_override
from nemotron_dpo.errors import UserError

_MOST = 1000  # Slurm's own bound for an array
# A point with another length is no longer run of the same: each is trained from its first step.
LENGTHS = ("dpo.max_num_steps", "dpo.max_num_epochs")
# These change no row and no score of the reference: what comes before training is the same at all points.
_AFTER_SCORING = (
    "dpo.",
    "policy.optimizer.",
    "policy.scheduler.",
    "policy.max_grad_norm",
    "policy.train_",
    "policy.megatron_cfg.peft.",
    "checkpointing.",
    "logger.",
)
_BEFORE_SCORING = ("checkpointing.pretrained_checkpoint", "dpo.seed", "dpo.preference_loss")


@dataclass(frozen=True)
class Point:
    """One combination: its `settings`, KEY=VALUE each, and the `name` of its job."""

    settings: tuple[str, ...]
    name: str


def points(sweeps: Sequence[str], called: str, given: Collection[str] = ()) -> list[Point]:
    """Every combination of the values of `sweeps`, the last key fastest; their names begin with `called`.

    `given` are keys that have a value besides. Raises UserError (usage) for a sweep that is none, a key or a value that is
    there twice, and too many points.
    """
    axes = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in axes]
    if double := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError("is swept twice", source=f"--sweep {double}", remedy="give its values once: KEY=A,B,C", usage=True)
    for key in keys:
        if key in given:
            what = f"{key} is given beside the sweep, where it would count for nothing"
            raise UserError(what, source=f"--sweep {key}", remedy="leave it out", usage=True)
    combinations = list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes)))
    if len(combinations) > _MOST:
        raise UserError(f"has {len(combinations)} points", source="--sweep", remedy=f"sweep up to {_MOST}", usage=True)
    return [Point(settings, _name(called, settings, number)) for number, settings in enumerate(combinations, start=1)]


def shares_scores(sweeps: Sequence[str]) -> bool:
    """Whether all points have the same rows and the same scores of the reference, as far as their keys say."""
    keys = [sweep.partition("=")[0] for sweep in sweeps]
    return all(key.startswith(_AFTER_SCORING) and not key.startswith(_BEFORE_SCORING) for key in keys)


def _axis(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    shown = f"--sweep {redact_override(sweep)}"
    if not (equals and re.fullmatch(r"[A-Za-z_][\w.-]*", key)):
        raise UserError("is no KEY=A,B,C", source=shown, usage=True)
    values = [value.strip() for value in _split(text)]
    if "" in values:
        raise UserError("has an empty value", source=shown, remedy="give KEY=A,B,C", usage=True)
    meant = [_meant(value) for value in values]
    if len(set(meant)) < len(meant):
        raise UserError("has a value twice", source=shown, remedy="leave one out", usage=True)
    if key == "run.name":
        raise UserError(
            "names jobs, which have the names of their points", source=shown, remedy="--name begins them", usage=True
        )
    return key, values


def _meant(value: str) -> str | float:
    """What tells a value from others: 1e-4 and 0.0001 are one."""
    try:
        return float(value)
    except ValueError:
        return value


def _split(text: str) -> list[str]:
    """`text` at its commas, but for those in brackets or quotes, which are of one value."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return parts


def _name(called: str, settings: Sequence[str], number: int) -> str:
    """`called` and the settings by the last parts of their keys, where a folder can be named so and may be; else its number."""
    if any(redact_override(setting) != setting for setting in settings):
        return f"{called[:80]}-{number}"
    words = ["=".join((key.rpartition(".")[2], value)) for key, _, value in (one.partition("=") for one in settings)]
    name = f"{called}-{'-'.join(words)}"
    name = re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", name)
    return name if len(name) <= 100 else f"{called[:80]}-{number}"
