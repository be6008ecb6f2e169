"""Profiles: inheritance, what is refused, and where env.toml is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.profile import load_profile

ENV = """
[wandb]
entity = "me"
[base]
executor = "local"
nproc_per_node = 2
env_vars = {A = "1", B = "2"}
mounts = ["/a:/a"]
[child]
extends = "base"
env_vars = {B = "3"}
mounts = ["/b:/b"]
nodes = 3
[cluster]
executor = "slurm"
[strange]
executor = "cloud"
[loop]
extends = "loop2"
[loop2]
extends = "loop"
[orphan]
extends = "nobody"
"""


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "env.toml"
    path.write_text(ENV)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(path))
    return path


def test_child_extends_parent(env_file: Path):
    profile = load_profile("child")
    assert profile.executor == "local"
    assert profile.env_vars == {"A": "1", "B": "3"}
    assert profile.settings["mounts"] == ["/a:/a", "/b:/b"]
    assert profile.cluster() == {"cluster": {"gpus_per_node": 2, "num_nodes": 3}}
    assert profile.idle_keys() == ["mounts"]


def test_no_profile_is_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEMOTRON_ENV_FILE", "/nowhere/env.toml")
    profile = load_profile(None)
    assert (profile.executor, profile.env_vars, profile.cluster()) == ("local", {}, {})


REFUSED = [
    ("chidl", "no profile chidl: did you mean child?"),
    ("wandb", "no profile wandb: it has base, child, cluster, strange, loop, loop2, orphan"),
    ("strange", "\"executor\" profile strange: is 'cloud' where local, slurm, lepton, dgxcloud is due"),
    ("loop", "profile loop extends itself (loop -> loop2 -> loop)"),
    ("orphan", "no profile nobody, which orphan extends: it has base, child, cluster, strange, loop, loop2, orphan"),
]


@pytest.mark.parametrize(("name", "line"), REFUSED)
def test_refused_profiles(env_file: Path, name: str, line: str):
    with pytest.raises(UserError) as caught:
        load_profile(name)
    assert str(caught.value) == f"{env_file}: {line}"


def test_env_file_is_found_up_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    (tmp_path / "env.toml").write_text('[here]\nexecutor = "local"\n')
    project = tmp_path / "project"
    (project / "deep").mkdir(parents=True)
    monkeypatch.chdir(project / "deep")
    assert load_profile("here").source == tmp_path / "env.toml"
    (project / "pyproject.toml").write_text("")
    with pytest.raises(UserError, match=r"no env\.toml from here up to the folder with pyproject\.toml"):
        load_profile("here")


def test_broken_and_missing_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "env.toml"
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(path))
    with pytest.raises(UserError, match="no such file: NEMOTRON_ENV_FILE names it"):
        load_profile("x")
    path.write_text("[x\n")
    with pytest.raises(UserError, match="is not TOML"):
        load_profile("x")
