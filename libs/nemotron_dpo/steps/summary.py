"""The short report at the end of a run: what dpo-train measured, what that comes to, where it lies, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from nemotron_dpo.outcome import Outcome, Validation, is_noise, margin, sentence
from nemotron_dpo.steps.text import table
from nemotron_dpo.wording import counted

# Rows of the table beside the losses of an objective's terms.
_LOSS, _ACCURACY = "loss", "accuracy"


def summarize(
    made: Outcome,
    places: Mapping[str, Path | str | None],
    commands: Sequence[str] = (),
    sources: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Tables of training and validation, a sentence, the facts of the run with its `places`, and the next `commands`.

    Of a training set that was mixed, `sources` are its pairs by where they come from.
    """
    facts = [("steps", str(made.num_steps)), ("pairs/s", _rate(made.pairs_per_second))]
    facts += [("tokens/s", _rate(made.tokens_per_second))]
    facts += [("pairs of", f"{name} {count}") for name, count in sources.items()]
    facts += [(name, str(path or "none")) for name, path in places.items()]
    training = _training(made) if made.num_steps else ""
    legend = "~ is noise: what rounding alone may make of it" if "~" in training else ""
    validation = "\n\n".join(_validation(one) for one in made.validations)
    next_ = "next\n" + "\n".join(f"  {command}" for command in commands) if commands else ""
    said = sentence(made)
    parts = (training, legend, validation, f"{said[0].upper()}{said[1:]}.", table(facts), next_)
    return "\n\n".join(part for part in parts if part)


def _training(made: Outcome) -> str:
    first, last, window = made.ends.first, made.ends.last, made.ends.window
    names = [_LOSS, *_terms(first), _ACCURACY]
    rows = [(_label(name), f"{first[name]:.4f}", f"{last[name]:.4f}") for name in names if name in first and name in last]
    if margin(first) is not None and margin(last) is not None:
        rows.append(("reward margin", _margin(first), _margin(last)))
    heads = ("first", "last") if window == 1 else (f"first {counted(window, 'step')}", f"last {counted(window, 'step')}")
    return table(rows, head=("", *heads))


def _validation(one: Validation) -> str:
    """The set as it was first, at its best where that is neither, and last."""
    columns = [("first", one.first)]
    if one.best is not one.first and one.best is not one.last:
        columns.append((f"best (step {one.best_step})", one.best))
    columns += [("last", one.last)] if one.last is not one.first else []
    rows = [
        (f"{one.name} {_label(name)}", *(f"{values[name]:.4f}" for _, values in columns))
        for name in (_LOSS, *_terms(one.first), _ACCURACY)
        if all(name in values for _, values in columns)
    ]
    return table(rows, head=("", *(head for head, _ in columns)))


def _terms(metrics: Mapping[str, float]) -> list[str]:
    """The losses of the objective's terms, where there are several: one alone is the loss. One that is always 0 is none."""
    terms = [name for name, value in metrics.items() if name.endswith("_loss") and value]
    return terms if len(terms) > 1 else []


def _label(name: str) -> str:
    return name.removesuffix("_loss") + " loss" if name.endswith("_loss") else name


def _margin(metrics: Mapping[str, float]) -> str:
    """As text, with "~" before it where it is noise."""
    shown = f"{margin(metrics) or 0.0:.4f}"
    return f"~{shown}" if is_noise(metrics) and float(shown) else shown


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
