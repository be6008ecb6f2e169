"""The launcher of several processes: whose end it tells of, with which status, and that signals go on to the processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron_dpo import torchrun
from support import forks
from support.programs import BIN, execute
from support.waiting import wait_until

LAUNCH = [str(BIN / "dpo_torchrun.py"), "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]


def launched(said: Path, program: Path, *arguments: object) -> forks.Fork | subprocess.Popen[bytes]:
    """A launcher of two of `program`, which goes on by itself; what all of them say goes into `said`."""
    argv = [sys.executable, *LAUNCH, str(program), *map(str, arguments)]
    with said.open("wb") as file:
        if forks.can_fork(os.environ):
            return forks.start(argv, 0, file.fileno(), file.fileno(), leads=True)
        return subprocess.Popen(argv, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.parametrize(
    ("ends", "status", "named"),  # (exit status as subprocess has it, seconds) by rank
    [
        ({0: (1, 5)}, 1, None),
        ({0: (2, 5), 1: (1, 6)}, 2, None),
        ({0: (1, 6), 1: (2, 5)}, 2, None),
        ({0: (1, 5), 3: (-9, 5)}, 137, "rank 3"),  # it brought the others down, at whatever moment they were seen
        ({0: (1, 5), 3: (-9, 6)}, 137, "rank 3"),
        ({0: (-11, 5)}, 139, "rank 0"),
        ({0: (143, 5), 1: (1, 5)}, 1, None),  # the one that was ended said nothing of its own
        ({0: (-15, 5), 1: (143, 5)}, 143, None),
        ({0: (130, 5), 1: (130, 5)}, 130, None),
    ],
)
def test_the_end_of_a_job_is_that_of_the_process_that_failed_first(ends: dict, status: int, named: str | None):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=at, pid=77) for rank, (code, at) in ends.items()}
    ended = torchrun._ended(failures)
    assert ended.status == status
    assert ended.why.startswith(f"{named} (process 77 on {socket.gethostname()}) was killed by") if named else not ended.why
    assert ("out of memory?" in ended.why) == (status == 137)


def test_a_killed_process_is_named_in_one_line(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text("import os, time\nos.environ['RANK'] == '1' and os.kill(os.getpid(), 9)\ntime.sleep(60)\n")
    done = execute([sys.executable, *LAUNCH, str(program)])
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("dpo-torchrun: error: rank 1 (process ")
    assert line.endswith("was killed by SIGKILL: out of memory?")
    assert done.returncode == 137


@pytest.mark.parametrize(
    ("options", "address"), [((), "127.0.0.1"), (("--local-addr", "10.0.0.7"), "10.0.0.7"), (("--nnodes", "1"), None)]
)
def test_one_machine_needs_no_name(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], address: str | None):
    """A job of one machine waited for ever where the machine's name does not resolve."""
    from torch.distributed import run

    jobs = []
    monkeypatch.setattr(run, "run", jobs.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first = () if "--nnodes" in options else ("--standalone",)
    torchrun.run([*first, *options, "--nproc-per-node", "2", "program.py"])
    assert [job.local_addr for job in jobs] == [address]


def test_options_are_those_of_torchrun():
    done = execute([sys.executable, *LAUNCH, "--nope", "x"])
    line = "dpo-torchrun: error: unrecognized arguments: --nope: 'torchrun --help' lists the options\n"
    assert (done.stderr.decode(), done.returncode) == (line, 2)


@pytest.mark.slow
def test_a_signal_goes_on_to_the_processes_which_end_as_they_like(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal({int(signal.SIGINT)}, lambda *_: sys.exit(57))\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).touch()\n"
        "time.sleep(60)\n"
    )
    running = launched(tmp_path / "said", program, tmp_path)
    wait_until(lambda: all((tmp_path / rank).exists() for rank in "01"), seconds=120)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 57
    assert (tmp_path / "said").read_bytes() == b""


@pytest.mark.slow
def test_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import click, os, pathlib, sys, time\n"
        "from nemotron_dpo import cli\n"
        "@click.command()\n"
        "@click.argument('folder')\n"
        "def command(folder):\n"
        '    pathlib.Path(folder, f"{os.getpid()}.started").touch()\n'
        "    try:\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        '        pathlib.Path(folder, f"{os.getpid()}.ended").touch()\n'
        "cli.run(command, 'work', joins_job=True)\n"
    )
    running = launched(tmp_path / "said", program, tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("*.started"))) == 2, seconds=120)
    running.send_signal(signal.SIGKILL)
    running.wait(60)
    wait_until(lambda: len(list(tmp_path.glob("*.ended"))) == 2, seconds=30)  # half of what they sleep
