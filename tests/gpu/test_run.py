"""run.sh as it is run where a GPU is at hand, but at small sizes on a CPU, and what it says of what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import forks
from support.forking_python import forking_programs

GPU = Path(__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_sh(*arguments: object, script: Path = GPU / "run.sh") -> subprocess.CompletedProcess[str]:
    argv = ["bash", str(script), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, env=ENV, stdin=subprocess.DEVNULL, timeout=3000)


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """One whose programs are forks, but for the first check, which looks whether all packages are found."""
    if forks.can_fork(ENV):
        with forking_programs(tmp_path, cold="/machine.py") as programs:
            yield programs / "python"
    else:
        yield Path(sys.executable)


@pytest.mark.slow
def test_every_check_runs_on_a_cpu(python: Path, tmp_path: Path) -> None:
    done = run_sh("--cpu", "--python", python, "-o", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    states = {each["check"]: each["state"] for each in report["checks"]}
    names = [line.split()[0] for line in run_sh("--list").stdout.splitlines()]
    assert states == {**dict.fromkeys(names, "ok"), "kernels": "skipped"}
    assert all(each["figures"] for each in report["checks"])
    assert (tmp_path / "report.md").read_text().count("\n| ") == len(names) + 2


@pytest.mark.slow
def test_a_check_that_fails_or_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import sys\nsys.exit('check failed: seven is not eight')\n")
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\n")
    script = _copy(tmp_path, '"bad 1 module bad"', '"endless 1 module endless"', '"never 9 module bad"')
    done = run_sh("--python", sys.executable, "--budget", 6, script=script)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("|")]
    assert [line.split()[:2] for line in lines if not line.startswith(" ")][:3] == [
        ["FAILED", "bad"],
        ["FAILED", "endless"],
        ["left", "out"],
    ]
    assert "    check failed: seven is not eight" in lines
    assert "    stopped: the 6 s are over" in lines
    assert "2 FAILED, 1 left out" in lines[-1]


def test_what_ended_is_told_where_it_is_terminated(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("")
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\n")
    script = _copy(tmp_path, '"good 1 module good"', '"endless 1 module endless"')
    argv = ["bash", str(script), "--python", sys.executable, "-o", str(tmp_path / "out")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=ENV, start_new_session=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline().split()[:2] == ["ok", "good"]
        for _ in range(2):
            os.killpg(program.pid, signal.SIGTERM)
        assert "1 ok; " in program.stdout.read()
    assert program.returncode == 143
    assert (tmp_path / "out" / "report.md").is_file()


def _copy(folder: Path, *checks: str) -> Path:
    """The script with other checks, and the modules that it needs itself."""
    text = (GPU / "run.sh").read_text()
    before, rest = text.split("CHECKS=(\n", 1)
    (folder / "run.sh").write_text(f"{before}CHECKS=(\n{chr(10).join(checks)}\n)\n{rest.split(chr(10) + ')' + chr(10), 1)[1]}")
    for name in ("report.py", "missing_wheels.py"):
        (folder / name).write_text((GPU / name).read_text())
    return folder / "run.sh"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "machine,nothing"], "--only: there is no check nothing; --list names them"),
        (["--budget", "long"], "--budget: long is no number of seconds"),
        (["--wheels"], "--wheels needs a value"),
        (["--wheels", "/nowhere"], "--wheels: /nowhere is not there"),
        (["--gpu"], "no such option: --gpu"),
    ],
)
def test_what_it_refuses(arguments: list[str], said: str) -> None:
    done = run_sh(*arguments)
    assert done.returncode == 2
    assert f"run.sh: error: {said}" in done.stderr.splitlines()


def test_wheels_of_what_is_there_are_not_installed(tmp_path: Path) -> None:
    script = [sys.executable, str(GPU / "missing_wheels.py"), "/w/numpy-9.9-py3-none-any.whl", "/w/no_such-1-py3-none-any.whl"]
    assert subprocess.check_output(script, text=True) == "/w/no_such-1-py3-none-any.whl\n"
