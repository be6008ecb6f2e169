"""What pip says that it installed against the files that configs/pins-hashes.txt names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pipelines.wheel_hashes import Fetched

from pipelines import wheel_hashes

ROOT = Path(__file__).resolve().parents[2]
A, B, C = "a" * 64, "b" * 64, "c" * 64
HASHES = f"# by hand\nOne_Thing==1.0 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\ntorch==2.13.0 ; sys_platform == 'linux' \\\n    --hash=sha256:{C}\n"


def _item(name: str, version: str, archive: dict[str, Any]) -> dict[str, Any]:
    info = {"url": f"https://host/{name}.whl", "archive_info": archive}
    return {"metadata": {"name": name, "version": version}, "download_info": info}


def test_files_that_are_not_listed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (hashes := tmp_path / "hashes.txt").write_text(HASHES)
    known = wheel_hashes.known(hashes)
    assert known == {"one-thing": {A, B}, "torch": {C}}
    items = [
        _item("one.thing", "1.0", {"hashes": {"sha256": B}}),
        _item("One-Thing", "1.0", {"hash": f"sha256={A}"}),  # as older versions of pip wrote it
        _item("one-thing", "1.0", {"hashes": {"sha256": C}}),  # a file of another package
        _item("one-thing", "1.0", {"hashes": {"md5": "0"}}),
        _item("two", "1.0", {"hashes": {"sha256": A}}),
        _item("torch", "2.13.0+cpu", {"hashes": {"sha256": A}}),
    ]
    (report := tmp_path / "report.json").write_text(json.dumps({"version": "1", "install": items}))
    found = wheel_hashes.unknown(wheel_hashes.read_report(report), known)
    assert [(one.name, one.sha256, one.is_local_build) for one in found] == [
        ("one-thing", C, False),
        ("one-thing", "", False),
        ("two", A, False),
        ("torch", A, True),
    ]
    assert found[1].said == "one-thing 1.0 (https://host/one-thing.whl, sha256 unknown)"
    monkeypatch.delenv(wheel_hashes.ANY, raising=False)
    assert not wheel_hashes.are_any_taken()
    assert wheel_hashes.unknown([Fetched("torch", "2.13.0", C, "")], known) == []


def test_every_pin_has_the_sha256_of_its_files():
    """A package for x86-64 and aarch64 and three Pythons has six wheels at least, where it is compiled for each."""
    pins, hashes = ((ROOT / "configs" / name).read_text() for name in ("pins.txt", "pins-hashes.txt"))
    pinned = re.findall(r"^([\w.-]+)==(\S+)", pins, re.M)
    assert re.findall(r"^([\w.-]+)==(\S+)", hashes, re.M) == pinned, "`just pins` writes both"
    known = wheel_hashes.known(ROOT / "configs" / "pins-hashes.txt")
    assert all(known[name.lower()] for name, _ in pinned)
    assert min(len(known[name]) for name in ("torch", "numpy", "pyarrow", "pyyaml", "triton")) >= 6
