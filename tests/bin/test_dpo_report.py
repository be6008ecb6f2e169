"""dpo-report as it is called: what it writes of runs in every state, in every format, and what it refuses."""

from __future__ import annotations

import math
import os
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nemotron_dpo.report import comparison, single
from nemotron_dpo.report.html import html
from nemotron_dpo.report.markdown import markdown
from nemotron_dpo.report.run_report import read_run
from nemotron_dpo.report.terminal import terminal
from support import programs, report_runs
from support.report_runs import sightings, train_row, usual_rows, validation_row, write_log, write_run

PROGRAM = "dpo-report"
HERE = {"host": socket.gethostname()}


def _margins(step: int) -> list[float]:
    """Of 40 pairs: three of four gain, half a nat a step and more."""
    return [(n % 4 - 0.5) * step / 2 for n in range(40)]


def _logged(folder: Path, *, whole: bool = True) -> Path:
    """A usual run with its pairs."""
    write_run(folder, usual_rows())
    write_log(folder, [sightings(step, "validation-default", _margins(step)) for step in (0, 10, 20)], whole=whole)
    return folder


def _page(folder: Path, tmp_path: Path, *options: str) -> str:
    target = tmp_path / "page.html"
    done = programs.check(PROGRAM, folder, "-o", target, *options)
    assert done.stderr.decode().splitlines()[-1].endswith(f"-> {target} (html)")
    return target.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_page_is_one_file_that_names_no_address(tmp_path: Path) -> None:
    write_run(tmp_path / "run", usual_rows(500))
    write_log(tmp_path / "run", [sightings(step, "validation-default", _margins(step)) for step in (0, 500)])
    page = _page(tmp_path / "run", tmp_path)
    assert len(page) < 2_000_000
    assert page.count("<figure ") == 13
    assert not re.findall(r"(?:src|href|action)=[\"'](?!#)", page)
    assert set(re.findall(r"https?://[\w./]+", page)) <= {"http://www.w3.org/2000/svg"}


NOISE = train_row(1, math.log(2), reward_noise_floor=0.01)
# How a run is left -> words of its page, and words that must not be there.
STATES: list[tuple[str, list[dict[str, Any]], dict[str, Any], list[str], list[str]]] = [
    ("finished", usual_rows(), {}, ["done after step 20 of 20", "No objection found", "beta 0.1"], ["still runs"]),
    ("going on", usual_rows()[:8], {"status": "running", "pid": os.getpid(), **HERE}, ["It still runs", "after step 7"], ["was killed"]),
    ("killed", usual_rows()[:8], {"status": "running", "pid": 2**22 + 1, **HERE}, ["It was killed after step 7", "Not as it is"], []),
    ("stopped", usual_rows(), {"status": "stopped", "reason": "SIGTERM"}, ["It was stopped after step 20 (SIGTERM)"], []),
    ("stopped early", [validation_row(0, 0.7, 0.0), NOISE], {"status": "stopped", "reason": "SIGINT"}, ["Too early to tell: it was stopped after step 1 of 20", "stopped after step 1 of 20", "Let it take more steps"], ["learning rate</", "failed"]),
    ("stopped, of an earlier version", [NOISE, {**NOISE, "step": 2}], {"status": "failed", "reason": "KeyboardInterrupt"}, ["It was stopped after step 2 (KeyboardInterrupt)", "Let it take more steps"], ["failed", "Ten times"]),
    ("failed", usual_rows(), {"status": "failed", "reason": "<b>NaN</b>"}, ["It failed after step 20 (&lt;b&gt;NaN&lt;/b&gt;)"], []),
    ("not validated", [r for r in usual_rows() if "train/loss" in r], {}, ["No pairs were held out", "Hold pairs out"], []),
    ("of one step", [train_row(1, math.log(2))], {}, ["Too early to tell"], []),
    ("not yet trained", [], {"status": "running", "pid": os.getpid(), **HERE}, ["No training step is on record"], []),
    ("validated only", [validation_row(0, 0.7, 0.0)], {}, ["No training step is on record"], []),
    ("not finite", [train_row(1, 0.7), train_row(2, 0.6), {"step": 3, "train/loss": None}], {}, ["Its loss was not finite at its beginning or its end."], []),
]  # fmt: skip


@pytest.mark.parametrize(("state", "rows", "facts", "words", "others"), STATES, ids=[case[0] for case in STATES])
def test_runs_in_every_state(
    state: str, rows: list[dict[str, Any]], facts: dict[str, Any], words: list[str], others: list[str], tmp_path: Path
) -> None:
    page = _page(write_run(tmp_path / "run", rows, **facts), tmp_path)
    assert [word for word in words if word not in page] == []
    assert [word for word in others if word in page] == []
    assert "wrote no pairs_log.arrow" in page  # as runs of earlier versions


@pytest.mark.slow
def test_records_that_are_cut_or_damaged_are_used_and_said(tmp_path: Path) -> None:
    run = _logged(tmp_path / "run", whole=False)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 21, "train/lo')
    page = _page(run, tmp_path)
    assert "Line 24 of metrics.jsonl is damaged or cut short" in page
    assert "ends without its trailer after 120 rows; what comes before is used" in page
    assert "40 pairs held out" in page
    (run / "pairs_log.arrow").write_bytes(b"no stream")
    assert "pairs_log.arrow cannot be read" in _page(run, tmp_path)
    (run / "run.json").unlink()  # of earlier versions
    assert "step 20" in _page(run, tmp_path)


@pytest.mark.slow
def test_a_job_is_its_run_with_its_commands(tmp_path: Path) -> None:
    job = tmp_path / "20261126-job"
    _logged(job / "run")
    (job / "job.yaml").write_text(
        "argv: [/usr/bin/nemotron-steps, run, dpo, -c, tiny]\nstages: [{name: a, command: tokenize it}]\n"
    )
    page = _page(job, tmp_path)
    assert page == _page(job / "run", tmp_path)
    assert "<title>20261126-job</title>" in page
    for command in ("nemotron-steps run dpo -c tiny", "tokenize it", "-c tiny dpo.reference_policy_kl_penalty=0.2"):
        assert command in page


def test_an_extended_run_says_what_to_run_first(tmp_path: Path) -> None:
    run = _logged(tmp_path / "run")
    write_run(run, usual_rows(), step=20, earlier=[{"status": "done", "step": 10}])
    assert "run it with dpo.max_num_steps=10 first." in _page(run, tmp_path)


@pytest.mark.slow
def test_every_format(tmp_path: Path) -> None:
    run = _logged(tmp_path / "run")
    programs.check(PROGRAM, run, "-o", tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert text.startswith("# The policy now prefers the chosen response in 88% of the pairs of validation.\n")
    assert "| Loss | training |" in text
    programs.check(PROGRAM, run, "-o", tmp_path / "a.png")
    head = (tmp_path / "a.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20], "big") > 2000
    shown = programs.check(PROGRAM, run, "--terminal", cwd=tmp_path)
    assert "Did it learn? Yes" in shown.stdout.decode()
    assert b"\x1b" not in shown.stdout
    assert not (tmp_path / "report.html").exists()
    programs.check(PROGRAM, run, cwd=tmp_path)
    started = programs.check(PROGRAM, run, "-o", "-", cold=True)  # and so draws with a V8 of its own
    assert started.stdout == (tmp_path / "report.html").read_bytes()


@pytest.mark.slow
def test_texts_are_in_the_page_unless_these_are_not_wanted(tmp_path: Path) -> None:
    run = _logged(tmp_path / "run")
    settings = [*report_runs.SETTINGS, "--validation", "scored.arrow"]
    write_run(run, usual_rows(), settings=settings)
    after = report_runs.write_texts(run, [("Hello?", "Good day", "Go away")] * 40, shift=0.5)
    page = _page(run, tmp_path, "--scores", str(after))
    for words in ("Hello?", 'class="u1" title="+0.50"', 'class="d1" title="-0.50"'):
        assert words in page, words
    bare = _page(run, tmp_path)
    assert "Good day" in bare
    assert "Tokens are not coloured by their change" in bare
    silent = _page(run, tmp_path, "--no-text")
    assert "Texts are left out" in silent
    assert not [text for text in ("Good day", "Go away", "Hello?") if text in silent]
    (tmp_path / "scored.arrow").unlink()
    assert "no longer where the run read it" in _page(run, tmp_path)


def test_runs_are_compared(tmp_path: Path) -> None:
    one, other = _logged(tmp_path / "one"), _logged(tmp_path / "other")
    write_run(other, usual_rows(), settings=[*report_runs.SETTINGS, "policy.optimizer.lr=2e-5"])
    worse = [margin - 30 for margin in _margins(20)]
    write_log(other, [sightings(0, "validation-default", _margins(0)), sightings(20, "validation-default", worse)])
    programs.check(PROGRAM, "--compare", one, other, "-o", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    for words in ("one is best.", "By loss on the 40 held-out pairs", "less than 0.1 %", "policy.optimizer.lr", "2e-05"):
        assert words in page, words
    assert "<td>dpo.max_num_steps" not in page.partition("Curves over each other")[0]


# What is called -> the only line that is said, after the name of the program, and the exit status.
REFUSED = [
    (["nowhere"], "error: nowhere: no such folder", 1),
    (["empty"], "error: empty: is no run: there is no metrics.jsonl in it: give the --run-dir of dpo-train, or the folder of a job", 1),
    (["job"], "error: job: is a job that has not trained: there is no run/metrics.jsonl in it", 1),
    (["foreign"], "error: foreign/metrics.jsonl: has no record of dpo-train: give the --run-dir of dpo-train", 1),
    (["file"], "error: file: is a file where a run folder is due", 1),
    (["--compare", "run"], "error: --compare needs two runs or more: see 'dpo-report --help'", 2),
    (["run", "run", "--scores", "x"], "error: --scores is of one run: see 'dpo-report --help'", 2),
    (["run", "--scores", "x", "--no-text"], "error: --scores colours the texts that --no-text leaves out: see 'dpo-report --help'", 2),
    (["old", "--scores", "x"], "error: old: has no pairs on record whose tokens --scores could colour", 1),
    (["texts/run", "--scores", "x"], "error: x: no such file", 1),
    (["run", "empty"], "error: empty: is no run: there is no metrics.jsonl in it: give the --run-dir of dpo-train, or the folder of a job", 1),
]  # fmt: skip


def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path) -> None:
    for name in ("empty", "job", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "job" / "job.yaml").write_text("step: rl/nemo_rl/dpo\n")
    (tmp_path / "foreign" / "metrics.jsonl").write_text('{"step": 1, "eval/loss": 2}\n[1]\n')
    (tmp_path / "file").write_text("")
    _logged(tmp_path / "run")
    write_run(tmp_path / "old", usual_rows())
    write_run(_logged(tmp_path / "texts" / "run"), usual_rows(), settings=["--validation", "scored.arrow"])
    report_runs.write_texts(tmp_path / "texts" / "run", [("p", "c", "r")])
    for arguments, line, status in REFUSED:
        done = programs.run(PROGRAM, *arguments, "-o", "page.html", cwd=tmp_path)
        assert (done.returncode, done.stderr.decode()) == (status, f"{PROGRAM}: {line}\n")
        assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_hundred_thousand_pairs_take_little_memory(tmp_path: Path) -> None:
    size, batches = 100_000, list[pa.RecordBatch]()
    run = write_run(tmp_path / "run", usual_rows())
    for step in (0, 20):
        batches += [sightings(step, "validation-default", [0.01 * step] * 10_000, start=at) for at in range(0, size, 10_000)]
    write_log(run, batches)
    script = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\nfinally: print(open('/proc/self/status').read())"
    argv = programs.command(PROGRAM, run, "-o", tmp_path / "page.html")
    done = programs.execute([argv[0], "-c", script, *argv[1:]], cold=True)
    assert done.returncode == 0, done.stderr
    peak = re.search(r"VmHWM:\s*(\d+) kB", done.stdout.decode())  # getrusage would have the peak of whoever started it, too
    assert peak is not None
    assert int(peak[1]) < 1_000_000
    assert "100,000 pairs held out" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_names_of_runs_that_differ_in_their_ends_are_whole_on_the_terminal(tmp_path: Path) -> None:
    names = [f"dpo.reference_policy_kl_penalty=0.{digit}" for digit in "13"]
    for name in names:
        _logged(tmp_path / name)
    lines = programs.check(PROGRAM, *names, "--terminal", cwd=tmp_path).stdout.decode().splitlines()
    for name in names:
        assert any(name in line and " -> " in line for line in lines), name


ON_PAGE = ("Point at a plot", "arrow keys", "Grey is", "Open a pair")


def test_text_does_not_tell_how_to_read_the_page(tmp_path: Path) -> None:
    run = read_run(_logged(tmp_path / "run"))
    alone, compared = single.page(run), comparison.page([run, run])
    assert [words for words in ON_PAGE if words not in html(alone)] == []
    assert "arrow keys" in html(compared)
    for page in (alone, compared):
        assert [words for words in ON_PAGE if words in markdown(page) + terminal(page)] == []


def test_titles_on_the_terminal_are_whole_and_said_once(tmp_path: Path) -> None:
    shown = programs.check(PROGRAM, _logged(tmp_path / "run"), "--terminal", cwd=tmp_path).stdout.decode()
    (line,) = [line for line in shown.splitlines() if line.startswith("Tokens of responses")]
    assert line.startswith("Tokens of responses a second ")
    assert line.count("Tokens") == 1


def test_a_run_that_its_epochs_ended_is_whole(tmp_path: Path) -> None:
    run = _logged(tmp_path / "run")
    write_run(run, usual_rows(), settings=[*report_runs.SETTINGS, "dpo.max_num_steps=40"])
    assert "done after step 20;" in programs.check(PROGRAM, run, "--terminal", cwd=tmp_path).stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "r.pdf"), "r.pdf: no report is written as .pdf: name a .html, .md or .png, or give --format"),
        (("./run",), "./run is given twice: a run cannot be compared to itself"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    _logged(tmp_path / "run")
    done = programs.run(PROGRAM, "run", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_validation_before_the_first_step_says_nothing_against_training(tmp_path: Path) -> None:
    """No pair can be right then; a run interrupted before its next validation is not the wrong way round."""
    run = write_run(tmp_path / "run", [validation_row(0, math.log(2), 0.0), *usual_rows()[1:6]], status="killed")
    shown = programs.check(PROGRAM, run, "--terminal", cwd=tmp_path).stdout.decode()
    assert "It was validated before the first step alone" in shown
    assert "right way round" not in shown
    assert "in 0%" not in shown


def test_a_run_not_validated_since_its_first_step_is_not_compared_by_that(tmp_path: Path) -> None:
    _logged(tmp_path / "whole")
    _logged(tmp_path / "killed")
    write_run(tmp_path / "killed", [validation_row(0, math.log(2), 0.0), *usual_rows()[1:6]], status="killed")
    write_log(tmp_path / "killed", [sightings(0, "validation-default", _margins(0))])
    shown = programs.check(PROGRAM, "whole", "killed", "--terminal", cwd=tmp_path).stdout.decode()
    assert "Which is best? Cannot be told" in shown
