"""What power loss leaves: each file and folder is on the disk before it takes its name, and the name before the program ends.

Told by the order of writes, fsyncs and renames, as fault.c logs them. A name that only goes away needs no fsync: after a power
loss it is there again, and swept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults import stages
from faults.trial import trial_of
from support import faulty
from support.faulty import Operation

pytestmark = pytest.mark.slow
_PAST_LIBC = re.compile(r".*/\.tmp\w{6}")  # safetensors' own, renamed past libc; its new name has to be synced as every file
_STAGES = (
    "preference-tokenize",
    "ref-logprobs",
    "dpo-train",
    "ckpt-export --to megatron",
    "ckpt-export --to hf",
    "ckpt-export --to peft",
    "dpo-report",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    stages.write_inputs(folder)
    return folder


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def lost(operations: Sequence[Operation]) -> list[str]:
    """What could be lost or half there, of operations in their order."""
    found: list[str] = []
    unsynced: set[str] = set()  # files with content, and folders with names, that are not on the disk
    for one, before in zip(operations, [Operation(0, "", ""), *operations], strict=False):
        parent = os.path.dirname(one.path)
        if one.kind in ("open", "write", "truncate") and not _PAST_LIBC.fullmatch(one.path):
            unsynced.add(one.path)
        if one.kind == "fsync":
            unsynced.discard(one.path)
        if one.kind == "rename":
            found += [f"{one.path}: renamed before {path} was synced" for path in unsynced if _below(path, before.path)]
            unsynced = {path for path in unsynced if not _below(path, before.path)} | {parent}
        if one.kind == "unlink":
            unsynced = {path for path in unsynced if not _below(path, one.path)}
    return found + [f"{path}: not synced at the end" for path in sorted(unsynced) if not path.endswith(".lock")]


def _operations(*lines: str) -> list[Operation]:
    return [Operation(number, *line.split()) for number, line in enumerate(lines)]


def test_what_is_told() -> None:
    whole = ("open /o/t/x", "write /o/t/x", "fsync /o/t/x", "from /o/t/x", "rename /o/x", "fsync /o", "unlink /o/t")
    assert lost(_operations(*whole)) == []
    assert lost(_operations(*whole[:2], *whole[3:])) == ["/o/x: renamed before /o/t/x was synced"]
    assert lost(_operations(*whole[:5])) == ["/o: not synced at the end"]
    assert lost(_operations(*whole, "write /o/log")) == ["/o/log: not synced at the end"]


@pytest.mark.parametrize("name", _STAGES)
def test_what_is_published_is_on_the_disk(inputs: Path, tmp_path: Path, name: str) -> None:
    out, log = tmp_path / "OUT", tmp_path / "log"
    trial = trial_of(name, inputs, out)
    trial.anew()
    assert trial.run(log=log, prefix=str(out)).status == 0
    operations = faulty.logged(log)
    assert lost(operations) == []
    moved = [one.path for one in operations if one.kind == "from"]
    assert moved
    synced = {one.path for one in operations if one.kind == "fsync"}
    ends = {os.path.relpath(path, folder) for path in synced for folder in moved if _below(path, folder)}
    for file in (path for path in out.rglob("*") if path.is_file()):  # those too that fault.c did not see written
        assert any(str(file).endswith(f"/{end}") or end == "." for end in ends) or str(file) in synced, file
