"""The local executor on real processes: failures, signals, nothing left behind, one maker of a cache entry at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile import stage_cache as cache
from nemotron_dpo.steps.compile.job_state import JobStateFile
from nemotron_dpo.steps.compile.stage_choice import choose
from nemotron_dpo.steps.compile.stages import Input, Plan, Stage
from nemotron_dpo.steps.compile.tiny_sft import Prelude
from nemotron_dpo.steps.executors.local.stages import StageFailed, _only_one, run_plan, run_stage

FAILURES = [
    ("exit 7", 7, "work failed (exit 7); it said why above"),
    ("kill -KILL $$", 137, "work was killed by SIGKILL (exit 137): out of memory?"),
    ("kill -TERM $$", 143, "work was killed by SIGTERM (exit 143)"),
]


def test_a_run_that_was_stopped_because_it_diverges():
    with pytest.raises(StageFailed) as caught:
        run_stage(Stage("dpo-train", ("bash", "-c", "exit 3")), {})
    assert (caught.value.status, str(caught.value)) == (
        3, "dpo-train was stopped because it diverges (exit 3); it said why above"
    )  # fmt: skip


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


def _run(plan: Plan, env: dict[str, str] | None = None, *, force: bool = False) -> list[str]:
    """Run `plan` and return what is said of it."""
    said: list[str] = []
    plan.job.mkdir(parents=True, exist_ok=True)
    run_plan(plan, env or {}, choose(plan, None, None, force=force), said.append, JobStateFile(plan.job))
    return said


def test_stages_run_in_order_until_one_fails(tmp_path: Path):
    log = tmp_path / "log"
    with pytest.raises(StageFailed, match=r"^exit 3 failed"):
        _run(_plan(tmp_path, f"echo $OWN $GIVEN >> {log}", "exit 3", f"echo never >> {log}"), {"GIVEN": "env"})
    assert log.read_text() == "stage env\n"


def test_a_stage_that_runs_is_told_before(tmp_path: Path):
    told: list[tuple[str, bool]] = []
    plan, log = _plan(tmp_path, f"touch {tmp_path}/made"), tmp_path / "made"
    choices, state = choose(plan, None, None, force=False), JobStateFile(plan.job)
    run_plan(plan, {}, choices, print, state, lambda stage: told.append((stage.name, log.exists())))
    assert told == [(f"touch {tmp_path}/made", False)]
    assert log.exists()


def test_failed_stage_names_its_log(tmp_path: Path):
    with pytest.raises(StageFailed) as caught:
        _run(_plan(tmp_path, "echo why >&2; exit 3"))
    log = tmp_path / "logs" / "echo-why-2-exit-3.log"
    assert str(caught.value) == f"echo why >&2; exit 3 failed (exit 3); it said why above and in {log}"
    assert log.read_text() == "why\n"


def _counted(job: Path, data: Path) -> Plan:
    """Two stages that count their runs: the first copies `data` upwards, the second takes that and adds a line."""
    first, second = job / "first", job / "second"
    copy = ("bash", "-ec", "echo ran >> $(dirname $1)/../count; cp $1 $2", "copy", str(data), str(first))
    add = ("bash", "-ec", "echo ran >> $(dirname $1)/../count2; (cat $1; echo end) > $2", "add", str(first), str(second))
    stages = (
        Stage("copy", copy, inputs={str(data): Input("data", str(data))}, outputs=(first,)),
        Stage("add", add, inputs={str(first): Input("stage", str(first))}, outputs=(second,)),
    )
    job.mkdir(exist_ok=True)
    return Plan(job, job, None, {}, None, stages)


def test_up_to_date_stage_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = Path("rows") / "a.jsonl"
    data.parent.mkdir()
    data.write_text("one\n")
    assert _run(_counted(Path("job1"), data)) == []
    moved = Path("elsewhere") / "a.jsonl"  # of another name, its pairs would be called otherwise
    moved.parent.mkdir()
    data.rename(moved)
    said = _run(_counted(Path("job2"), moved))
    assert [line.partition(",")[0] for line in said] == [
        "copy: up to date",
        "add: up to date",
        "nothing to do: everything is up to date; --force runs it again",
    ]
    assert Path("job2/second").read_text() == "one\nend\n"
    assert Path("job2/logs/copy.log").read_text() == f"{said[0]}\n"
    moved.write_text("two\n")
    assert _run(_counted(Path("job3"), moved)) == []
    assert Path("job3/second").read_text() == "two\nend\n"
    assert Path("count").read_text() == "ran\n" * 2


def test_force_runs_what_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "rows" / "a.jsonl"
    data.parent.mkdir()
    data.write_text("one\n")
    for name in ("job1", "job2"):
        assert _run(_counted(Path(name), data), force=True) == []
    assert (tmp_path / "count").read_text() == "ran\n" * 2


def test_interrupted_stage_goes_on_from_what_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    count = "mkdir -p $1; echo step >> $1/metrics; test $(wc -l < $1/metrics) = 3"

    def plan(name: str, *, resumes: bool) -> Plan:
        folder = cache.JOBS / name / "run"
        stage = Stage("work", ("bash", "-c", count, "work", str(folder)), outputs=(folder,), resumes=resumes)
        return Plan(cache.JOBS / name, folder, None, {}, None, (stage,))

    for name in ("job1", "job2"):
        (cache.JOBS / name).mkdir(parents=True)
        with pytest.raises(StageFailed):
            _run(plan(name, resumes=True))
    (cache.JOBS / "job3").mkdir()
    assert _run(plan("job3", resumes=True)) == [f"work: goes on from {cache.JOBS}/job2/run"]
    assert [len((cache.JOBS / name / "run/metrics").read_text().split()) for name in ("job1", "job2", "job3")] == [1, 2, 3]
    assert _run(plan("job4", resumes=True))[0] == f"work: up to date, taken from {cache.JOBS}/job3/run"
    (cache.JOBS / "job5").mkdir()
    with pytest.raises(StageFailed):
        _run(plan("job5", resumes=True), force=True)
    assert (cache.JOBS / "job5/run/metrics").read_text() == "step\n"


def test_stage_that_may_stop_early_is_never_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make = ("bash", "-c", "mkdir -p $1; echo made >> count", "make")
    for name in ("job1", "job2"):
        folder = Path(name) / "run"
        stage = Stage("work", (*make, str(folder)), outputs=(folder,), may_stop_early=True)
        Path(name).mkdir()
        assert _run(Plan(Path(name), folder, None, {}, None, (stage,))) == []
    assert Path("count").read_text() == "made\n" * 2


def test_cache_entry_is_made_once_from_a_clean_start(tmp_path: Path):
    target, scratch = tmp_path / "entry", tmp_path / "entry.partial"
    count = f"echo made >> {tmp_path}/count"
    make = f"test ! -e {scratch}/stale; mkdir {scratch}/checkpoint_megatron; {count}"
    commands = (("make", ("bash", "-ec", make)), ("publish", ("mv", "-T", str(scratch), str(target))))
    scratch.mkdir()
    (scratch / "stale").touch()
    for _ in range(2):
        _run(_plan(tmp_path, prelude=Prelude(target, scratch, commands)))
    assert (tmp_path / "count").read_text() == "made\n"
    assert (target / "checkpoint_megatron").is_dir()


def test_a_run_that_waits_for_another_says_so_and_one_without_locks_that_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "policy"
    real, asked, said = fcntl.flock, [], []

    def held_at_first(file: int, how: int) -> None:
        asked.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError(errno.EAGAIN, "held")
        real(file, how)

    def no_locks(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for flock, line in (
        (held_at_first, f"{target}: another run is making it: waits for it"),
        (no_locks, f"warning: {tmp_path}: its file system has no locks: no other run may make policy"),
    ):
        monkeypatch.setattr(fcntl, "flock", flock)
        said.clear()
        with _only_one(target, said.append):
            pass
        assert said == [line]
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]


RUNNER = """
import sys
from pathlib import Path
import click
from nemotron_dpo import cli
from nemotron_dpo.steps.executors.local.stages import run_stage
from nemotron_dpo.steps.compile.stages import Stage
@click.command()
def command():
    run_stage(Stage("work", ("bash", "-c", script)), {}, Path(log))
log, script = sys.argv[1:]
command.params = [click.Argument(["words"], nargs=-1, expose_value=False)]
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
    argv = [sys.executable, "-c", RUNNER, str(tmp_path / "log"), script.replace("PIDS", f"{pids}.new; mv {pids}.new {pids}")]
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


DRAWS = "test -t 2 && printf 'a 1%%\\ra 50%%\\ra 100%%\\nend' >&2"


def test_progress_bar_finds_a_terminal_and_the_log_its_last_state(tmp_path: Path):
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", RUNNER, str(tmp_path / "log"), DRAWS]
    process = subprocess.Popen(argv, stderr=theirs, start_new_session=True)
    assert process.wait(60) == 0
    os.close(theirs)
    assert b"a 1%\ra 50%\ra 100%" in os.read(ours, 1 << 16)
    os.close(ours)
    assert (tmp_path / "log").read_text() == "a 100%\nend\n"


STAGE = """
import time, click
from nemotron_dpo import cli
from pathlib import Path

@click.command()
def command():
    try:
        Path({place!r}).touch()
        time.sleep(120)
    finally:
        cli.say("work", "nobody hears this")
        Path({place!r} + ".ended").touch()

cli.run(command, "work")
"""
RUN = """
import sys
from nemotron_dpo.steps.compile.stages import Stage
from nemotron_dpo.steps.executors.local.stages import run_stage
from pathlib import Path
run_stage(Stage("work", (sys.executable, "-c", sys.argv[1])), {}, Path(sys.argv[2]))
"""


def test_a_stage_ends_with_its_run_that_is_killed(tmp_path: Path):
    """It ends as by SIGTERM, with its own clearing up, though nobody reads any more what it says."""
    place = tmp_path / "place"
    argv = [sys.executable, "-c", RUN, STAGE.format(place=str(place)), str(tmp_path / "log")]
    running = subprocess.Popen(argv)
    _wait_for(place.exists)
    (stage,) = psutil.Process(running.pid).children()
    running.kill()
    running.wait()
    _wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE)
    assert Path(f"{place}.ended").exists()


def test_a_program_whose_starter_is_gone_already_ends_at_once(tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    place, environment = tmp_path / "place", {**os.environ, "NEMOTRON_DPO_PARENT": str(gone.pid)}
    done = subprocess.run(
        [sys.executable, "-c", STAGE.format(place=str(place))], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (143, "work: error: terminated\n")
    assert not place.exists()


def _wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
