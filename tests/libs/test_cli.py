"""The edge of the executables: exit codes and lines by kind of failure, and a progress bar on a terminal only."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_dpo.cli import named_files
from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import _REMEDIES as REMEDY

PROGRAM = """
import click, sys
from nemotron_dpo import cli, progress
from nemotron_dpo.errors import UserError

@click.command()
@click.option("--number", type=int)
def command(number):
    {body}

cli.run(command, "program")
"""


def run(body: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PROGRAM.format(body=body), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("body", "arguments", "status", "line"),
    [
        ("raise UserError('is odd', source='a.jsonl', line=3, remedy='mend it')", [], 1, "a.jsonl:3: is odd: mend it"),
        ("raise UserError('is missing', source='a', line=1, field='chosen')", [], 1, 'a:1: "chosen" is missing'),
        ("raise UserError('not both', usage=True)", [], 2, "not both"),
        ("open('/no/such/file')", [], 1, "/no/such/file: no such file or directory"),
        ("raise KeyboardInterrupt", [], 130, "interrupted"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); sys.stdin.read()", [], 143, "terminated"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGHUP); sys.stdin.read()", [], 129, "the terminal hung up"),
        ("import errno; raise OSError(errno.EFBIG, 'x', 'a.arrow')", [], 1, "a.arrow: file too large"),
        ("import errno; raise OSError(errno.ESTALE, 'x', 'a')", [], 1, "a: stale file handle: " + REMEDY[errno.ESTALE]),
        ("import errno; raise OSError(errno.EMFILE, 'x')", [], 1, "too many open files: raise the limit: ulimit -n"),
        ("raise OSError('one\\ntwo')", [], 1, "one two"),
        (
            "raise type('PanicException', (BaseException,), {})('no entry\\nfound')",
            [],
            1,
            r"a library gave up: no entry\nfound",
        ),
        ("raise RecursionError", [], 1, "something that it reads is nested too deeply"),
        ("raise MemoryError", [], 1, "out of memory: " + REMEDY[errno.ENOMEM]),
        ("raise BrokenPipeError", [], 1, "the reader of a pipe closed it early"),  # some pipe: stdout still has its reader
        ("pass", ["--number", "x"], 2, "Invalid value for '--number': 'x' is not a valid integer: see 'program --help'"),
    ],
)
def test_a_failure_is_one_line_and_a_status(body: str, arguments: list[str], status: int, line: str) -> None:
    done = run(body, *arguments)
    assert done.stderr == f"program: error: {line}\n"
    assert done.returncode == status


def without_reader(argv: list[str]) -> tuple[int, str]:
    """Exit status and stderr of a program whose stdout nobody reads."""
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    said = running.stderr.read()
    return running.wait(), said


def test_text_without_a_reader_ends_as_unix_tools_do() -> None:
    """`yes` is one: killed by SIGPIPE, and not a word. In a `with` block what cleans up has its turn first."""
    theirs = without_reader(["yes"])
    assert theirs == (-signal.SIGPIPE, "")
    for body in ("click.echo('x')", "print('x')", "print('x' * 100_000)"):
        assert without_reader([sys.executable, "-c", PROGRAM.format(body=body)]) == theirs
    assert without_reader([sys.executable, "-c", PROGRAM.format(body="pass"), "--help"]) == theirs
    closing = "contextlib.closing(type('C', (), {'close': lambda self: cli.say('p', 'tidied')})())"
    tidy = f"import contextlib\n    with {closing}: print('x' * 100_000)"
    assert without_reader([sys.executable, "-c", PROGRAM.format(body=tidy)]) == (-signal.SIGPIPE, "p: tidied\n")


def test_what_nohup_ignores_stays_ignored() -> None:
    body = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    argv = ["nohup", sys.executable, "-c", PROGRAM.format(body=body)]
    assert subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=60).stdout == "goes on\n"


@pytest.mark.slow
def test_a_cuda_toolkit_without_a_gpu_is_nothing_to_complain_of() -> None:
    """What megatron-core's import of torch.utils.cpp_extension makes torch's build for CUDA do."""
    look = "cpp_extension._find_cuda_home()"
    before = f"import sys; from torch.utils import cpp_extension; {look}; print('now ours', file=sys.stderr)\n"
    program = before + PROGRAM.format(body=f"{look}; cpp_extension.logger.warning('another')")
    without_gpu = {**os.environ, "CUDA_HOME": "/toolkit", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=without_gpu)
    theirs, ours = done.stderr.split("now ours\n")
    assert "No CUDA runtime is found, using CUDA_HOME='/toolkit'" in theirs
    assert "No CUDA runtime" not in ours
    assert "another" in ours


def test_a_bug_of_ours_shows_its_traceback() -> None:
    done = run("1 / 0")
    assert "ZeroDivisionError" in done.stderr
    assert done.returncode == 1


JOB = {"WORLD_SIZE": "16", "TORCHELASTIC_RUN_ID": "none"}


def test_the_first_rank_of_a_node_speaks_for_it() -> None:
    assert run("raise UserError('odd')", **JOB, RANK="8", LOCAL_RANK="0").stderr == "program: error: odd\n"
    assert run("cli.say('program', 'facts')", **JOB, RANK="8", LOCAL_RANK="0").stderr == ""
    assert run("raise UserError('odd')", RANK="1", LOCAL_RANK="1").stderr == "program: error: odd\n"


def test_another_rank_gives_the_first_one_time_to_speak() -> None:
    """torchrun ends it meanwhile, where all ranks met the same mistake; what it met alone it says itself."""
    rank = {**JOB, "RANK": "1", "LOCAL_RANK": "1"}
    alone = run("cli.complaints._FIRST_RANK_SECONDS = 0; raise UserError('odd')", **rank)
    assert (alone.returncode, alone.stderr) == (1, "program: error: rank 1: odd\n")
    soon = "import signal; signal.signal(signal.SIGALRM, cli.signals._raise_terminated); signal.setitimer(signal.ITIMER_REAL, 0.2); "
    ended = run(f"{soon}raise UserError('odd')", **rank)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert run("raise cli.Terminated", **rank).stderr == ""


def test_the_second_ctrl_c_ends_at_once() -> None:
    """Two within a second are one: torchrun hands on what the terminal gave to all processes."""
    press = "os.kill(os.getpid(), signal.SIGINT)"
    lines = ["import os, signal", "with cli.signals_noted('program') as came:", f"    {press}; {press}", "    print(came())"]
    first = "program: interrupted: ends with a checkpoint once this step is done; Ctrl-C again ends at once\n"
    once = run("\n    ".join(lines))
    assert (once.returncode, once.stdout, once.stderr) == (0, "2\n", first)
    twice = run("\n    ".join(["cli.signals._SAME_CTRL_C_SECONDS = 0.0", *lines]))
    assert (twice.returncode, twice.stdout, twice.stderr) == (130, "", f"{first}program: error: interrupted\n")


def test_files_have_the_names_that_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that exists is one, even with "=" in it; else what stands before the first "=" is a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-6").mkdir()
    for values, files in (
        ([], {}),
        (["a.arrow"], {"default": Path("a.arrow")}),
        (["lr=1e-6", "more=b=c"], {"default": Path("lr=1e-6"), "more": Path("b=c")}),
        (["own=~/a"], {"own": Path.home() / "a"}),
    ):
        assert named_files("--validation", values) == files
    for values, message in (
        (["a", "b"], "--validation b: the set default is a already: give each a NAME=FILE of its own"),
        (["m=a", "m=b"], "--validation m=b: the set m is a already: give each a NAME=FILE of its own"),
        (["a/b=x.arrow"], "--validation a/b=x.arrow: is neither a file nor NAME=FILE: NAME has letters, digits, . _ -"),
        (["name="], "--validation name=: is neither a file nor NAME=FILE: NAME has letters, digits, . _ -"),
    ):
        with pytest.raises(UserError) as refused:
            named_files("--validation", values)
        assert (str(refused.value), refused.value.usage) == (message, True)
