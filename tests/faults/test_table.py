"""README.md's table of faults is what `table.py` writes of results, and counts them rightly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faults import results, table
from faults.results import HELD, NOT_STRUCK, UNSEEN, Result

_COUNT = re.compile(r"\d+ / \d+( of \d+)?|\d+|not run|")


def test_the_table_in_the_readme_has_the_form_of_the_generator() -> None:
    empty, written = table.table([]).splitlines(), table.written().splitlines()
    assert len(written) == len(empty)
    for blank, line in zip(empty, written, strict=True):
        due, found = (text.strip("| ").split(" | ") if "|" in text else [] for text in (blank, line))
        for want, have in zip(blank.split("|"), line.split("|"), strict=True):
            assert have.strip() == want.strip() or _COUNT.fullmatch(have.strip()), (blank, line)
        assert bool(due) == bool(found)


def test_a_cell_counts_what_held_of_what_was_struck(tmp_path: Path) -> None:
    told = [
        ("kill", "dpo-report", "00 before self", "half written: x"),
        ("kill", "dpo-report", "00 before self", HELD),  # tried again: the last counts
        ("kill", "dpo-report", "01 half self", "half written: x", 50),
        ("kill", "dpo-report", "02 after self", NOT_STRUCK),
        ("full disk", "dpo-report", "00 of 2", HELD, 2),
        ("full disk", "dpo-report", "01 of 2", NOT_STRUCK, 2),
        ("damage of a policy of others", "ref-logprobs", "flip 0", f"{UNSEEN}: differ"),
        ("damage of a policy of others", "ref-logprobs", "cut 0", HELD),
        ("damage of pairs", "ref-logprobs", "flip 0", f"{UNSEEN}: differ"),
    ]
    for one in told:
        results.append(tmp_path / "results", Result(*one), 1.0)
    lines = table.table(results.last_of_each(tmp_path / "results").values()).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line}
    assert rows["dpo-report"][0] == "1 / 2 of 50"
    disk = table._KINDS.index("full disk")
    assert [rows[stage][disk] for stage in ("dpo-report", "dpo-train")] == ["1 / 1", "not run"]
    assert rows["dpo-train"][0] == "not run"
    assert [cell.strip(" |") for cell in rows["a policy of others"]] == ["ref-logprobs", "1 / 2", "1"]
    assert [cell.strip(" |") for cell in rows["pairs"]] == ["ref-logprobs", "0 / 1", "1"]
    assert results.is_well(Result("damage of a policy of others", "ref-logprobs", "", f"{UNSEEN}: x"))
    assert not results.is_well(Result("damage of pairs", "ref-logprobs", "", f"{UNSEEN}: x"))


def test_what_was_not_run_again_stays():
    once = [
        Result("kill", "dpo-report", "00 before self", HELD),
        Result("kill", "dpo-train", "00 before self", HELD, 50),
        Result("damage of pairs", "ref-logprobs", "flip 0", HELD),
        Result("damage of a run", "dpo-report", "flip 0", HELD),
    ]
    again = [
        Result("kill", "dpo-train", "01 half self", HELD),
        Result("damage of a run", "dpo-report", "flip 0", f"{UNSEEN}: x"),
    ]
    assert table.table([], table.table(once)) == table.table(once)
    lines = table.table(again, table.table(once)).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line}
    assert [rows[stage][0] for stage in ("dpo-report", "dpo-train", "ref-logprobs")] == ["1 / 1", "1 / 1", "not run"]
    assert [cell.strip(" |") for cell in rows["pairs"] + rows["a run"]] == [
        "ref-logprobs",
        "1 / 1",
        "0",
        "dpo-report",
        "0 / 1",
        "1",
    ]


@pytest.mark.parametrize("kind", list(table.kinds.KINDS))
def test_every_kind_has_cells(kind: str) -> None:
    assert table.kinds.CELLS[kind]
    assert set(table.kinds.CELLS[kind]) <= set(table.stages.STAGES)
