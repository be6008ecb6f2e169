"""Which build of torch a machine gets: by what was asked for, what the machine has, and what the indexes offer."""

from __future__ import annotations

import pytest
from pipelines.torch_build import CPU_INDEX, Machine, choose

CPU, CUDA, ANY = "torch==2.13.0+cpu", "torch==2.13.0,!=2.13.0+cpu", "torch==2.13.0"
PLAIN, BOTH = {"2.12.0", "2.13.0"}, {"2.13.0", "2.13.0+cpu"}
FROM_CPU_INDEX = ("--index-url", CPU_INDEX)


def _machine(
    pip: set[str],
    torch: set[str] | None = None,
    *,
    gpu: bool = False,
    slurm: bool = False,
    linux: bool = True,
    own: bool = False,
) -> Machine:
    """`pip` are the versions in pip's own sources, `torch` those in torch's index: None where asking it is an error."""

    def versions(*options: str) -> set[str]:
        if not options:
            return pip
        assert options[:2] == FROM_CPU_INDEX
        assert torch is not None, "torch's index was asked"
        return torch

    def own_index() -> bool:
        assert pip != BOTH, "pip's settings were asked for, which takes a start of pip"
        return own

    return Machine(has_gpu=gpu, has_slurm=slurm, on_linux=linux, own_index=own_index, versions=versions)


# asked, machine, what pip is told: requirement and options
CHOICES = {
    "a laptop, public index": ("auto", _machine(PLAIN, {"2.13.0+cpu"}), CPU, FROM_CPU_INDEX),
    "a laptop, the build in pip's own sources": ("auto", _machine(BOTH), CPU, ()),
    "a laptop, torch's index has another version": ("auto", _machine(PLAIN, {"2.12.0+cpu"}), ANY, ()),
    "a laptop, torch's index out of reach": ("auto", _machine(PLAIN, set()), ANY, ()),
    "a private index is not gone around": ("auto", _machine(PLAIN, own=True), ANY, ()),
    "a GPU, although pip would prefer +cpu": ("auto", _machine(BOTH, gpu=True), CUDA, ()),
    "a login node of Slurm": ("auto", _machine(BOTH, slurm=True), ANY, ()),
    "a Mac": ("auto", _machine(PLAIN, linux=False), ANY, ()),
    "cuda on a laptop": ("cuda", _machine(BOTH), CUDA, ()),
    "cpu where there is a GPU": ("cpu", _machine(PLAIN, {"2.13.0+cpu"}, gpu=True, slurm=True), CPU, FROM_CPU_INDEX),
    "cpu on a Mac": ("cpu", _machine(PLAIN, linux=False), ANY, ()),
    "an index by name": ("https://a/cu126", _machine(PLAIN, gpu=True), ANY, ("--index-url", "https://a/cu126")),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choice(case: str):
    asked, machine, requirement, options = CHOICES[case]
    build = choose(asked, "2.13.0", machine)
    assert (build.requirement, build.options) == (requirement, options)
    assert build.why


def test_only_what_is_surely_small_is_called_so():
    small = {case for case, (asked, machine, *_) in CHOICES.items() if choose(asked, "2.13.0", machine).small}
    assert small == {
        case for case, (_, machine, requirement, _) in CHOICES.items() if requirement == CPU or not machine.on_linux
    }


@pytest.mark.parametrize(
    ("asked", "machine", "message"),
    [
        ("cpu", _machine(PLAIN, set()), "neither from pip's index nor from https://download.pytorch.org/whl/cpu"),
        ("cpu", _machine(PLAIN, own=True), "neither from pip's index"),
        ("cuda", _machine(PLAIN, linux=False), "Linux"),
    ],
)
def test_what_cannot_be_had_is_an_error(asked: str, machine: Machine, message: str):
    with pytest.raises(LookupError, match=message):
        choose(asked, "2.13.0", machine)
