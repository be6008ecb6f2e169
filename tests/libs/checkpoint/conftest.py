"""A converted checkpoint to damage: converted once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.small_tokenizers import byte_level, save


@pytest.fixture(scope="session")
def converted(megatron: None, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the small Llama, with a tokenizer, as a checkpoint_megatron; not to be changed."""
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.sources import resolve

    root, source = tmp_path_factory.mktemp("converted") / "megatron", tmp_path_factory.mktemp("converted") / "hf"
    shutil.copytree(llama, source)
    save(source, byte_level(), eos_token="</s>")
    for name in ("chat_template", "additional_chat_templates/rag"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / f"{name}.jinja").write_text("{{ messages }}")
    export(resolve(source), root, "megatron", None)
    return root


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    """The iteration folder of a copy that the test may change."""
    shutil.copytree(converted, tmp_path / "megatron")
    return tmp_path / "megatron" / "iter_0000000"
