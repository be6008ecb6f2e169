"""The parts of a plan: stages in order, each with its command, its inputs and its outputs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from nemotron_dpo.steps.compile.programs import executable
from nemotron_dpo.steps.compile.tiny_sft import Prelude


@dataclass(frozen=True)
class Input:
    """One thing that a command reads: data, a tokenizer, a policy, one file, or the output of an earlier stage.

    For data, `split` and `subset` say which part of it is read.
    """

    kind: Literal["data", "tokenizer", "policy", "file", "stage"]
    name: str
    split: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class Length:
    """How long a stage trains at most. `settings` is its config as text without that, and without what is saved and logged."""

    num_steps: int
    num_epochs: int
    settings: str


@dataclass(frozen=True)
class Stage:
    """One command; `env` is added to the environment.

    `inputs` maps each word of `argv` that names something to read to what it names. `outputs` are the files or folders that
    the command makes. The inputs and the other words of `argv` decide whether the stage is up to date. A stage without outputs
    never is. The first `num_launcher_words` words of `argv` only start processes, and do not count. A stage that `resumes` goes
    on from what an interrupted run left in its output folder. A stage that `may_stop_early` can exit 0 before its work is
    done, so it is never up to date. One with a `length` can go on from what a shorter one of the same settings made.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    outputs: tuple[Path, ...] = ()
    num_launcher_words: int = 0
    resumes: bool = False
    may_stop_early: bool = False
    length: Length | None = None

    @property
    def program(self) -> str:
        """The name of the program: the first word of the stage's name."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True)
class Plan:
    """Stages in order. `files` (name -> text) are written into `job` before the stages run.

    `prelude` makes a policy that must be in the cache before the stages run. `artifacts` maps each type that the step produces
    to the path where it will lie. `num_processes` counts the processes of a stage that runs a model, over all nodes.
    `notes` say to a person what may surprise in the stages.
    """

    job: Path
    run_dir: Path
    export_dir: Path | None
    files: Mapping[str, str]
    prelude: Prelude | None
    stages: tuple[Stage, ...]
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    num_processes: int = 1
    notes: tuple[str, ...] = ()


def launched(stage: Stage, num_processes: int) -> Stage:
    """`stage` with the path of its program. Several processes run under torchrun and share this machine's cores evenly."""
    argv = (executable(stage.argv[0]), *stage.argv[1:])
    if num_processes == 1:
        return replace(stage, argv=argv)
    launcher = (executable("dpo-torchrun"), *_ON_LOOPBACK[_has_ipv4()], "--nproc-per-node", str(num_processes), "--no-python")
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    return replace(stage, argv=launcher + argv, env={"OMP_NUM_THREADS": threads}, num_launcher_words=len(launcher))


# Loopback has IPv4 -> options. Without them torchrun gives the processes this machine's host name, which may not resolve.
_ON_LOOPBACK = {
    True: ("--standalone", "--local-addr", "127.0.0.1"),
    False: ("--rdzv-backend", "c10d", "--rdzv-endpoint", "[::1]:0", "--local-addr", "::1"),
}


def _has_ipv4() -> bool:
    """Whether the loopback interface of this machine has an IPv4 address."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return False
        return True
