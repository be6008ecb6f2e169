"""What a stage shows of its work: plain lines by a clock, and on a terminal a line that messages do not run into."""

from __future__ import annotations

import re
import subprocess
import sys

from nemotron_dpo.progress import Lines, Work, duration
from support.terminal import in_terminal

BAR = """
from nemotron_dpo import cli, progress
shown = cli.show_progress("program", progress.Work("training", "step", 4, done=2))
shown.phase("loading")
shown.phase("")
shown.advance(1, "loss 0.5")
cli.say("program", "warning: something stays")
shown.advance(1, "loss 0.25")
shown.phase("saving")
"""


class Clock:
    """Stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_at_the_start_and_then_by_the_clock() -> None:
    """Ten steps, four of them done before, at two seconds a step: of the lines after the first, five seconds apart each."""
    clock, said = Clock(), []
    lines = Lines(Work("training", "step", 10, done=4), said.append, clock)
    for step in range(5, 11):
        clock.now += 2
        lines.advance(1, f"loss {step}")
    assert said == [
        "training 10 steps, 4 of them done",
        "training: 5 of 10 steps, loss 5, 10 s left",
        "training: 8 of 10 steps, loss 8, 4 s left",
    ]


def test_long_runs_say_less_often() -> None:
    """After 10 minutes a tenth of that would be a minute, which is the longest silence."""
    clock, said = Clock(), []
    lines = Lines(Work("tokenizing", "MB", 10_000, announced=False), said.append, clock)
    for second in range(1, 3001):
        clock.now = 100.0 + second
        lines.advance(1)
    times = [int(line.split()[1]) for line in said]
    assert times[:3] == [5, 10, 15]
    assert times[-1] - times[-2] == 60
    assert said[0] == "tokenizing: 5 of 10000 MB, 2 h 46 min left"


def test_what_has_no_total_has_no_end() -> None:
    clock, said = Clock(), []
    lines = Lines(Work("scoring", "pair"), said.append, clock)
    lines.advance(3)
    assert said == ["scoring", "scoring: 3 pairs"]


def test_durations() -> None:
    shown = {0.4: "0 s", 59.4: "59 s", 59.6: "1 min 0 s", 250: "4 min 10 s", 3599.6: "1 h 0 min", 11_100: "3 h 5 min"}
    assert {seconds: duration(seconds) for seconds in shown} == shown


def test_on_a_terminal_a_line_is_drawn_anew_and_messages_stay_whole() -> None:
    shown = _on_a_terminal(BAR)
    drawn = [part.strip() for part in re.split(r"[\r\n]+", shown)]
    assert any(line.startswith("training (loading): 2 of 4 steps") for line in drawn)
    assert "program: warning: something stays" in drawn
    assert any(line.startswith("training (saving): 4 of 4 steps, 100 %") and "loss 0.25" in line for line in drawn)


def test_at_the_end_the_line_that_was_drawn_anew_is_gone() -> None:
    """Only the message stays, so that the program's line of facts follows it: neither a bar nor an empty line."""
    shown = _on_a_terminal(BAR)
    assert [line.rpartition("\r")[2].strip() for line in shown.split("\n")] == ["program: warning: something stays", ""]


def test_programs_chained_by_pipes_draw_nothing() -> None:
    """They share one terminal: a line that one draws anew would run into the lines of the others."""
    assert "\r" not in _on_a_terminal(BAR, stdin=subprocess.PIPE)
    assert "\r" not in _on_a_terminal(BAR, stdout=subprocess.PIPE)


def _on_a_terminal(program: str, **streams: int) -> str:
    return in_terminal([sys.executable, "-c", program], **streams)
