"""configs/pins.txt: fresh, whole, and without conflict for every Python and processor, by the packages' metadata alone.

The resolver (uv) asks the package index for metadata and fetches no package. Where the index is out of reach these tests are
skipped, except the first, which needs no network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "configs" / "pins.txt"
UV = [Path(sys.executable).with_name("uv"), "--quiet", "--no-config", "--no-python-downloads"]
COMPILE = [*UV, "pip", "compile", "--no-header", "--python", sys.executable]
PYTHONS, PROCESSORS = ("3.11", "3.12", "3.13"), ("x86_64", "aarch64")


def _pins(text: str, python: str, processor: str) -> dict[str, str]:
    """Package -> version, of those pins that hold there."""
    there = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": processor}
    there |= {"sys_platform": "linux", "platform_system": "Linux"}
    found = re.findall(r"^([\w.-]+)==(\S+)(?: ; (.*?))?(?: +# .*)?$", text, re.M)
    return {canonicalize_name(name): version for name, version, marker in found if not marker or Marker(marker).evaluate(there)}


def _resolve(pins: Path, python: str, processor: str) -> tuple[dict[str, str], str]:
    """What the project needs there, with `pins` as constraints, built distributions alone; and the complaint if that fails."""
    argv = [*COMPILE, ROOT / "pyproject.toml", "--group", f"{ROOT / 'pyproject.toml'}:dev"]
    argv += ["--constraint", pins, "--python-version", python, "--python-platform", f"{processor}-manylinux_2_28"]
    done = subprocess.run([*argv, "--no-build", "--no-annotate"], capture_output=True, text=True, env=_environment())
    return _pins(done.stdout, python, processor), done.stderr


def _environment() -> dict[str, str]:
    """uv's names for pip's settings, as in pipelines/pins.sh."""
    names = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_CERT": "SSL_CERT_FILE"}
    return os.environ | {theirs: os.environ[ours] for ours, theirs in names.items() if os.environ.get(ours)}


@pytest.fixture(scope="module")
def index() -> None:
    """Skips where there is no package index."""
    done = subprocess.run(
        [*COMPILE, "-"], input="iniconfig", capture_output=True, text=True, env=_environment() | {"UV_HTTP_RETRIES": "1"}
    )
    if done.returncode:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1][:200]}")


def test_every_requirement_has_a_pin_that_satisfies_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [Requirement(each) for each in (*project["project"]["dependencies"], *project["dependency-groups"]["dev"])]
    assert len(wanted) > 20
    for python in PYTHONS:
        pins = _pins(PINS.read_text(), python, "x86_64")
        wrong = [str(each) for each in wanted if not each.specifier.contains(pins.get(canonicalize_name(each.name), "0.dev0"))]
        assert not wrong, f"`just pins` was not run after a change of pyproject.toml: {wrong}"


@pytest.mark.slow
def test_pins_are_fresh(index: None, tmp_path: Path):
    anew = tmp_path / "pins.txt"
    anew.write_bytes(PINS.read_bytes())
    done = subprocess.run([ROOT / "pipelines" / "pins.sh", anew], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert anew.read_text() == PINS.read_text(), "`just pins` was not run after a change of pyproject.toml"


@pytest.mark.slow
def test_they_resolve_everywhere_and_pin_all_that_is_needed(index: None):
    for python in PYTHONS:
        for processor in PROCESSORS:
            needed, complaint = _resolve(PINS, python, processor)
            assert not complaint, (python, processor)
            assert needed == _pins(PINS.read_text(), python, processor), (python, processor)
            assert {"torch", "triton", "nvidia-cudnn-cu13"} <= set(needed), (python, processor)


@pytest.mark.slow
def test_a_missing_pin_and_a_conflict_are_found(index: None, tmp_path: Path):
    text, doctored = PINS.read_text(), tmp_path / "pins.txt"
    doctored.write_text(re.sub(r"^nvidia-cublas==.*\n", "", text, flags=re.M))
    needed, complaint = _resolve(doctored, "3.12", "x86_64")
    assert not complaint
    assert set(needed) - set(_pins(doctored.read_text(), "3.12", "x86_64")) == {"nvidia-cublas"}

    for wrong, named in ((r"nvidia-cudnn-cu13==9.1.0.70", "nvidia-cudnn-cu13"), (r"megatron-core==0.4.0", "megatron-core")):
        doctored.write_text(re.sub(rf"^{named}==\S+", wrong, text, flags=re.M))
        needed, complaint = _resolve(doctored, "3.12", "x86_64")
        assert not needed
        assert named in complaint
