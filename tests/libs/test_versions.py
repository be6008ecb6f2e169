"""Other versions of what the numbers come from: said where nobody tried them, one line where they do not work."""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from nemotron_dpo import versions
from nemotron_dpo.errors import UserError
from support import programs

ROOT = Path(__file__).resolve().parents[2]
LIBS = ROOT / "libs" / "nemotron_dpo"
Pretend = Callable[..., Path]


@pytest.fixture
def pretend(tmp_path: Path) -> Pretend:
    """A folder for PYTHONPATH in which packages have these versions, as their installers note them."""

    def write(**said: str) -> Path:
        for name, version in said.items():
            noted = tmp_path / f"{name}-{version}.dist-info"
            noted.mkdir()
            (noted / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        return tmp_path

    return write


VERSIONS = [
    ({"torch": "2.11.0a0+gitabc", "megatron_core": "0.16.0"}, []),
    ({"torch": "2.15.0+cpu", "megatron_core": "0.19.9"}, []),
    ({"torch": "2.10.2", "megatron_core": "0.15.3"}, ["torch 2.10.2", "megatron-core 0.15.3"]),
    ({"torch": "3.0.0", "megatron_core": "0.20.0rc1"}, ["torch 3.0.0", "megatron-core 0.20.0rc1"]),
]


def test_versions_that_nobody_tried_are_said(pretend: Pretend, monkeypatch: pytest.MonkeyPatch):
    tried = {"torch": "2.11 to 2.15", "megatron-core": "0.16 to 0.19"}
    for number, (said, named) in enumerate(VERSIONS):
        folder = pretend(**said).rename(pretend().with_name(f"case-{number}"))
        pretend().mkdir()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            assert versions.untried() == [f"{what} was not tried: {tried[what.split()[0]]} were" for what in named]


def test_the_ranges_are_those_of_the_metadata():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {"torch>=2.11", "megatron-core>=0.16,<0.20"} <= set(required)
    assert {name: (tried.first, tried.last) for name, tried in versions.TRIED.items()} == {
        "torch": ((2, 11), (2, 15)),
        "megatron-core": ((0, 16), (0, 19)),
    }


def _export(policy: Path, folder: Path, output: Path) -> tuple[int, list[str]]:
    env = {**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    done = programs.run("ckpt-export", policy, "-o", output, "--to", "megatron", env=env)
    return done.returncode, done.stderr.decode().splitlines()


FOUND_FIRST = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_program_says_so_and_goes_on(llama: Path, pretend: Pretend, tmp_path: Path):
    """It is a fork: versions are looked up as it runs, and so the folder is put first then."""
    (tmp_path / "found_first.py").write_text(FOUND_FIRST)
    _, *export = programs.command("ckpt-export", llama, "-o", tmp_path / "out", "--to", "megatron")
    folder = pretend(megatron_core="0.15.3")
    done = programs.execute([sys.executable, str(tmp_path / "found_first.py"), str(folder), *export])
    said = done.stderr.decode().splitlines()
    assert done.returncode == 0, said
    assert said[0] == "ckpt-export: warning: megatron-core 0.15.3 was not tried: 0.16 to 0.19 were"
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").is_file()


def test_one_that_lacks_what_we_import_is_one_line(llama: Path, pretend: Pretend, tmp_path: Path):
    folder = pretend(megatron_core="0.15.3")
    (folder / "megatron" / "core").mkdir(parents=True)
    (folder / "megatron" / "core" / "__init__.py").touch()
    status, said = _export(llama, folder, tmp_path / "out")
    assert status == 1
    assert len(said) == 2
    assert said[1].startswith("ckpt-export: error: ImportError: cannot import name 'parallel_state' from 'megatron.core'")
    assert said[1].endswith("(megatron-core 0.15.3 was not tried: 0.16 to 0.19 were)")
    assert not (tmp_path / "out").exists()


def test_megatron_core_without_the_triton_it_imports(pretend: Pretend, monkeypatch: pytest.MonkeyPatch):
    from nemotron_dpo.policy import device

    monkeypatch.setattr(device, "_redirected", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else object())
    monkeypatch.syspath_prepend(pretend(megatron_core="0.18.2"))
    with pytest.raises(UserError, match="2 does not work without triton: install triton, or megatron-core before 0"):
        device.redirect()


def test_a_name_that_is_gone_is_not_overwritten(megatron: None, monkeypatch: pytest.MonkeyPatch):
    from megatron.core.tensor_parallel import random

    from nemotron_dpo.policy import patches

    monkeypatch.delattr(random, "_get_cuda_rng_state")
    where = "megatron.core.tensor_parallel.random"
    with pytest.raises(UserError, match=rf"has no {where}\._get_cuda_rng_state") as refused:
        patches.overwrite(f"{where}:_get_cuda_rng_state", None)
    assert refused.value.remedy == "install megatron-core 0.16 to 0.19"
    assert not hasattr(random, "_get_cuda_rng_state")


def _foreign(nodes: Iterable[ast.AST]) -> set[str]:
    """The names under which a module has what is torch's or megatron-core's."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                source = alias.name if isinstance(node, ast.Import) else node.module or ""
                if source.split(".")[0] in ("torch", "megatron"):
                    names.add((alias.asname or alias.name).split(".")[0])
    return names


def _changed(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, ast.expr]]:
    """(line, x) for every `x.name = ...` and `setattr(x, ...)`."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            yield from ((node.lineno, target.value) for target in node.targets if isinstance(target, ast.Attribute))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            yield node.lineno, node.args[0]


def test_nothing_foreign_is_overwritten_unseen():
    for path in sorted(LIBS.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        foreign = _foreign(nodes)
        for line, owner in _changed(nodes):
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            assert not (isinstance(owner, ast.Name) and owner.id in foreign), f"{path}:{line}: by patches.overwrite"
