"""Profiles: inheritance, what is refused, and where env.toml is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.config import idle_keys, load_run
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.environment import local_environment
from nemotron_dpo.steps.profiles.env_file import load_profile
from nemotron_dpo.steps.profiles.profile import CheckedProfile

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
[loop]
extends = "loop2"
[loop2]
extends = "loop"
[orphan]
extends = "nobody"
[odd1]
env_vars = "word"
[odd2]
extends = "base"
env_vars = 3
[odd3]
extends = "base"
mounts = "/a:/a"
[odd4]
executor = "cloud"
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
    assert profile.idle_keys() == ("mounts",)


def test_no_profile_is_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEMOTRON_ENV_FILE", "/nowhere/env.toml")
    profile = load_profile(None)
    assert (profile.executor, profile.env_vars, profile.cluster()) == ("local", {}, {})


def test_a_size_that_is_no_number(env_file: Path):
    for key, value in ((key, value) for key in ("nodes", "nproc_per_node") for value in ('"two"', "0", "true", "1.5")):
        env_file.write_text(f"[it]\n{key} = {value}\n")
        with pytest.raises(UserError, match=rf'env\.toml: "{key}" profile it: is .* where a number of 1 or more is due'):
            load_profile("it").cluster()
    env_file.write_text("[it]\ngpus_per_node = 0\n")  # no GPUs, and so many processes as elsewhere is said
    assert load_profile("it").cluster() == {}


def test_a_key_that_no_executor_has(env_file: Path):
    env_file.write_text("[it]\nnproc_per_nod = 2\n")
    with pytest.raises(UserError, match=r'"nproc_per_nod" profile it: is no known key: did you mean nproc_per_node\?'):
        CheckedProfile(load_profile("it"))


REFUSED = [
    ("chidl", "no profile chidl: did you mean child?"),
    ("wandb", "no profile wandb: it has base, child, cluster, loop, loop2, orphan, odd1, odd2, odd3, odd4"),
    ("odd4", "\"executor\" profile odd4: is 'cloud' where local, slurm, lepton, dgxcloud is due"),
    ("odd1", '"env_vars" profile odd1: is no table'),
    ("odd2", '"env_vars" profile odd2: is no table'),
    ("odd3", '"mounts" profile odd3: is no list'),
    ("", "no profile (empty): it has base, child, cluster, loop, loop2, orphan, odd1, odd2, odd3, odd4"),
    ("loop", "profile loop extends itself (loop -> loop2 -> loop)"),
    (
        "orphan",
        "no profile nobody, which orphan extends: it has base, child, cluster, loop, loop2, orphan, odd1, odd2, odd3, odd4",
    ),
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


def test_wandb_goes_to_every_run_and_its_documented_keys_under_the_config(env_file: Path):
    for name in (None, "child"):
        profile = load_profile(name)
        assert profile.wandb == {"entity": "me"}
        assert profile.base()["run"] == {"wandb": {"entity": "me"}}
    env_file.write_text('[wandb]\nproject = "p"\napi_key = "secret"\nanonymous = true\n')
    profile = load_profile(None)
    assert profile.base() == {"run": {"wandb": {"project": "p"}}}  # a secret goes to the environment alone
    expected = {"WANDB_PROJECT": "p", "WANDB_API_KEY": "secret", "WANDB_ANONYMOUS": "true"}
    assert local_environment(profile) == expected
    for text, message in (
        ('wandb = "p"', '"wandb" is no table'),
        ("[wandb]\ntags = [1]", r'"wandb\.tags" is a table or a list'),
    ):
        env_file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_profile(None)


def test_nvidias_configs_take_the_project_of_env_toml(env_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Their logger.wandb.project asks run.wandb first, then the environment."""
    config = tmp_path / "theirs.yaml"
    config.write_text("policy: {model_name: '${oc.select:run.wandb.entity,${oc.env:WANDB_ENTITY,none}}'}\n")
    monkeypatch.setenv("WANDB_ENTITY", "environment")
    for overrides, expected in ([], "me"), (["run.wandb.entity=typed"], "typed"):
        run, _ = load_run(config, overrides, load_profile(None).base())
        assert run.policy.model_name == expected
    assert load_run(config, [], {})[0].policy.model_name == "environment"
    assert idle_keys(config, [], load_profile(None).base()) == []
    text = config.read_text()
    config.write_text(text + "run: {env: {container_image: i}}\n")
    assert idle_keys(config, [], load_profile(None).base(), with_run_env=True) == []
    config.write_text(text + "run: {wandb: {project: p}}\n")
    assert [key.key for key in idle_keys(config, [], load_profile(None).base())] == ["run.wandb"]
