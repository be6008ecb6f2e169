"""Two hosts on one folder: a host name and process ids of their own, and the same files. Both write, or one dies of it.

What holds the folders is the lock of a file, which a file server keeps for all its hosts. These two share a kernel, which keeps it
in the same way; servers that keep none are tried in test_published.py and test_lock.py.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_dpo import locks, published
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.tiny_policy import write_policy
from nemotron_dpo.training.lock import only_run
from support.programs import command

ELSEWHERE = ("unshare", "--uts", "--pid", "--kill-child", "--mount-proc", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh")
WRITES = """
import sys
from pathlib import Path
from nemotron_dpo.published import published_file
with published_file(Path(sys.argv[1])) as file:
    file.write(b"theirs")
    print("begun", flush=True)
    sys.stdin.read()
"""
TRAINS = """
import sys
from pathlib import Path
from nemotron_dpo.training.lock import only_run
with only_run(Path(sys.argv[1]), print):
    print("begun", flush=True)
    sys.stdin.read()
"""
pytestmark = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode != 0,
    reason="needs unshare (util-linux), and root to be another host",
)


@contextlib.contextmanager
def _begun(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of the other host that is in the middle of `script`, until its stdin is closed."""
    argv = [*ELSEWHERE, sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            yield process
        finally:
            process.kill()


def _end(process: subprocess.Popen[str], killed: bool) -> None:
    """Let it come to its end, or let its host die."""
    assert process.stdin is not None
    assert process.stdout is not None
    if killed:
        process.kill()  # unshare's, and with it whatever is in its namespace
    else:
        process.stdin.close()
    assert process.stdout.read() == ""  # its end comes when all are gone
    assert process.wait() == (-signal.SIGKILL if killed else 0)


@pytest.mark.parametrize("killed", [False, True])
def test_what_another_host_is_writing_stays_and_what_a_dead_one_left_goes(tmp_path: Path, killed: bool):
    def write_here() -> None:
        published._swept.clear()  # as in a program that has just begun
        with published.published_file(tmp_path / "mine") as file:
            file.write(b"mine")

    with _begun(WRITES, tmp_path / "theirs") as process:
        write_here()
        assert len(published.places(tmp_path)) == 1
        _end(process, killed)
    write_here()
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"mine": b"mine"} | ({} if killed else {"theirs": b"theirs"})


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_folder_is_of_one_host_until_that_ends_or_dies(tmp_path: Path, killed: bool):
    with _begun(TRAINS, tmp_path) as process:
        assert locks.is_held(tmp_path / locks.OF_FOLDER)
        with (
            pytest.raises(UserError, match=r"another dpo-train works in it \(process 1 on elsewhere\)"),
            only_run(tmp_path, print),
        ):
            pass
        _end(process, killed)
    assert not locks.is_held(tmp_path / locks.OF_FOLDER)
    with only_run(tmp_path, print):
        assert locks.is_held(tmp_path / locks.OF_FOLDER)
    assert list(tmp_path.iterdir()) == []


def test_two_hosts_make_one_file_as_one_does(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 50)
    write_policy([rows], tmp_path / "policy")
    argv = command("preference-tokenize", rows, "--tokenizer", tmp_path / "policy", "-o")
    subprocess.run([*argv, tmp_path / "alone"], check=True, capture_output=True)
    processes = [subprocess.Popen([*host, *argv, tmp_path / "both"], stderr=subprocess.DEVNULL) for host in ((), ELSEWHERE)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "both").read_bytes() == (tmp_path / "alone").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "policy", "alone", "both"}
