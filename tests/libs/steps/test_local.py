"""The local executor on real processes: failures, signals, nothing left behind, one maker of a cache entry at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.local import StageFailed, run_plan, run_stage
from nemotron_dpo.steps.plan import Plan, Stage
from nemotron_dpo.steps.tiny_sft import Prelude

FAILURES = [
    ("exit 7", 7, "work failed (exit 7); it said why above"),
    ("kill -KILL $$", 137, "work was killed by SIGKILL (exit 137): out of memory?"),
    ("kill -TERM $$", 143, "work was killed by SIGTERM (exit 143)"),
]


@pytest.mark.parametrize(("script", "status", "line"), FAILURES)
def test_failure_keeps_its_exit_code(script: str, status: int, line: str):
    with pytest.raises(StageFailed) as caught:
        run_stage(Stage("work", ("bash", "-c", script)), {})
    assert (caught.value.status, str(caught.value)) == (status, line)


def test_missing_program_is_named():
    with pytest.raises(UserError, match="no-such-program: work: no such program"):
        run_stage(Stage("work", ("no-such-program",)), {})


def _plan(job: Path, *scripts: str, prelude: Prelude | None = None) -> Plan:
    stages = tuple(Stage(script, ("bash", "-c", script), {"OWN": "stage"}) for script in scripts)
    return Plan(job, job / "run", None, {}, prelude, stages)


def test_stages_run_in_order_until_one_fails(tmp_path: Path):
    log = tmp_path / "log"
    with pytest.raises(StageFailed, match=r"^exit 3 failed"):
        run_plan(_plan(tmp_path, f"echo $OWN $GIVEN >> {log}", "exit 3", f"echo never >> {log}"), {"GIVEN": "env"})
    assert log.read_text() == "stage env\n"


def test_cache_entry_is_made_once_from_a_clean_start(tmp_path: Path):
    target, scratch = tmp_path / "entry", tmp_path / "entry.partial"
    count = f"echo made >> {tmp_path}/count"
    make = f"test ! -e {scratch}/stale; mkdir {scratch}/checkpoint_megatron; {count}"
    commands = (("make", ("bash", "-ec", make)), ("publish", ("mv", "-T", str(scratch), str(target))))
    scratch.mkdir()
    (scratch / "stale").touch()
    for _ in range(2):
        run_plan(_plan(tmp_path, prelude=Prelude(target, scratch, commands)), {})
    assert (tmp_path / "count").read_text() == "made\n"
    assert (target / "checkpoint_megatron").is_dir()


RUNNER = """
import sys
import click
from nemotron_dpo import cli
from nemotron_dpo.steps.local import run_stage
from nemotron_dpo.steps.plan import Stage
@click.command()
def command():
    run_stage(Stage("work", ("bash", "-c", sys.argv.pop())), {})
script, sys.argv[1:] = sys.argv[1], []
sys.argv.append(script)
command.params = [click.Argument(["script"], expose_value=False)]
cli.run(command, "runner")
"""

SIGNALS = [
    (signal.SIGINT, "sleep 60 & echo $$ $! >PIDS; wait", 130),
    (signal.SIGTERM, "sleep 60 & echo $$ $! >PIDS; wait", 143),
    (signal.SIGTERM, "setsid sleep 60 & echo $$ $! >PIDS; wait", 143),
]


@pytest.mark.parametrize(("number", "script", "status"), SIGNALS)
def test_signal_reaches_every_child(tmp_path: Path, number: signal.Signals, script: str, status: int):
    pids = tmp_path / "pids"
    argv = [sys.executable, "-c", RUNNER, script.replace("PIDS", f"{pids}.new; mv {pids}.new {pids}")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    family = [int(word) for word in _when_there(pids).split()]
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said.count("\n") == 1
    assert not [pid for pid in family if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def _when_there(path: Path) -> str:
    for _ in range(600):
        if path.exists():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")
