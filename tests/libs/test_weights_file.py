"""A weights file that cannot be opened: the reason is what stands there, or the system's."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nemotron_dpo.errors import UserError
from nemotron_dpo.weights_file import opened


def _refusal(path: Path, framework: str) -> str:
    with pytest.raises(UserError) as refused:
        opened(path, framework)
    return str(refused.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("framework", ["numpy", "pt"])
def test_the_reason_is_named(tmp_path: Path, framework: str) -> None:
    whole, loop, folder = tmp_path / "whole", tmp_path / "loop", tmp_path / "folder"
    save_file({"a": np.arange(3.0, dtype=np.float32)}, whole)
    with opened(whole, framework) as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]
    loop.symlink_to(loop)
    folder.mkdir()
    (tmp_path / "text").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert _refusal(tmp_path / "none", framework) == "is missing: is the download complete?"
    assert _refusal(loop, framework) == "is a link that leads nowhere: put a file there, or remove the link"
    assert _refusal(folder, framework) == "is a folder where a file is due"
    assert _refusal(tmp_path / "text", framework).startswith("cannot be read (")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.dup(0)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        said = _refusal(whole, framework)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said == "too many open files: raise the limit: ulimit -n"


def test_a_config_that_cannot_be_read_is_not_taken_for_one_that_says_nothing(tmp_path: Path) -> None:
    """It counts the layers that are not read, and says in which blocks weights of 8 bits were scaled."""
    from nemotron_dpo.checkpoint.hf_files import Weights
    from nemotron_dpo.hf_folder import is_unread

    save_file({"model.layers.2.a": np.arange(3.0, dtype=np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "num_nextn_predict_layers": 1}')
    assert is_unread(tmp_path)("model.layers.2.a")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    for read in (is_unread, Weights):
        with pytest.raises(OSError, match="symbolic links"):
            read(tmp_path)
