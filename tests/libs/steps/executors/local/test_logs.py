"""What a stage says reaches the terminal and its log; what it draws anew, the terminal alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_dpo.steps.executors.local.logs import tee_stderr
from support.terminal import in_terminal

STAGE = """
import os, signal, sys
from nemotron_dpo import cli, progress
shown = cli.show_progress("program", progress.Work("training", "step", 4))
shown.advance(1, "loss 0.5")
cli.say("program", "a message")
shown.advance(1, "loss 0.25")
shown.phase("saving")
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
RUN = f"""
import subprocess, sys
from pathlib import Path
from nemotron_dpo.steps.executors.local.logs import tee_stderr
with tee_stderr(Path(sys.argv[1])) as stderr:
    subprocess.run([sys.executable, "-c", {STAGE!r}, sys.argv[2]], stderr=stderr)
print("what follows", file=sys.stderr)
"""


@pytest.mark.parametrize("ending", ["done", "killed"])
def test_a_log_holds_no_bars(ending: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shown = in_terminal([sys.executable, "-c", RUN, str(log), ending])
    assert "training (saving): 2 of 4 steps" in shown
    assert log.read_bytes() == b"program: a message\n"
    assert shown.split("\n")[-2].rpartition("\r")[2] == "what follows"
    assert (shown.count("\n") == 3) == (ending == "killed")  # the bar of a program that was killed stays, on a line of its own


def test_the_last_words_of_a_stage_without_an_end_of_line_are_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "from pathlib import Path; import os, sys; from nemotron_dpo.steps.executors.local.logs import tee_stderr\n"
    program += "with tee_stderr(Path(sys.argv[1])) as stderr: os.write(stderr, b'one\\ntwo')"
    subprocess.run([sys.executable, "-c", program, str(log)], check=True, env=dict(os.environ), stderr=subprocess.PIPE)
    assert log.read_bytes() == b"one\ntwo\n"


def test_a_log_without_room_ends_no_stage_and_one_that_cannot_be_begins_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.symlink_to("/dev/full")  # it opens, and has no room
    program = "from pathlib import Path; import os, sys; from nemotron_dpo.steps.executors.local.logs import tee_stderr\n"
    program += "with tee_stderr(Path(sys.argv[1])) as stderr: [os.write(stderr, b'%d\\n' % n) for n in range(3)]"
    done = subprocess.run([sys.executable, "-c", program, str(log)], check=True, stderr=subprocess.PIPE)
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if line.isdigit()] == ["0", "1", "2"]
    warning = f"nemotron-steps: warning: {log}: lacks lines of what was said here (no space left on device)"
    assert [line for line in lines if not line.isdigit()] == [warning]
    with pytest.raises(IsADirectoryError), tee_stderr(tmp_path):
        pytest.fail("the stage began")
