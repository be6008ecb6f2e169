"""metrics.jsonl as curves: of training, of each validation set, and of what the machine did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.outcome import Outcome, outcome, read_row


@dataclass(frozen=True)
class Series:
    """A metric at the steps it was measured at."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def first(self) -> float:
        """Its first value."""
        return self.values[0]

    @property
    def last(self) -> float:
        """Its last value."""
        return self.values[-1]


@dataclass(frozen=True)
class Measured:
    """What a run measured. Curves have bare names: `train["loss"]`, `sets["default"]["accuracy"]`; `machine` has full ones.

    made: what that comes to, as dpo-train itself says it. remarks: what of the file could not be read.
    """

    train: Mapping[str, Series]
    sets: Mapping[str, Mapping[str, Series]]
    machine: Mapping[str, Series]
    made: Outcome
    last_step: int
    remarks: tuple[str, ...] = ()

    @property
    def validation(self) -> str | None:
        """The validation set that answers are read from: the one called default, else the first."""
        return "default" if "default" in self.sets else next(iter(sorted(self.sets)), None)


def read(path: Path, *, is_young: bool = False) -> Measured:
    """Read metrics.jsonl at `path`. Raises UserError where it has no record of dpo-train, unless the run `is_young`."""
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        row = read_row(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            damaged.append(number)
    columns = _columns(rows)
    if not is_young and not any(name.startswith(("train/", "validation-")) for name in columns):
        raise UserError("has no record of dpo-train", source=path, remedy="give the --run-dir of dpo-train")
    remarks = (
        [f"Line {', '.join(map(str, damaged[:5]))} of {path.name} is damaged or cut short, and left out."] if damaged else []
    )
    sets = sorted({name.partition("/")[0] for name in columns if name.startswith("validation-")})
    return Measured(
        _under(columns, "train/"),
        {name.removeprefix("validation-"): _under(columns, f"{name}/") for name in sets},
        {name: one for name, one in columns.items() if name.startswith(("timing/", "memory/"))},
        outcome(rows),
        max((row["step"] for row in rows), default=0),
        tuple(remarks),
    )


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Every metric by its full name. Of two values at one step the later counts; what was not finite is left out."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, {})[row["step"]] = float(value)
    return {name: Series(tuple(sorted(at)), tuple(at[step] for step in sorted(at))) for name, at in found.items()}


def _under(columns: Mapping[str, Series], prefix: str) -> dict[str, Series]:
    return {name.removeprefix(prefix): one for name, one in columns.items() if name.startswith(prefix)}
