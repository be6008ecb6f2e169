"""What the tests themselves lean on: loops that name each case, and forked programs that are what started ones are.

That they compute the same is looked at where the README's first block is run, in test_docs.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import forks, order
from support.cases import each
from support.forking_python import forks_first
from support.programs import execute, run

forking = pytest.mark.skipif(not forks.can_fork(os.environ), reason="programs start cold here")


def test_each_goes_through_all_cases_and_names_those_that_fail() -> None:
    seen = []

    @each("left, right", [(1, 1), (2, 3), (4, 4), (5, 6)])
    @each("sign", [1, -1])
    def compared(left: int, right: int, sign: int, fixture: str) -> None:
        seen.append((left, sign, fixture))
        assert sign < 0 or left == right

    with pytest.raises(BaseExceptionGroup) as caught:
        compared(fixture="f")
    assert seen == [(left, sign, "f") for left in (1, 2, 4, 5) for sign in (1, -1)]
    assert [one.__notes__ for one in caught.value.exceptions] == [["case: left=2, right=3"], ["case: left=5, right=6"]]
    inner = [one for group in caught.value.exceptions if isinstance(group, BaseExceptionGroup) for one in group.exceptions]
    assert [one.__notes__ for one in inner] == [["case: sign=1"]] * 2
    assert list(inspect.signature(compared).parameters) == ["fixture"]


PROBE = """
import json, os, random, signal, sys
import numpy as np
import torch
streams = [(s.name, s.encoding, s.errors, s.line_buffering, s.isatty()) for s in (sys.stdin, sys.stdout, sys.stderr)]
handlers = {int(n): signal.getsignal(n) for n in signal.valid_signals()}
state = {
    "argv": sys.argv, "original": sys.orig_argv, "path": sys.path[:6], "name": __name__, "file": __file__, "cwd": os.getcwd(),
    "environment": dict(os.environ), "read": sys.stdin.read(), "streams": streams, "threads": torch.get_num_threads(),
    "descriptors": sorted(n for n in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{n}")),
    "handlers": {n: h if isinstance(h, int) else h.__qualname__ for n, h in handlers.items() if h is not None},
    "type": str(torch.get_default_dtype()), "umask": os.umask(0o22),
}
print(json.dumps(state))
print(torch.initial_seed(), np.random.random(), random.random())
print("said", file=sys.stderr)
sys.exit(7)
"""
ENDINGS = [  # how a program ends, its status
    ("", 0),
    ("sys.exit(3)", 3),
    ("sys.exit('why')", 1),
    ("raise ValueError('no')", 1),
    ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ("os.abort()", -signal.SIGABRT),
    ("atexit.register(os._exit, 5)", 5),
    ("atexit.register(print, 'last')", 0),
    ("threading.Timer(0.1, print, ['late']).start()", 0),
    ("sys.stdout.close()", 0),
]


@forking
@pytest.mark.slow
def test_a_forked_program_finds_what_a_started_one_finds(tmp_path: Path) -> None:
    script = tmp_path / "folder" / "probe.py"
    script.parent.mkdir()
    script.write_text(PROBE)
    drawn: list[str] = []
    cases = [([str(script)], {"OMP_NUM_THREADS": "1", "X": "\u00e9"}), (["-m", "folder.probe"], {"OMP_NUM_THREADS": "2"})]
    for program, variables in cases:
        argv = [sys.executable, *program, "--option", "a b"]
        options = {"cwd": tmp_path, "env": {**os.environ, **variables}, "input": "\u00e9\n".encode()}
        started, forked = (execute(argv, cold=cold, **options) for cold in (True, False))
        (found, numbers), (wanted, others) = (one.stdout.decode().splitlines() for one in (forked, started))
        assert json.loads(found) == json.loads(wanted)
        drawn += [*numbers.split(), *others.split()]
        assert (forked.returncode, forked.stderr) == (started.returncode, started.stderr) == (7, b"said\n")
    assert len(set(drawn)) == 12  # nobody's random numbers are another's
    safe = [sys.executable, "-P", str(script)]
    found = json.loads(execute(safe, input=b"").stdout.splitlines()[0])
    assert (found["original"], found["argv"]) == (safe, safe[2:])
    assert str(script.parent) not in found["path"]


@forking
@pytest.mark.slow
def test_a_forked_program_ends_as_a_started_one(tmp_path: Path) -> None:
    (tmp_path / "end.py").write_text("import atexit, os, signal, sys, threading\nexec(sys.argv[1])\n")
    for how, status in ENDINGS:
        started, forked = (execute([sys.executable, str(tmp_path / "end.py"), how], cold=cold) for cold in (True, False))
        assert (how, forked.returncode) == (how, started.returncode) == (how, status)
        assert (how, forked.stdout) == (how, started.stdout)
        assert (how, forked.stderr.splitlines()[-1:]) == (how, started.stderr.splitlines()[-1:])


@forking
@pytest.mark.slow
def test_what_a_fork_cannot_honour_starts_cold(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text("import sys; print('torch' in sys.modules, sys.stdout.encoding, end='')\n")
    argv = [sys.executable, str(tmp_path / "look.py")]
    cases: list[tuple[dict[str, Any], bytes]] = [
        ({}, b"True utf-8"),
        ({"cold": True}, b"False utf-8"),
        ({"env": {**os.environ, "PYTHONIOENCODING": "ascii"}}, b"False ascii"),
        ({"env": {**os.environ, "OMP_NUM_THREADS": "2,1"}}, b"False utf-8"),
        ({"preexec_fn": os.getpid}, b"False utf-8"),
    ]
    for options, said in cases:
        assert execute(argv, **options).stdout == said


def test_the_longest_files_are_first(request: pytest.FixtureRequest) -> None:
    assert all((order.TESTS / name).is_file() for name in order.LONGEST)
    places = [order.place(item) for item in request.session.items]
    assert places == sorted(places)


@forking
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a host of its own needs root and unshare")
def test_an_executable_that_forks_is_on_the_host_that_asks_and_hands_signals_on(tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text("import socket; print(socket.gethostname(), socket.if_nameindex(), flush=True)\n")
    (tmp_path / "ends.py").write_text(
        "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))\nprint('waits', flush=True)\nsignal.pause()\n"
    )
    with forks_first(tmp_path / "forks") as find:
        alone = ["unshare", "-n", "-u", "sh", "-c", f"hostname elsewhere; {find}; python {tmp_path / 'where.py'}"]
        assert subprocess.check_output(alone, text=True) == "elsewhere [(1, 'lo')]\n"
        argv = [str(tmp_path / "forks" / "python"), str(tmp_path / "ends.py")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as waits:
            assert waits.stdout
            assert waits.stdout.readline() == b"waits\n"
            waits.send_signal(signal.SIGUSR1)
            assert waits.wait(60) == 9


RANK = """
import os, sys
again = os.environ["TORCHELASTIC_RESTART_COUNT"]
leads = os.getsid(0) == os.getpid() != os.getppid()
os.write(1, f"{os.environ['RANK']} {again} {leads} {'torch' in sys.modules}\\n".encode())
sys.exit(again == "0")
"""


@forking
def test_ranks_of_an_agent_are_forks_and_those_that_it_starts_again_start_cold(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    job = ("--standalone", "--nproc-per-node=2", "--max-restarts", 1, "--monitor-interval", 0.1, "--no-python")
    done = run("dpo-torchrun", *job, sys.executable, tmp_path / "rank.py", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()
    told = {number: {line for line in done.stdout.decode().splitlines() if line.split()[1] == number} for number in "01"}
    assert told["1"] == {"0 1 True False", "1 1 True False"}
    assert told["0"] <= {"0 0 True True", "1 0 True True"}  # where one has failed, the other may be ended before it says so
    assert told["0"]


@forking
def test_a_fork_out_of_time_ends_with_what_it_started(tmp_path: Path) -> None:
    """Else that would hold the pipes that are read to their end."""
    (tmp_path / "starts.py").write_text("import subprocess; subprocess.run(['sh', '-c', 'echo begun; sleep 300'])\n")
    out, stdout = os.pipe()
    begun = forks.start([sys.executable, str(tmp_path / "starts.py")], 0, stdout, 2)
    os.close(stdout)
    with open(out, "rb") as said:
        assert said.readline() == b"begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            begun.wait(0.01)
        assert select.select([said], [], [], 60)[0]
        assert said.read() == b""


PARENT = """
import subprocess, sys, tempfile
from nemotron_dpo.cli import program
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
program.atexit.register(program._skip_teardown, [0])
with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
    child = [sys.executable, str(Path(__file__).with_name("child.py"))]
    print(*pool.map(lambda _: subprocess.call(child), range(2)), Path(folder).is_dir())
"""


@forking
def test_a_fork_leaves_alone_what_belongs_to_the_program_that_forked_it(tmp_path: Path) -> None:
    """The parent's temporary folder, its pool and its own status; and where a thread forked it, megatron-core's GPU is the CPU all the same."""
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "child.py").write_text(
        "import sys, torch\nsys.exit(5 if torch.zeros(1, device='cuda').device.type == 'cpu' else 3)\n"
    )
    done = execute([sys.executable, str(tmp_path / "parent.py")])
    assert (done.stdout, done.stderr) == (b"5 5 True\n", b"")
