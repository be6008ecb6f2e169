"""What the tests of the programs start from; a Slurm cluster among it, once for all tests of a worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from support.followed import SECRET
from support.forking_python import forks_first
from support.kept_kernels import with_kernels
from support.slurm_cluster import Cluster, slurm_cluster
from support.slurm_runs import PROFILES

DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy with a tokenizer."""
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([DATA], folder)
    return folder


@pytest.fixture(scope="session")
def cache(everyones: Path) -> Path:
    """One cache for all workers of a test session."""
    return with_kernels(everyones / "cache")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster() as up:
        yield up


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with env.toml and the workspace of a login node, in an environment that finds the cluster."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / ".venv").symlink_to(sys.prefix)
    (workspace / "configs").symlink_to(configs_root())
    keys = {"key": cluster.key, "wrong_key": cluster.key.with_name("host_key")}
    (tmp_path / "env.toml").write_text(PROFILES.format(secret=SECRET, folder=tmp_path, **keys))
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forks_on_nodes(here: Path) -> Iterator[None]:
    """What jobs of the profiles `forked`, `two` and `split` run are forks; programs of the others start cold."""
    with forks_first(here / "forks"):
        yield


@pytest.fixture
def tokenize(policy: Path) -> list[str]:
    """A step of one quick stage."""
    return ["run", "data_prep/preference_tokenize", f"data.path={DATA}", f"tokenizer={policy}", "data.limit=4"]
