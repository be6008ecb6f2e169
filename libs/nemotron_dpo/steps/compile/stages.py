"""What a plan is made of: stages in order, each with its command, what it reads and what it makes."""

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
    """One thing a command reads: data, a tokenizer, a policy, one file, or what a stage before made.

    `split` and `subset` say what of data is read.
    """

    kind: Literal["data", "tokenizer", "policy", "file", "stage"]
    name: str
    split: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class Stage:
    """One command; `env` is added to the environment.

    `inputs` says what the words of `argv` that name something to read stand for, `outputs` are the files or folders it makes;
    together with the other words they decide whether it is up to date. Without outputs it never is. The first
    `num_launcher_words` only start processes. One that `resumes` goes on from what an interrupted run left in its output
    folder; one that `may_stop_early` ends well without being done, so it is never up to date.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    outputs: tuple[Path, ...] = ()
    num_launcher_words: int = 0
    resumes: bool = False
    may_stop_early: bool = False

    @property
    def program(self) -> str:
        """The part of its name that is the program."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True)
class Plan:
    """Stages in order, after `prelude` (what must be in the cache); `files` are written into `job` before them.

    `artifacts` maps the types that the step produces to where they will lie.
    """

    job: Path
    run_dir: Path
    export_dir: Path | None
    files: Mapping[str, str]
    prelude: Prelude | None
    stages: tuple[Stage, ...]
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    num_processes: int = 1


def launched(stage: Stage, num_processes: int) -> Stage:
    """`stage`, its program where it lies; several processes run under torchrun and share this machine's cores."""
    argv = (executable(stage.argv[0]), *stage.argv[1:])
    if num_processes == 1:
        return replace(stage, argv=argv)
    launcher = (executable("torchrun"), *_ON_LOOPBACK[_has_ipv4()], "--nproc-per-node", str(num_processes), "--no-python")
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    return replace(stage, argv=launcher + argv, env={"OMP_NUM_THREADS": threads}, num_launcher_words=len(launcher))


# torchrun would give its machine's host name to the processes, and that need not resolve.
_ON_LOOPBACK = {
    True: ("--standalone", "--local-addr", "127.0.0.1"),
    False: ("--rdzv-backend", "c10d", "--rdzv-endpoint", "[::1]:0", "--local-addr", "::1"),
}


def _has_ipv4() -> bool:
    """Whether this machine's loopback interface has an address of IPv4."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return False
        return True
