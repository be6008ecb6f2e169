"""Run pip so that a person sees what it does: bytes fetched while it goes, one line where it fails, all it said in a log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

MB = 1e6
_UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_FILE = re.compile(
    r"\s*(?:Downloading|Using cached) (?:\S*/)?(\S+?)(?:-[^- ]+)*\.whl(?:\.metadata)? \(([\d.]+) (bytes|kB|MB|GB)\)",
)
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)$")
# Settings of pip that would put packages elsewhere than into this environment, or change what is read here.
_UNSET = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_NO_DEPS", "PIP_DRY_RUN", "PIP_REPORT", "PIP_QUIET", "PIP_VERBOSE")


class PipFailed(Exception):
    """pip did not do what it was asked for; the message is its own word on it."""


@dataclass
class Progress:
    """What is being done: bytes of finished files and of the one under way, then the number of packages to install.

    On a terminal one line is written over and over; elsewhere there is one in half a minute.
    """

    total_mb: float = 0  # of all that is to be fetched, 0 while that is not known
    stream: TextIO = sys.stderr
    done_bytes: float = 0
    current_bytes: float = 0
    doing: str = "asking the package index"
    started: float = field(default_factory=time.monotonic)
    shown_at: float = field(default_factory=time.monotonic)

    def read(self, line: str) -> None:
        """Take in one line of pip's."""
        if match := _PROGRESS.match(line):
            self.current_bytes = int(match[1])
        elif (match := _FILE.match(line)) and ".metadata" not in line:
            self.done_bytes += self.current_bytes
            self.doing, self.current_bytes = f"fetching {match[1]}", 0
            if "Using cached" in line:
                self.current_bytes = float(match[2]) * _UNITS[match[3]]
        elif match := re.match(r"Installing collected packages: (.*)", line):
            names = match[1].split(", ")
            self.doing = f"installing {f'{len(names)} packages' if len(names) > 1 else names[0]}"

    def show(self) -> None:
        """Say where it stands, where enough time has passed since that was last said."""
        now, on_terminal = time.monotonic(), self.stream.isatty()
        if now - self.shown_at < (0.2 if on_terminal else 30):
            return
        self.shown_at = now
        mb = (self.done_bytes + self.current_bytes) / MB
        fetched = f"{mb:.0f} of about {max(self.total_mb, mb):.0f} MB, " if self.total_mb else ""
        text = f"setup: {now - self.started:4.0f} s, {fetched}{self.doing}"
        print(f"\r\x1b[K{text[:100]}" if on_terminal else text, end="" if on_terminal else "\n", file=self.stream, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the block it is shown again and again, also while pip says nothing."""
        over = threading.Event()

        def tick() -> None:
            while not over.wait(0.25):
                self.show()

        ticker = threading.Thread(target=tick)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()
            if self.stream.isatty():
                print("\r\x1b[K", end="", file=self.stream, flush=True)


def environment(scratch: Path) -> dict[str, str]:
    """The variables that pip runs under: a person's index, proxy and certificates count, their other habits do not.

    `scratch` takes what is being fetched, unless TMPDIR says otherwise: /tmp may be a small piece of memory. It is also the
    home of who has none, as in some containers, where pip would fail.
    """
    scratch.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    own = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    if "TMPDIR" not in kept:
        own["TMPDIR"] = str(scratch)
    if os.path.expanduser("~") == "~":
        own["HOME"] = str(scratch)
    return kept | own


def run(pip: list[str], *arguments: str, log: TextIO, progress: Progress, keep_open: tuple[int, ...], scratch: Path) -> None:
    """`pip ARGUMENTS`, saying to `log` what it says; descriptors of `keep_open` live as long as it. Raises `PipFailed`."""
    print("$", *pip, *arguments, file=log, flush=True)
    said: list[str] = []
    into_pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    as_text = {"text": True, "encoding": "utf-8", "errors": "replace"}
    env = environment(scratch)
    with (
        progress.shown(),
        subprocess.Popen([*pip, *arguments], env=env, pass_fds=keep_open, **into_pipe, **as_text) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if _PROGRESS.match(line) is None:
                    print(line, end="", file=log, flush=True)
                    said.append(line.strip())
                progress.read(line.rstrip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise PipFailed(_problem(said) or f"pip ended with exit status {process.returncode}")


def _problem(said: list[str]) -> str:
    """pip's error in one line; where the network failed it, which pip goes on to call a missing package, that comes first."""
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR:") and "ResolutionImpossible" not in line]
    nothing_there = [line for line in errors if "(from versions: none)" in line]
    unreachable = [match[1] for line in said if (match := re.search(r"after connection broken by '(.*)':", line))]
    parts = [f"the package index could not be reached: {unreachable[-1]}"] if unreachable else []
    text = "; ".join([*parts, *(nothing_there or errors)[-1:], *_causes(said)])
    return text or next((line for line in reversed(said) if line), "")


def _causes(said: list[str]) -> list[str]:
    """Who wanted what, where pip found a conflict."""
    if "The conflict is caused by:" not in said:
        return []
    after = said[said.index("The conflict is caused by:") + 1 :]
    return after[: after.index("")] if "" in after else after
