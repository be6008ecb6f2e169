"""What machines do to the programs: variables of other jobs, host names, loopback, the encoding of stdout, two at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.forking_python import forks_first
from support.kept_kernels import with_kernels
from support.programs import begin, check, command, error_line, run, torchrun

pytestmark = pytest.mark.slow  # every test starts programs, some of them several

ROWS = "".join(
    f'{{"prompt": "Name {n}.", "chosen": "It is {n}, as you say.", "rejected": "I cannot tell {n}."}}\n' for n in range(4)
)
QUICK = ("dpo.max_num_steps=1", "policy.train_global_batch_size=4", "policy.precision=float32", "checkpointing.enabled=false")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "rows.jsonl").write_text(ROWS)
    check("preference-tokenize", folder / "rows.jsonl", "-o", folder / "pairs.arrow", "--tokenizer", policy)
    return folder / "pairs.arrow"


def _environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables}


def test_a_program_that_joins_no_job_speaks_whatever_rank_is_left_over(tmp_path: Path, pairs: Path, policy: Path):
    environment = _environment(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    done = run("preference-tokenize", "missing.jsonl", "-o", "-", "--tokenizer", policy, env=environment)
    assert (done.returncode, error_line(done, "preference-tokenize")) == (1, "missing.jsonl: no such file")
    arguments = (pairs.with_name("rows.jsonl"), "-o", "-", "--tokenizer", policy)
    done = check("preference-tokenize", *arguments, env=environment)
    assert b"4 pairs written" in done.stderr
    assert done.stdout
    done = check("nemotron-steps", "list", env=environment)
    assert b"rl/nemo_rl/dpo" in done.stdout


def test_a_rank_without_a_job_is_no_job(tmp_path: Path, pairs: Path, policy: Path):
    done = check(
        "ref-logprobs", pairs, "-o", tmp_path / "s.arrow", "--policy", policy, env=_environment(RANK="1", LOCAL_RANK="1")
    )
    assert b"4 pairs scored" in done.stderr


def test_half_a_job_is_refused_in_one_line(tmp_path: Path, pairs: Path, policy: Path):
    done = run("ref-logprobs", pairs, "-o", tmp_path / "s.arrow", "--policy", policy, env=_environment(WORLD_SIZE="2"))
    assert done.returncode == 2
    assert error_line(done, "ref-logprobs").endswith("RANK does not say which: start it with torchrun, or unset WORLD_SIZE")
    environment = _environment(WORLD_SIZE="2", RANK="0", TORCHELASTIC_RUN_ID="x")
    done = run("ckpt-export", policy, "-o", tmp_path / "out", "--to", "megatron", env=environment)
    assert error_line(done, "ckpt-export") == "works alone and was started as 2 processes: start it without torchrun"


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_for_others_is_said_and_ends_by_signal(tmp_path: Path, pairs: Path, policy: Path, number: signal.Signals):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = _environment(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    process, said = begin("ref-logprobs", pairs, "-o", tmp_path / "s.arrow", "--policy", policy, env=environment)
    with said:
        waits = f"ref-logprobs: waits for 1 of 2 processes at 127.0.0.1:{port} (WORLD_SIZE=2)\n"
        assert said.readline().decode() == waits
        process.send_signal(number)
        rest = said.read().decode()
    status, word = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}[number]
    assert (process.wait(60), rest) == (status, f"ref-logprobs: error: {word}\n")


@pytest.mark.multiprocess
def test_processes_that_no_torchrun_started_meet(tmp_path: Path, pairs: Path, policy: Path):
    torchrun(2, "ref-logprobs", pairs, "-o", tmp_path / "two.arrow", "--policy", policy, "--precision", "float32")
    check("ref-logprobs", pairs, "-o", tmp_path / "one.arrow", "--policy", policy, "--precision", "float32")
    assert _scores(tmp_path / "two.arrow") == pytest.approx(_scores(tmp_path / "one.arrow"), abs=1e-5)


def _scores(path: Path) -> list[float]:
    from nemotron_dpo.streams import open_reader

    with open_reader(path, "scored_pairs") as reader:
        return [value for row in reader.read_all()["ref_chosen_logps"].to_pylist() for value in row]


def _can_unshare() -> bool:
    argv = ["unshare", "-n", "-u", "ip", "link", "set", "lo", "up"]
    return bool(shutil.which("unshare") and shutil.which("ip")) and subprocess.run(argv, capture_output=True).returncode == 0


@pytest.mark.multiprocess
@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_two_processes_on_a_machine_whose_name_means_nothing(tmp_path: Path, policy: Path, loopback: str):
    """And whose loopback has the one address alone."""
    if not _can_unshare():
        pytest.skip("needs root, unshare and ip")
    other = {"127.0.0.1": "::1/128", "::1": "127.0.0.1/8"}[loopback]
    (tmp_path / "rows.jsonl").write_text(ROWS)
    data = (f"data.path={tmp_path}/rows.jsonl", f"policy.model_name={policy}", "precision=float32", "cluster.gpus_per_node=2")
    argv = ["run", "eval/preference_score", *data]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = f'ip link set lo up; ip addr del {other} dev lo; hostname no-such-host-here; {{find}}; nemotron-steps "$@"'
    with forks_first(tmp_path / "forks") as find:
        alone = ["unshare", "-n", "-u", "sh", "-c", script.format(find=find), "sh", *argv]
        done = subprocess.run(alone, cwd=tmp_path, capture_output=True, timeout=200, env=_environment(PATH=path))
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"ref-logprobs: 4 pairs scored" in done.stderr


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_names_that_stdout_cannot_write(tmp_path: Path, policy: Path, encoding: dict[str, str]):
    folder = tmp_path / "\u00e9"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(ROWS)
    (tmp_path / "c.yaml").write_text(f"data: {{train: {{prompt_file: '{folder}/rows.jsonl'}}}}\n", encoding="utf-8")
    arguments = ("run", "dpo", "-c", tmp_path / "c.yaml", f"policy.model_name={policy}", "--dry-run")
    done = check("nemotron-steps", *arguments, env=_environment(**encoding), cwd=tmp_path)
    escaped = b"\\xe9" if "PYTHONIOENCODING" in encoding else "\u00e9".encode()
    assert b"preference-tokenize '" + str(tmp_path).encode() + b"/" + escaped + b"/rows.jsonl'" in done.stdout
    assert b"no such file" not in done.stderr


def test_tilde_in_options_and_configs(tmp_path: Path, pairs: Path, policy: Path):
    with_kernels(tmp_path / "home" / ".cache")
    shutil.copy(pairs, tmp_path / "home" / "pairs.arrow")
    environment = _environment(HOME=str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    sft = ("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "dpo.max_num_steps=1", "policy.train_global_batch_size=4")
    overrides = (*sft, "policy.precision=float32", "checkpointing.checkpoint_dir=~/kept")
    check("dpo-train", "~/pairs.arrow", "--policy", policy, "--run-dir=~/run", *overrides, cwd=work, env=environment)
    assert (tmp_path / "home" / "kept" / "step_1").is_dir()
    assert (tmp_path / "home" / "run" / "metrics.jsonl").is_file()
    assert list(work.iterdir()) == []
    (tmp_path / "home" / "rows.jsonl").write_text(ROWS)
    (work / "c.yaml").write_text("data: {train: {prompt_file: ~/rows.jsonl}}\n")
    done = check("nemotron-steps", "run", "dpo", "-c", "c.yaml", f"policy.model_name={policy}", "-d", cwd=work, env=environment)
    assert str(tmp_path / "home" / "rows.jsonl").encode() in done.stdout
    assert b"no such file" not in done.stderr


def test_an_input_is_never_written_over(tmp_path: Path, pairs: Path, policy: Path):
    rows, stream = tmp_path / "rows.jsonl", tmp_path / "pairs.arrow"
    rows.write_text(ROWS)
    shutil.copy(pairs, stream)
    tokenize, tokenizer = ("preference-tokenize", rows), ("--tokenizer", policy)
    calls = [
        ((*tokenize, "-o", rows, *tokenizer), f"{rows}: -o would be written over what is read: {rows}: name another file"),
        ((*tokenize, "-o", tmp_path / "x", *tokenizer, "--stats", rows), f"{rows}: --stats would be written over what is read"),
        ((*tokenize, "-o", tmp_path / "x", *tokenizer, "--rejects", tmp_path / "x"), "x: is named by -o and by --rejects"),
        (("ref-logprobs", stream, "-o", stream, "--policy", policy), f"{stream}: -o would be written over what is read"),
        (
            ("ref-logprobs", stream, "-o", policy / "tokenizer.json", "--policy", policy),
            "-o would be written over what is read",
        ),
    ]
    before = {path: path.read_bytes() for path in (rows, stream, policy / "tokenizer.json")}
    for argv, message in calls:
        done = run(*argv)
        assert done.returncode == 2
        assert message in error_line(done, str(argv[0]))
    with rows.open("ab") as appended:  # cat refuses this too
        done = subprocess.run(command(*tokenize, "-o", "-", *tokenizer), stdout=appended, stderr=subprocess.PIPE)
    assert b"<stdout>: -o would be written over what is read" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("closed", "source", "output"), [(">&-", "rows.jsonl", "-"), ("<&-", "-", "out.arrow")])
def test_a_standard_stream_that_is_closed_is_one_line(tmp_path: Path, policy: Path, closed: str, source: str, output: str):
    """As cron and daemons start programs; the file that is opened next must not take its place."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    argv = command("preference-tokenize", source, "-o", output, "--tokenizer", policy)
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *argv], cwd=tmp_path, stderr=subprocess.PIPE, timeout=100)
    assert (done.returncode, done.stderr) == (1, b"preference-tokenize: error: bad file descriptor\n")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_nobody_who_listens_is_no_error(tmp_path: Path, policy: Path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    argv = command("preference-tokenize", "rows.jsonl", "-o", "out.arrow", "--tokenizer", policy)
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *argv], cwd=tmp_path, timeout=100)
    assert done.returncode == 0
    assert (tmp_path / "out.arrow").stat().st_size > 1000


def test_two_runs_in_one_folder(tmp_path: Path, pairs: Path, policy: Path):
    """The first waits for its input; the second must not touch what is there."""
    folder = tmp_path / "run"
    source, feed = os.pipe()
    first, said = begin("dpo-train", "-", "--policy", policy, "--run-dir", folder, *QUICK, stdin=source)
    os.close(source)
    deadline = time.monotonic() + 120
    while not (folder / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    done = run("dpo-train", pairs, "--policy", policy, "--run-dir", folder, *QUICK)
    assert done.returncode == 1
    message = f"{folder}: another dpo-train works in it (process {first.pid} on {socket.gethostname()}): wait for it, or name"
    assert error_line(done, "dpo-train").startswith(message)
    os.close(feed)
    with said:
        assert b"dpo-train: error: " in said.read()
    assert first.wait(60) == 1  # nothing came through its pipe
    assert not folder.exists()
