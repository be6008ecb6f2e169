"""A converted checkpoint to damage: converted once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def converted(megatron: None, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the small Llama as a checkpoint_megatron; not to be changed."""
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.sources import resolve

    root = tmp_path_factory.mktemp("converted") / "megatron"
    export(resolve(llama), root, "megatron", None)
    return root


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    """The iteration folder of a copy that the test may change."""
    shutil.copytree(converted, tmp_path / "megatron")
    return tmp_path / "megatron" / "iter_0000000"
