"""What run.sh says: report.py line SCRATCH NAME, when a check ended; report.py table SCRATCH OUT SECONDS, at the end.

SCRATCH/states.tsv has a line a check: how it ended, its name, its seconds. SCRATCH/NAME/figures.json is what it told.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SAID = {"left_out": "left out"}


def main() -> None:
    """By the first argument."""
    what, scratch, *rest = sys.argv[1:]
    ended = [_ended(Path(scratch), *line.split("\t")) for line in (Path(scratch) / "states.tsv").read_text().splitlines()]
    if what == "line":
        _say(ended[-1])
    else:
        _table(ended, Path(rest[0]), int(rest[1]))


def _ended(scratch: Path, state: str, name: str, seconds: str) -> dict[str, Any]:
    path = scratch / name / "figures.json"
    figures = json.loads(path.read_text()) if path.is_file() else {}
    return {"check": name, "state": SAID.get(state, state), "seconds": int(seconds), "figures": figures}


def _say(each: dict[str, Any]) -> None:
    figures = _words(each["figures"]) or ("no time for it" if each["state"] == "left out" else "no figures")
    print(f"{each['state']:8} {each['check']:13} {each['seconds']:4} s: {figures}", flush=True)


def _table(ended: list[dict[str, Any]], out: Path, seconds: int) -> None:
    machine = next((each["figures"] for each in ended if each["check"] == "machine"), {})
    lines = [_head(machine), "", "| check | | s | figures |", "| --- | --- | ---: | --- |"]
    lines += [f"| {each['check']} | {each['state']} | {each['seconds']} | {_words(each['figures'])} |" for each in ended]
    states = [each["state"] for each in ended]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines += ["", f"{counts}; {seconds} s in all."]
    print("\n" + "\n".join(lines), flush=True)
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps({"seconds": seconds, "checks": ended}, indent=1) + "\n", encoding="utf-8")


def _head(machine: dict[str, Any]) -> str:
    names = ("card", "driver", "torch", "triton", "megatron_core", "transformers", "trl", "python", "commit")
    return ", ".join(f"{name} {machine[name]}" for name in names if name in machine) or "The machine was not asked."


def _words(figures: dict[str, Any]) -> str:
    return "; ".join(f"{name} {_word(value)}" for name, value in figures.items())


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_words(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
