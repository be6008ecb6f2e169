"""What the run cost: its speed and its memory over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from nemotron_dpo.outcome import TOKENS_PER_SECOND
from nemotron_dpo.report.document import Curve, Figure, Grid, Section
from nemotron_dpo.report.measured import Series
from nemotron_dpo.report.plots import lines, smooth
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.training_section import said_of
from nemotron_dpo.report.visible import number, percent, visible

_STEP_SECONDS = "timing/train/total_step_time"


def cost_section(run: Run) -> Section:
    """Speed, memory, and where it ran."""
    machine, facts = run.measured.machine, run.given.facts
    memory = next((name for name in sorted(machine) if name.startswith("memory/train/")), None)
    figures = (
        _figure(
            "speed", "Tokens of responses a second", "Over all processes, steps alone.", machine.get(TOKENS_PER_SECOND), 1.0
        ),
        _figure("memory", "Peak memory, GB", _of_memory(memory), machine.get(memory) if memory else None, 1e-9),
    )
    rows = [
        ("pairs a second (median)", number(run.measured.made.pairs_per_second, 2)),
        ("response tokens a second (median)", number(run.measured.made.tokens_per_second, 1)),
    ]
    if seconds := machine.get(_STEP_SECONDS):
        rows += [
            ("seconds a step (median)", number(median(seconds.values[1:] or seconds.values), 3)),
            ("seconds of all steps", number(sum(seconds.values), 1)),
        ]
    rows += _parts(machine)
    rows += [("seconds of all validations", number(total, 1))] if (total := _validating(run)) else []
    used = run.measured.train.get("train_fp_utilization")
    rows += [("share of the devices' peak (median)", percent(median(used.values)))] if used else []
    rows += [("processes", visible(facts["processes"]))] if "processes" in facts else []
    rows += [(name, visible(facts[name])) for name in ("device", "kernels") if facts.get(name)]
    shown = tuple(figure for figure in figures if figure is not None)
    return Section("cost", "Speed and memory", figures=shown, grids=(Grid(("", ""), tuple(rows)),))


_PARTS = (
    ("data_processing", "choosing and packing pairs"),
    ("policy_training/forward_backward", "forward and backward"),
    ("policy_training/optimizer", "optimizer"),
)


def _parts(machine: Mapping[str, Series]) -> list[tuple[str, str]]:
    """Where the time of a step goes, and how long checkpoints took; older runs do not say it."""
    whole = machine.get(_STEP_SECONDS)
    found = [(name, machine.get(f"timing/train/{part}")) for part, name in _PARTS]
    shares = [(f"of a step: {name}", percent(sum(one.values) / sum(whole.values))) for name, one in found if one and whole]
    saving = machine.get("timing/train/checkpointing")
    return shares + ([("seconds of all checkpoints", number(sum(saving.values), 1))] if saving else [])


def _of_memory(name: str | None) -> str:
    return "Of the process, as the system has it." if name and "resident" in name else "Of the device, as torch has it."


def _validating(run: Run) -> float:
    timings = (one for name, one in run.measured.machine.items() if name.endswith("/total_validation_time"))
    return sum(sum(one.values) for one in timings)


def _figure(key: str, title: str, caption: str, series: Series | None, unit: float) -> Figure | None:
    if series is None:
        return None
    curves = smooth(Curve(title, series.steps, [value * unit for value in series.values], "train"), "train")
    return lines(key, title, caption, said_of(title, curves), curves, form="~s" if unit == 1.0 else None, floor=0.0)
