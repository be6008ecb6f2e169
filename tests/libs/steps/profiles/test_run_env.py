"""Which of a config's run.env and a profile counts, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dpo.config import RunEnv, load_run_env
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.profiles.profile import Profile
from nemotron_dpo.steps.profiles.run_env import with_run_env


def merged(own: dict[str, Any], theirs: dict[str, Any], *typed: str, executor: str = "slurm") -> Profile:
    profile = Profile("p", executor, dict(theirs.get("env_vars", {})), theirs, Path("env.toml"))
    return with_run_env(profile, RunEnv(own, {key: f"own.yaml:{key}" for key in own}, frozenset(typed)))


# own, theirs, keys that were typed, what counts
CASES = [
    ({"time": "1"}, {}, (), {"time": "1"}),
    ({"time": "1"}, {"time": "2"}, (), {"time": "2"}),
    ({"time": "1"}, {"time": "2"}, ("time",), {"time": "1"}),
    *(({key: 1}, {key: 2}, (), {key: 1}) for key in ("container_image", "nodes", "gpus_per_node", "ntasks_per_node")),
    ({"nproc_per_node": 1}, {"nproc_per_node": 2, "gpus_per_node": 4}, (), {"nproc_per_node": 1, "gpus_per_node": 4}),
    ({"nodes": "3", "account": "007"}, {}, (), {"nodes": 3, "account": "007"}),
    ({"mounts": ["a"]}, {"mounts": ["b"]}, (), {"mounts": ["a", "b"]}),
    ({"mounts": ["a"]}, {"mounts": ["b"]}, ("mounts",), {"mounts": ["a"]}),
    ({"env_vars": {"A": 1, "B": 1}}, {"env_vars": {"B": 2, "C": 2}}, (), {"env_vars": {"A": 1, "B": 2, "C": 2}}),
    ({"env_vars": {"A": 1}}, {"env_vars": {"A": 2}}, ("env_vars.A",), {"env_vars": {"A": 1}}),
]


@pytest.mark.parametrize(("own", "theirs", "typed", "counts"), CASES)
def test_what_counts(own: dict[str, Any], theirs: dict[str, Any], typed: tuple[str, ...], counts: dict[str, Any]):
    made = merged(own, theirs, *typed)
    assert made.settings == counts
    assert made.env_vars == {key: str(value) for key, value in counts.get("env_vars", {}).items()}


# executor, own, theirs -> how many processes a node runs
SIZES = [
    ("local", {"gpus_per_node": 1}, {"nproc_per_node": 2}, 1),
    ("local", {"gpus_per_node": 8, "nproc_per_node": 4}, {"nproc_per_node": 2}, 4),
    ("slurm", {"gpus_per_node": 1}, {"ntasks_per_node": 2}, 1),
    ("slurm", {"ntasks_per_node": 1}, {"gpus_per_node": 8}, 8),
    *(("lepton", own, {"nprocs_per_node": 8, "gpus_per_node": 8}, 2) for own in ({"gpus_per_node": 2}, {"nproc_per_node": 2})),
    ("lepton", {"nprocs_per_node": 2}, {"nprocs_per_node": 8}, 8),
    ("dgxcloud", {"gpus_per_node": 2}, {"nproc_per_node": 8}, 2),
    ("dgxcloud", {"nprocs_per_node": 2}, {"gpus_per_node": 8}, 2),
    ("dgxcloud", {}, {"nprocs_per_node": 2, "nproc_per_node": 4, "gpus_per_node": 8}, 2),
]


@pytest.mark.parametrize(("executor", "own", "theirs", "num_processes"), SIZES)
def test_how_many_processes(executor: str, own: dict[str, Any], theirs: dict[str, Any], num_processes: int):
    assert merged(own, theirs, executor=executor).cluster() == {"cluster": {"gpus_per_node": num_processes}}


REFUSED = [
    ({"acount": 1}, 'own.yaml:acount: "run.env.acount" is no known key: did you mean account?'),
    ({"executor": "local"}, 'own.yaml:executor: "run.env.executor" is a profile\'s to say: give -r or -b PROFILE'),
    ({"env_vars": "x"}, 'own.yaml:env_vars: "run.env.env_vars" is no table'),
    ({"time": 36000}, 'own.yaml:time: "run.env.time" is a number to YAML: quote it: "HH:MM:SS"'),
    ({"mounts": "x"}, 'own.yaml:mounts: "run.env.mounts" is no list'),
]


@pytest.mark.parametrize(("own", "line"), REFUSED)
def test_what_is_refused(own: dict[str, Any], line: str):
    with pytest.raises(UserError) as refused:
        merged(own, {"mounts": ["/a:/a"]})
    assert str(refused.value) == line


def test_layers_of_a_config(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("run:\n  env:\n    nodes: 1\n    env_vars: {A: base}\n")
    (tmp_path / "own.yaml").write_text("defaults: base.yaml\nrun:\n  env:\n    time: '${oc.env:NO_SUCH_TIME,9}'\n")
    given_ = load_run_env(tmp_path / "own.yaml", ["run.env.nodes=2", "dpo.seed=1"])
    assert given_.settings == {"nodes": 2, "env_vars": {"A": "base"}, "time": "9"}
    assert given_.typed == {"nodes"}
    places = {key: place.removeprefix(f"{tmp_path}/") for key, place in given_.origins.items()}
    assert places == {"nodes": "run.env.nodes=2", "env_vars.A": "base.yaml:4", "time": "own.yaml:4"}
    assert load_run_env(None, ["dpo.seed=1"]) == RunEnv()


_TABLES = st.fixed_dictionaries({}, optional={key: st.sampled_from("xyz") for key in ("account", "time", "nodes", "partition")})


@given(_TABLES, _TABLES, st.sets(st.sampled_from(["account", "time", "nodes", "partition"])))
def test_overrides_win_over_the_profile_over_the_config(own: dict[str, str], theirs: dict[str, str], typed: set[str]):
    below = {key: value for key, value in own.items() if key not in typed and key != "nodes"}
    above = {key: value for key, value in own.items() if key in typed or key == "nodes"}
    assert merged(own, theirs, *typed).settings == {**below, **theirs, **above}
