"""Pipes under the names of a policy's files: each reader names them, none waits for what is never written."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemotron_dpo import file_digests, hf_folder
from nemotron_dpo.checkpoint import adapters, run_config
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import ModelSource, resolve, resolve_adapters
from nemotron_dpo.weights_file import opened

READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("config.json", resolve),
    ("config.json", lambda folder: resolve_adapters(folder, None)),
    ("adapter_config.json", lambda folder: resolve_adapters(folder, None)),
    (hf_folder.SINGLE, hf_folder.weight_files),
    (hf_folder.INDEX, hf_folder.weight_files),
    ("adapter_model.safetensors", lambda folder: opened(folder / "adapter_model.safetensors", "pt")),
    (file_digests.NAME, file_digests.listed),
    (run_config.NAME, run_config.read),
    (run_config.NAME, lambda folder: adapters.read(ModelSource("megatron", folder, str(folder)))),
]


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A reader that waits ends in an error."""

    def ring(*_: object) -> None:
        raise TimeoutError

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_pipe_is_named_and_not_waited_for(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path / name}: is a named pipe where a file is due"
