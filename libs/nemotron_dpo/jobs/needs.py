"""Which jobs another one needs: it trained from their policy, reads their files, or its adapters lie over their weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dpo.jobs.job import Job, read_mapping


def needed_by(job: Job, jobs: Sequence[Job]) -> dict[str, str]:
    """The ids of those of `jobs` that `job` needs, each with what of it."""
    roots = {other.folder.resolve(): other.id for other in jobs if other.id != job.id}
    found: dict[str, str] = {}
    for path in _paths(job):
        owner = next((name for root, name in roots.items() if path == root or root in path.parents), None)
        if owner is not None:
            found.setdefault(owner, str(path))
    return found


def kept_for(kept: Iterable[Job], jobs: Sequence[Job]) -> dict[str, str]:
    """The ids of those of `jobs` that the `kept` ones need, also through others, each with who needs it."""
    by_id = {job.id: job for job in jobs}
    reasons: dict[str, str] = {}
    rest = list(kept)
    seen = {job.id for job in rest}
    while rest:
        job = rest.pop()
        for name in needed_by(job, jobs):
            reasons.setdefault(name, job.id)
            if name not in seen:
                seen.add(name)
                rest.append(by_id[name])
    return reasons


def _paths(job: Job) -> Iterator[Path]:
    """Whatever `job` names that may be a path, and where its links lead."""
    base = Path(str(job.record.get("folder") or ".").replace("\0", ""))
    words = [*_texts(job.settings), *_texts(job.record.get("config")), *_texts(job.record.get("outputs"))]
    for command in _texts(job.record.get("stages")):
        words += command.split()
    for run_config in job.folder.rglob("run_config.yaml"):
        words += _texts(read_mapping(run_config))
    for word in words:
        for text in (word, word.partition("=")[2]):
            if "/" in text and not {"\n", "\0"} & set(text) and len(text) < 4096:
                yield Path(os.path.realpath(base / os.path.expanduser(text)))
    for folder, folders, files in os.walk(job.folder):
        for name in (*folders, *files):
            if os.path.islink(path := os.path.join(folder, name)):
                yield Path(os.path.realpath(path))


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)
