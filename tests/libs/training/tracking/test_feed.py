"""A tracker that fails, hangs, dies, talks or asks does so alone: the run goes on, and says it once.

One that hangs does so for longer than a test may take.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron_dpo.training import sinks
from nemotron_dpo.training.tracking import feed, trackers
from nemotron_dpo.training.tracking.tracked import TrackedRun
from support.tracked import records
from support.waiting import wait_until

HEAD = """
import os, subprocess, sys, time
from pathlib import Path

class Tracking:
    def __init__(self, run):
        self.run, self.heard = run, (run.folder / "heard.txt").open("a", buffering=1)
        self.heard.write(f"open {run.done} {run.known}\\n")
        run.remember({"id": 7})

    def write(self, record):
        self.heard.write(f"{record.step} {record.split} {record.values}\\n")

    def close(self, *, failed):
        self.heard.write(f"close {failed}\\n")

def start(run):
    return Tracking(run)
"""
WRITE = "\ndef write(self, record):\n    {}\n\nTracking.write = write\n"
CLOSE = "\ndef close(self, *, failed):\n    {}\n\nTracking.close = close\n"
START = "\ndef start(run):\n    {}\n"
SITE = """
import os
import nemotron_dpo.training.sinks as sinks
sinks.__path__.append(os.environ["MORE_SINKS"])
"""
SEEN = "metrics.jsonl has every metric"


@pytest.fixture
def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are trackers too, here and in the processes of trackers."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("MORE_SINKS", str(folder / "sinks"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (folder / "sinks").mkdir()
    monkeypatch.setattr(sinks, "__path__", [*sinks.__path__, str(folder / "sinks")])
    return folder / "sinks"


def _run(folder: Path, *names: str, done: int = 0, say: list[str]) -> sinks.RecordedRun:
    switches = {f"{name}_enabled": True for name in names}
    folder.mkdir(exist_ok=True)
    return sinks.RecordedRun(folder, done, {"log_dir": None, "monitor_gpus": False, **switches}, {"a": 1}, {}, say.append)


def _heard(folder: Path, name: str, experiment: str = "exp_001") -> list[str]:
    heard = folder / "logs" / experiment / name / "heard.txt"
    return heard.read_text().splitlines() if heard.exists() else []


def test_it_is_started_fed_and_closed_and_a_resumed_run_goes_on_in_it(more: Path, tmp_path: Path) -> None:
    (more / "good.py").write_text(HEAD)
    run, said = tmp_path / "run", []
    for done, last in ((0, 2), (1, 3), (0, 1)):  # a run, the same resumed after step 1, and one that starts over
        with sinks.opened(_run(run, "good", done=done, say=said)) as recording:
            for record in records(done + 1 if done else 0, last):
                recording.write(record)
    assert _heard(run, "good") == [
        "open 0 {}",
        "0 validation-held {'validation-held/loss': 0.5}",
        "1 train {'train/loss': 1.0, 'train/lr': 5e-07}",
        "2 train {'train/loss': 0.5, 'train/lr': 5e-07}",
        "2 validation-held {'validation-held/loss': 0.5}",
        "close False",
        "open 1 {'id': 7}",
        "2 train {'train/loss': 0.5, 'train/lr': 5e-07}",
        "3 train {'train/loss': 0.3333333333333333, 'train/lr': 5e-07}",
        "3 validation-held {'validation-held/loss': 0.5}",
        "close False",
    ]
    assert _heard(run, "good", "exp_002")[0] == "open 0 {}"
    heard = [line.split(":")[0] for line in said if not line.startswith(("waiting", f"warning: {run / 'pairs_log.arrow'}"))]
    assert heard == ["tracked by good"] * 3


# name -> what the tracker does, what is said of it ({} is its log)
FAULTS = {
    "raises": (WRITE.format("raise ValueError('no\\nroom')"), "warning: raises failed: no room: see {}; " + SEEN),
    "raises_at_start": (START.format("raise OSError(28, 'full')"), "warning: raises_at_start failed: [Errno 28] full: see {}; " + SEEN),
    "raises_at_close": (CLOSE.format("raise ValueError"), "warning: raises_at_close failed: ValueError: see {}; " + SEEN),
    "dies": (WRITE.format("os._exit(3)"), "warning: dies ended with status 3: see {}; " + SEEN),
    "hangs": (WRITE.format("time.sleep(3600)"), "warning: hangs did not take everything in time and was stopped: see {}; " + SEEN),
    "hangs_at_start": (START.format("time.sleep(3600)"), "warning: hangs_at_start did not take everything in time and was stopped: see {}; " + SEEN),
    "hangs_at_exit": (START.format("import atexit, threading; atexit.register(time.sleep, 3600); threading.Thread(target=time.sleep, args=(3600,)).start(); return Tracking(run)"), None),
    "talks_and_asks": (START.format("print('{\"failed\": 1}'); os.system('echo also so'); \n    try: input('your key? ')\n    except EOFError: return Tracking(run)"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.slow
def test_a_fault_is_said_once_and_ends_nothing_else(
    name: str, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, due = FAULTS[name]
    (more / f"{name}.py").write_text(HEAD + fault)
    (more / "good.py").write_text(HEAD)
    if "hangs" in name and due:
        monkeypatch.setattr(trackers, "CLOSE_SECONDS", 4.0)
    said: list[str] = []
    with sinks.opened(_run(tmp_path / "run", "good", name, say=said)) as recording:
        for record in records(0, 500):
            recording.write(record)
        wait_until(lambda: len(_heard(tmp_path / "run", "good")) == 503)  # so of the time to close it needs little
    log = tmp_path / "run" / "logs" / "exp_001" / f"{name}.log"
    assert [line for line in said if line.startswith("warning")] == ([due.format(log)] if due else [])
    assert len(_heard(tmp_path / "run", "good")) == 504  # open, two validations, 500 steps, close
    if not due:
        assert _heard(tmp_path / "run", name)[-1] == "close False"
    if name == "talks_and_asks":
        assert sorted(log.read_text().splitlines()) == ["also so", "your key? ", '{"failed": 1}']  # buffered, in any order


@pytest.mark.slow
def test_records_that_find_no_room_are_counted(more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe takes 64 KiB, a reader's buffer 8, a queue five; records have more than 70 bytes each."""
    (more / "hangs.py").write_text(HEAD + START.format("time.sleep(600)"))
    monkeypatch.setattr(feed, "QUEUE_RECORDS", 5)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 1.0)
    said: list[str] = []
    with sinks.opened(_run(tmp_path / "run", "hangs", say=said)) as recording:
        for record in records(1, 3000):
            recording.write(record)
            time.sleep(0.0001)
    first, stopped, total = (line for line in said if line.startswith("warning"))
    assert first == "warning: hangs: 5 records wait to be taken: further ones are dropped meanwhile"
    assert "was stopped" in stopped
    dropped = int(total.removeprefix("warning: hangs: ").removesuffix(" records were dropped in all; metrics.jsonl has them"))
    assert 3000 - (65536 + 8192) / 70 - 6 < dropped < 3000


def test_a_run_that_fails_or_is_killed_fails_its_trackers(more: Path, tmp_path: Path) -> None:
    (more / "good.py").write_text(HEAD)
    with pytest.raises(KeyboardInterrupt), sinks.opened(_run(tmp_path / "run", "good", say=[])):
        raise KeyboardInterrupt
    assert _heard(tmp_path / "run", "good")[-1] == "close True"
    killed = tmp_path / "killed"
    program = (
        "import os, signal, sys; from pathlib import Path; from nemotron_dpo.training import sinks;"
        "sinks.__path__.append(os.environ['MORE_SINKS']); folder = Path(sys.argv[1]); folder.mkdir();"
        "logger = {'log_dir': None, 'monitor_gpus': False, 'good_enabled': True};"
        "sinks.opened(sinks.RecordedRun(folder, 0, logger)).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(killed)]).returncode == -signal.SIGKILL
    heard = killed / "logs" / "exp_001" / "good" / "heard.txt"
    wait_until(lambda: heard.is_file() and heard.read_text().endswith("close True\n"))


def test_nothing_that_a_tracker_started_outlives_it(more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = "(run.folder / 'pid').write_text(str(subprocess.Popen(['sleep', '600']).pid)); time.sleep(600)"
    (more / "hangs.py").write_text(HEAD + START.format(begin))
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 1.0)
    with sinks.opened(_run(tmp_path / "run", "hangs", say=[])):
        pid = tmp_path / "run" / "logs" / "exp_001" / "hangs" / "pid"
        wait_until(lambda: pid.is_file() and pid.read_text())
    wait_until(lambda: not _is_running(int(pid.read_text())))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not (status.is_file() and "State:\tZ" in status.read_text())


def test_what_is_not_set_is_not_given() -> None:
    run = TrackedRun(Path(), "n", {"project": "p", "entity": None, "tags": ()}, {}, {})
    assert run.given() == {"project": "p"}
