"""What a record says to a person, in a line."""

from __future__ import annotations

from collections.abc import Mapping

from nemotron_dpo.outcome import TOKENS_PER_SECOND, Outcome, Validation, is_noise, margin, sentence
from nemotron_dpo.training.record import Record
from nemotron_dpo.wording import counted


def step_facts(record: Record) -> str:
    """How a step went: `loss 0.6721, accuracy 0.625, margin 0.041, lr 5e-07, 812 tokens/s, 3.1 GB`."""
    values = record.values
    speed, memory = values.get(TOKENS_PER_SECOND), next((v for k, v in values.items() if k.startswith("memory/train/")), None)
    facts = [*_quality(_of(record)), f"lr {values['train/lr']:.3g}"]
    facts += [f"{speed:.0f} tokens/s"] if speed is not None else []
    facts += [f"{memory / 1e9:.1f} GB"] if memory is not None else []
    return ", ".join(facts)


def validation_line(record: Record) -> str:
    """How good the policy is: `validation after step 50: loss 0.6012, accuracy 0.700, margin 0.35, 64 pairs`."""
    values = _of(record)
    name = record.split.removeprefix("validation-")
    which = "" if name == "default" else f" {name}"
    count = round(values.get("num_valid_samples", 0.0))
    return f"validation{which} after step {record.step}: {', '.join([*_quality(values), counted(count, 'pair')])}"


def ending(made: Outcome) -> list[str]:
    """What came of a run: the means over its first and its last tenth, its best validation, and that in a sentence."""
    ends, speed = made.ends, made.pairs_per_second
    if not made.num_steps:
        return [sentence(made)]
    names = [name for name in ("loss", "accuracy") if name == "loss" or ends.last.get(name)]
    facts = [counted(made.num_steps, "step")]
    facts += [f"{name} {ends.first[name]:.4f} -> {ends.last[name]:.4f}" for name in names]
    facts += [f"{speed:.2f} pairs/s"] if speed is not None else []
    means = f" (means of the first and the last {ends.window} steps)" if ends.window > 1 else ""
    return [f"{', '.join(facts)}{means}", *map(_best, made.validations), sentence(made)]


def _best(one: Validation) -> str:
    if "loss" not in one.best:
        return f"{one.name} never had a finite loss"
    return f"{one.name} was best after step {one.best_step}: loss {one.best['loss']:.4f}"


def _of(record: Record) -> dict[str, float]:
    """The metrics of a record by their bare names."""
    prefix = f"{record.split}/"
    return {key.removeprefix(prefix): value for key, value in record.values.items() if key.startswith(prefix)}


def _quality(values: Mapping[str, float]) -> list[str]:
    """Loss, and accuracy and margin where responses are compared; a margin that is noise has "~" before it."""
    gained = margin(values)
    facts = [f"loss {values['loss']:.4f}"]
    terms = {name.removesuffix("_loss"): value for name, value in values.items() if name.endswith("_loss") and value}
    facts += [f"{name} {value:.4f}" for name, value in terms.items()] if len(terms) > 1 else []
    if gained is not None and (gained or values.get("accuracy")):
        facts += [f"accuracy {values['accuracy']:.3f}", f"margin {'~' if is_noise(values) else ''}{gained:.3g}"]
    return facts
