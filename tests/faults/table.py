"""Write the table of README.md from the results of the matrix: `python tests/faults/table.py RESULTS.jsonl`.

A row a stage, a column a kind of fault, in it how many points held of those that were tried (and of how many, where not all
were). A cell without results keeps what stands in README.md; one that was never run says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from faults import damage, kinds, results, stages
from faults.results import NOT_STRUCK, UNSEEN, Result, is_well

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- the matrix: by table.py -->", "<!-- its end -->"
NOT_RUN, NO_CELL = "not run", ""
_KINDS = tuple(kind for kind in kinds.CELLS if not kind.startswith("damage"))


def table(found: Iterable[Result], before: str = "") -> str:
    """Both tables, of faults at stages and of damage, in Markdown; `before` is what they were."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in found:
        cells.setdefault((result.kind, result.stage), []).append(result)
    head = ["stage", *_KINDS]
    kept = _rows(before)
    rows = [
        [there if cell == NOT_RUN else cell for cell, there in zip(row, kept.get(row[0], row), strict=True)]
        for row in ([stage, *(_cell(cells, kind, stage) for kind in _KINDS)] for stage in stages.STAGES)
    ]
    damaged = [
        kept.get(row[0], row) if NOT_RUN in row else row
        for row in ([what, of, *_damage(cells, f"damage of {what}", of)] for what, (of, _) in damage.READERS.items())
    ]
    faults = _markdown(head, [row for row in rows if any(row[1:])])
    return faults + "\n" + _markdown(["damage of", "read by", "held", "unseen"], damaged)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _rows(written: str) -> dict[str, list[str]]:
    """The rows of tables in Markdown by their first cells."""
    lines = (line.removeprefix("| ").removesuffix(" |").split(" | ") for line in written.splitlines())
    return {row[0]: row for row in lines}


def _cell(cells: Mapping[tuple[str, str], list[Result]], kind: str, stage: str) -> str:
    if stage not in kinds.CELLS[kind]:
        return NO_CELL
    tried = cells.get((kind, stage), [])
    struck = [result for result in tried if result.outcome != NOT_STRUCK]  # a disk that has room after all strikes nothing
    return f"{sum(map(is_well, struck))} / {len(struck)}{_part(tried)}" if tried else NOT_RUN


def _part(tried: list[Result]) -> str:
    """Of how many points these are a part."""
    of = max(result.of for result in tried)
    return f" of {of}" if of > len(tried) else ""


def _damage(cells: Mapping[tuple[str, str], list[Result]], kind: str, stage: str) -> list[str]:
    tried = cells.get((kind, stage), [])
    unseen = sum(result.outcome.startswith(UNSEEN) for result in tried)
    held = sum(is_well(result) and not result.outcome.startswith(UNSEEN) for result in tried)
    return [f"{held} / {len(tried)}{_part(tried)}", str(unseen)] if tried else [NOT_RUN, NO_CELL]


def written() -> str:
    """What stands in README.md between the two marks."""
    return README.read_text().split(BEGIN + "\n")[1].split(END)[0]


def main(file: str) -> None:
    """Put the table of the results in `file` in its place."""
    before, rest = README.read_text().split(BEGIN + "\n")
    README.write_text(
        f"{before}{BEGIN}\n{table(results.last_of_each(Path(file)).values(), written())}{END}{rest.split(END)[1]}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
