"""Container images: their names for enroot and on disk. That they are imported is tested on a real Slurm, in tests/bin."""

from __future__ import annotations

import pytest

from nemotron_dpo.steps.executors.slurm.squash import squash_of

IMAGES = [
    ("nvcr.io/nvidia/nemo:25.11", "nvcr_io_nvidia_nemo_25_11", "docker://nvcr.io#nvidia/nemo:25.11"),
    ("nvcr.io#nvidia/nemo:25.11", "nvcr_io_nvidia_nemo_25_11", "docker://nvcr.io#nvidia/nemo:25.11"),
    ("localhost:5000/a", "localhost_5000_a", "docker://localhost:5000#a"),
    ("ubuntu", "ubuntu", "docker://ubuntu"),
    ("library/ubuntu:24.04", "library_ubuntu_24_04", "docker://library/ubuntu:24.04"),
    ("dockerd://local", "dockerd___local", "dockerd://local"),
]


@pytest.mark.parametrize(("image", "name", "source"), IMAGES)
def test_image_names(image: str, name: str, source: str):
    squash = squash_of(image, "/jobs")
    assert (squash.file, squash.source) == (f"/jobs/{name}.sqsh", source)


def test_a_squash_file_is_used_as_it_is():
    squash = squash_of("/images/nemo.sqsh", "/jobs")
    assert (squash.file, squash.source) == ("/images/nemo.sqsh", None)
