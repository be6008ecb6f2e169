"""Whether what pip fetched is what configs/pins-hashes.txt names: checked before any of it runs.

pip's own --require-hashes needs every requirement with its hashes beforehand; which there are depends on the build of torch
that a machine gets. So pip resolves under the pins, says in a report what it installed and with which sha256, and that is
compared here, by the Python that lies outside the environment. Wheels run nothing while they are installed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANY = "NEMOTRON_DPO_ANY_HASH"  # set by who has an index that builds wheels of its own


@dataclass(frozen=True)
class Fetched:
    """A package of pip's report. A `version` with a local part (2.13.0+cpu) is a build that the package index does not have."""

    name: str
    version: str
    sha256: str
    url: str

    @property
    def is_local_build(self) -> bool:
        return "+" in self.version

    @property
    def said(self) -> str:
        return f"{self.name} {self.version} ({self.url}, sha256 {self.sha256 or 'unknown'})"


def read_report(path: Path) -> list[Fetched]:
    """What the report of a run of pip says was installed."""
    return [_fetched(item) for item in json.loads(path.read_text(encoding="utf-8"))["install"]]


def known(hashes: Path) -> Mapping[str, frozenset[str]]:
    """Package -> the sha256 of every file of its pinned version."""
    found: dict[str, frozenset[str]] = {}
    for block in re.split(r"\n(?=\S)", hashes.read_text(encoding="utf-8")):
        name = re.match(r"([\w.-]+)==", block)
        if name:
            found[_plain(name[1])] = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
    return found


def unknown(fetched: list[Fetched], hashes: Mapping[str, frozenset[str]]) -> list[Fetched]:
    """Those of `fetched` that are none of the files that `hashes` names."""
    return [one for one in fetched if one.sha256 not in hashes.get(_plain(one.name), ())]


def are_any_taken() -> bool:
    """Whether the user said that other files than the package index's are meant."""
    return bool(os.environ.get(ANY))


def _fetched(item: Mapping[str, Any]) -> Fetched:
    archive = item["download_info"].get("archive_info", {})
    sha256 = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    metadata = item["metadata"]
    return Fetched(metadata["name"], metadata["version"], sha256, item["download_info"]["url"])


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
