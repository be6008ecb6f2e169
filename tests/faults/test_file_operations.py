"""Every file operation of every stage fails once, with every error of the machine in turn, and is struck by SIGKILL once.

An error is one line that names what the user named. After a kill the outputs are absent or whole, and running again gives what
an undisturbed run gives, with nothing left beside it. The long part, of the stages that take seconds, is for --all-faults,
which writes the table of README.md, too.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemotron_dpo.published import _PLACE
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from support import faulty
from support.programs import check

ERRORS = (
    errno.EIO,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ENOMEM,
    errno.EMFILE,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EDQUOT,
)
QUICK = 8  # operations that the quick part tries of each
README = Path(__file__).with_name("README.md")
TRAIN = ("dpo.max_num_steps=2", "policy.train_global_batch_size=8", "checkpointing.save_period=1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    rows = (configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl").read_text().splitlines()[:16]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    write_policy([folder / "rows.jsonl"], folder / "policy")
    return folder


def _tokenize(inputs: Path, out: Path) -> list[object]:
    files = ("-o", out / "pairs.arrow", "--stats", out / "stats.json", "--rejects", out / "rejects.jsonl")
    return ["preference-tokenize", inputs / "rows.jsonl", *files, "--tokenizer", inputs / "policy"]


def _stages(inputs: Path) -> dict[str, list[object]]:
    """The stages that take seconds, by what they write below OUT; each has its inputs."""
    pairs, scored, run = inputs / "pairs.arrow", inputs / "scored.arrow", inputs / "run"
    if not run.exists():
        check("preference-tokenize", inputs / "rows.jsonl", "-o", pairs, "--tokenizer", inputs / "policy")
        check("ref-logprobs", pairs, "-o", scored, "--policy", inputs / "policy")
        check("dpo-train", scored, "--policy", inputs / "policy", "--run-dir", run, *TRAIN)
    out = inputs / "OUT"
    return {
        "ref-logprobs": [
            "ref-logprobs",
            pairs,
            "-o",
            out / "scored.arrow",
            "--policy",
            inputs / "policy",
            "--cache",
            out / "cache",
        ],
        "dpo-train": ["dpo-train", scored, "--policy", inputs / "policy", "--run-dir", out / "run", *TRAIN],
        "ckpt-export --to hf": ["ckpt-export", run, "-o", out / "hf", "--to", "hf"],
        "ckpt-export --to megatron": ["ckpt-export", inputs / "policy", "-o", out / "megatron", "--to", "megatron"],
        "dpo-report": ["dpo-report", run, "-o", out / "report.html"],
    }


def _anew(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()


def _content(out: Path) -> dict[str, str]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _spread(operations: list[faulty.Operation], number: int) -> list[faulty.Operation]:
    """That many of them, from the first to the last."""
    step = max(1, len(operations) / number)
    return [operations[int(place * step)] for place in range(min(number, len(operations)))]


def _fails_in_one_line(argv: Sequence[object], out: Path, operation: faulty.Operation, error: int) -> str:
    """Let `operation` fail and return what came of it; a stage may do without what it only clears away or remembers."""
    _anew(out)
    done = faulty.run(argv, out, at=operation.number, errno=error)
    what = f"{operation}: {errno.errorcode[error]}: {done.stderr}"
    assert "Traceback" not in done.stderr, what
    if done.returncode == 0:
        return "goes on"
    assert done.returncode == 1, what
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"{argv[0]}: error: {out}"), what
    assert os.strerror(error).lower() in line or "torch does not say why" in line, what
    assert not any(_PLACE.fullmatch(part) for part in Path(line.split(": ")[2]).parts), what
    return "one line"


def test_an_operation_that_fails_is_one_line(inputs: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    _anew(out)
    argv = _tokenize(inputs, out)
    tried = _spread(faulty.operations(argv, out, log), QUICK)
    ends = [
        _fails_in_one_line(argv, out, operation, error)
        for operation, error in zip(tried, itertools.cycle(ERRORS), strict=False)
    ]
    assert ends.count("one line") > len(tried) / 2


def test_after_a_kill_outputs_are_absent_or_whole(inputs: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    _anew(out)
    argv = _tokenize(inputs, out)
    tried = _spread(faulty.operations(argv, out, log), QUICK)
    whole = _content(out)
    assert whole
    for operation, how in zip(tried, itertools.cycle(("before", "half", "after")), strict=False):
        _anew(out)
        done = faulty.run(argv, out, at=operation.number, kill=how)
        assert done.returncode == -9, operation
        left = {name: digest for name, digest in _content(out).items() if not _PLACE.fullmatch(name.split("/")[0])}
        assert left.items() <= whole.items(), operation
        check(str(argv[0]), *argv[1:])
        assert _content(out) == whole, operation


@pytest.mark.faults
def test_every_operation_of_every_stage(inputs: Path, tmp_path: Path) -> None:
    """An hour. README.md's table is what came of it."""
    ends: dict[str, dict[str, int]] = {}
    out = inputs / "OUT"
    _anew(out)
    stages = {"preference-tokenize": _tokenize(inputs, out), **_stages(inputs)}
    for stage, argv in stages.items():
        _anew(out)
        log = tmp_path / f"{len(ends)}"
        of_stage = ends.setdefault(stage, {"operations": 0, "one line": 0, "goes on": 0})
        for operation, error in zip(faulty.operations(argv, out, log), itertools.cycle(ERRORS), strict=False):
            of_stage["operations"] += 1
            of_stage[_fails_in_one_line(argv, out, operation, error)] += 1
    before, _, _ = README.read_text().partition("| stage ")
    head = "| stage | kinds of operation | one line | goes on |\n| --- | --- | --- | --- |\n"
    README.write_text(
        before + head + "".join(f"| {stage} | {' | '.join(map(str, row.values()))} |\n" for stage, row in ends.items())
    )
