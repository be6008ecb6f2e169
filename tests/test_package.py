"""The program outside a checkout: as a wheel and as an sdist, in a virtual environment and a folder of its own."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import nemotron_dpo
from support import forks
from support.kept_kernels import with_kernels

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# what an sdist has besides the wheel's files: all that a clone needs to test, change and release
SOURCE = (
    ".ci/run",
    ".editorconfig",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Justfile",
    "LICENSE",
    "README.md",
    "configs/README.md",
    "configs/pins.txt",
    "libs/nemotron_dpo/py.typed",
    "libs/nemotron_dpo/steps/README.md",
    "pipelines/setup.sh",
    "tests/test_package.py",
)
# what a program finds: the places that it imports from, and the files that it has imported
LOADED = """
import sys, nemotron_dpo, dpo_train
loaded = [module for name, module in sys.modules.items() if name not in ("__main__", "__mp_main__")]
print(*sys.path[1:], *(place for module in loaded if (place := getattr(module, "__file__", None))), sep="\\n")
"""
SHIPPED = "nemotron_dpo/steps/configs/"  # where a wheel has `configs`


def _called(*argv: object, **options: object) -> str:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload] - options are those of the call
    assert done.returncode == 0, done.stderr
    return done.stdout


def _build(source: Path, kind: str, target: Path) -> Path:
    _called(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target, cwd=source)
    return next(target.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def _environment(place: Path) -> Path:
    """A virtual environment that has what ours is built on (a path in a .pth adds no .pth of its own), but not ours."""
    _called(sys.executable, "-m", "venv", "--without-pip", place)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(ROOT, "wheel", tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment that the wheel was installed into."""
    place = _environment(tmp_path_factory.mktemp("elsewhere") / "venv")
    pip = (place / "bin" / "python", "-m", "pip")  # the others' pip
    _called(*pip, "install", "--no-index", "--quiet", wheel)  # with dependencies: what is there must be in the ranges
    return place / "bin"


def _shell(installed: Path, folder: Path) -> dict[str, str]:
    """A shell that knows nothing of the checkout."""
    kept = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "LANG", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    known = {name: os.environ[name] for name in kept if name in os.environ}
    return {**known, "PATH": f"{installed}:/usr/bin:/bin", "HOME": str(folder)}


def _forked(installed: Path, home: Path, folder: Path, *argv: object) -> str:
    """What `argv` says there, as a fork of a Python of that virtual environment, as is what it starts of the programs."""
    env, words = _shell(installed, home), [*map(str, argv)]
    python = forks.Python(str(installed / "python"), (("HOME", str(installed.parent)), ("PATH", env["PATH"])))
    if not forks.can_fork(env, python):
        return _called(*words, env=env, cwd=folder)
    done = forks.run(words, env=env, cwd=folder, python=python)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _fine_tune_briefly(configs: Path) -> None:
    """The recipe of a wheel's tiny policy takes 2 steps, not 40: test_nemotron_steps has the numbers of all."""
    recipe = configs / "rl/nemo_rl/dpo/tiny_sft/sft.yaml"
    before = recipe.read_text()
    assert "max_num_steps: 40\n" in before
    recipe.write_text(before.replace("max_num_steps: 40\n", "max_num_steps: 2\n").replace("warmup_steps: 5", "warmup_steps: 0"))


def _files(folder: str) -> set[str]:
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in paths}


def test_a_wheel_has_the_program_and_its_configs_and_nothing_else(wheel: Path):
    configs = {path.removeprefix("configs/") for path in _files("configs") if "/pins" not in path}
    code = {path.split("/", 1)[1] for path in _files("libs") | _files("bin")}
    configs, code = ({path for path in paths if not path.endswith("README.md")} for paths in (configs, code))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == code | {SHIPPED + name for name in configs}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {
        "nemotron_dpo/py.typed",
        "nemotron_dpo/kernels/c/attention.c",
        f"{SHIPPED}rl/nemo_rl/dpo/data/train.jsonl",
    } <= set(names)


@pytest.mark.slow
def test_an_sdist_has_the_tests_too_and_makes_the_same_wheel(wheel: Path, tmp_path: Path):
    with tarfile.open(_build(ROOT, "sdist", tmp_path)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(tmp_path)
    source = next(path for path in tmp_path.iterdir() if path.is_dir())
    for name in SOURCE:
        assert (source / name).read_bytes() == (ROOT / name).read_bytes()
    assert _build(source, "wheel", tmp_path / "dist").read_bytes() == wheel.read_bytes()


def test_metadata_says_what_pyproject_says(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        said = email.message_from_bytes(archive.read(name))
    assert (said["Version"], said["Requires-Python"]) == (nemotron_dpo.__version__, PROJECT["requires-python"])
    assert said["License-Expression"] == "Apache-2.0"
    assert set(said.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_programs_have_their_manuals_and_find_their_configs(installed: Path, tmp_path: Path):
    env = _shell(installed, tmp_path)
    for program in PROJECT["scripts"]:
        assert f"Usage: {program} " in _called(installed / program, "--help", env=env, cwd=tmp_path)
        assert f"Usage: {program} " in _forked(installed, tmp_path, tmp_path, installed / program, "-h")
    assert _called("nemotron", "steps", "list", env=env, cwd=tmp_path) == _called(
        "nemotron-steps", "list", env=env, cwd=tmp_path
    )
    listed = _called("nemotron-steps", "list", env=env, cwd=tmp_path)
    steps = {str(Path(path).parent.relative_to("configs")) for path in _files("configs") if path.endswith("step.toml")}
    assert {line.split()[0] for line in listed.splitlines()[1:]} == steps
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tiny_run_from_an_empty_folder(installed: Path, tmp_path: Path):
    home, folder, others = tmp_path / "home", tmp_path / "work", sysconfig.get_path("purelib")
    with_kernels(home / ".cache")  # what the wheel has of their sources is compared above
    folder.mkdir()
    (tmp_path / "loaded.py").write_text(LOADED)
    loaded = _forked(installed, home, folder, installed / "python", tmp_path / "loaded.py").splitlines()
    own = next(installed.parent.glob("lib/python*/site-packages"))
    assert {own / "nemotron_dpo" / "__init__.py", own / "dpo_train.py"} <= {*map(Path, loaded)}
    assert not [place for place in loaded if Path(place).is_relative_to(ROOT) and not place.startswith(others)]
    _fine_tune_briefly(own / SHIPPED)
    small = ("dpo.max_num_steps=2", "dpo.val_period=2", "data.train.limit=32", "data.validation.limit=32")
    said = _forked(installed, home, folder, installed / "nemotron-steps", "run", "rl/nemo_rl/dpo", "-c", "tiny", *small)
    assert (loss := re.search(r"^loss +0\.6931 +(0\.\d{4})$", said, re.M))
    assert 0.5 < float(loss[1]) < 0.69
    assert [path.name for path in folder.iterdir()] == [".nemotron"]
    assert {path.name for path in home.iterdir()} == {".cache"}
    job = next((folder / ".nemotron" / "jobs").iterdir())
    assert (job / "checkpoint_megatron" / "latest_checkpointed_iteration.txt").is_file()
    assert str(ROOT) not in (job / "job.yaml").read_text().replace(others, "")
