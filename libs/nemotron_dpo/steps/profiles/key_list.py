"""Print every key of a profile, as README.md beside this file lists them: python -m nemotron_dpo.steps.profiles.key_list"""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_dpo.steps.profiles.keys import key_tables


def key_list() -> str:
    """A table in Markdown: each key once, with what it holds, what it says, and the executors that have a use for it."""
    return "\n".join(["| key | holds | says | executors |", "| --- | --- | --- | --- |", *_rows()])


def _rows() -> Iterator[str]:
    tables = key_tables()
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        known = {executor: table[name] for executor, table in tables.items() if name in table and not table[name].is_idle}
        kinds = ", ".join(dict.fromkeys(key.kind.name for key in known.values()))
        meaning = "; ".join(dict.fromkeys(key.meaning for key in known.values()))
        having = "all" if len(known) == len(tables) else ", ".join(known)
        if known:
            yield f"| `{name}` | {kinds} | {meaning} | {having} |"


if __name__ == "__main__":
    print(key_list())
