"""What came of each fault, a JSON line each, as they come: so that the matrix can be run in pieces and gone on with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

HELD, NOT_STRUCK, UNSEEN = "held", "not struck", "unseen"


@dataclass(frozen=True)
class Result:
    """Of the fault `point` of that kind at that stage: "held", or what failed. There are `of` such points."""

    kind: str
    stage: str
    point: str
    outcome: str
    of: int = 0


def is_well(result: Result) -> bool:
    """Whether nothing has to be mended; safetensors and texts of others have no checksums by which damage could be seen."""
    return result.outcome in (HELD, NOT_STRUCK) or (result.outcome.startswith(UNSEEN) and "of others" in result.kind)


def append(file: Path, result: Result, seconds: float) -> None:
    """Add a line to `file`."""
    with file.open("ab") as lines:
        lines.write(orjson.dumps({**asdict(result), "seconds": round(seconds, 2), "at": int(time.time())}) + b"\n")


def last_of_each(file: Path) -> Mapping[tuple[str, str, str], Result]:
    """The last result of every point, by kind, stage and point."""
    return {(result.kind, result.stage, result.point): result for result in _read(file)}


def _read(file: Path) -> Iterator[Result]:
    for line in file.read_bytes().splitlines() if file.exists() else ():
        fields = orjson.loads(line)
        yield Result(fields["kind"], fields["stage"], fields["point"], fields["outcome"], fields.get("of", 0))
