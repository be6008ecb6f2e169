"""nemotron-steps on Slurm: a real one, whose two nodes are hosts of their own, reached here and through a real sshd."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemotron_dpo.steps.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from programs import check, command, error_line, losses, run
from slurm_cluster import Cluster, slurm_cluster

PROGRAM = "nemotron-steps"
DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl"
SECRET = "planted-by-the-test-0123456789"
PROFILES = """
[wandb]
project = "aligned"
[base]
executor = "slurm"
account = "test"
time = 00:10:00
env_vars = {{ MY_WORD = "{secret}", OMP_NUM_THREADS = "1" }}
[two]
extends = "base"
nodes = 2
ntasks_per_node = 1
[slow]
extends = "base"
startup_commands = ["sleep 120"]
[far]
extends = "base"
host = "login"
user = "root"
identity = "{key}"
remote_job_dir = "{folder}/remote"
workspace = "{folder}/workspace"
[far_and_bad]
extends = "far"
partition = "none"
[nobody]
extends = "far"
host = "nobody"
[bad_partition]
extends = "base"
partition = "none"
[bad_account]
extends = "base"
account = "none"
[image]
extends = "base"
remote_job_dir = "{folder}/remote"
container_image = "nvcr.io/nvidia/nemo:25.11"
build_partition = "interactive"
build_time = "00:05:00"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster() as up:
        yield up


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy with a tokenizer."""
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([DATA], folder)
    return folder


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with env.toml and the workspace of a login node, in an environment that finds the cluster."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / ".venv").symlink_to(sys.prefix)
    (workspace / "configs").symlink_to(configs_root())
    (tmp_path / "env.toml").write_text(PROFILES.format(secret=SECRET, key=cluster.key, folder=tmp_path))
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tokenize(policy: Path) -> list[str]:
    """A step of one quick stage."""
    return ["run", "data_prep/preference_tokenize", f"data.path={DATA}", f"tokenizer={policy}", "data.limit=4"]


def _local_job(folder: Path) -> Path:
    (job,) = (folder / ".nemotron" / "jobs").iterdir()
    return job


def _last_error(done: subprocess.CompletedProcess[bytes]) -> str:
    return error_lines(done.stderr)[-1]


def error_lines(stderr: bytes) -> list[str]:
    start = f"{PROGRAM}: error: "
    return [line.removeprefix(start) for line in stderr.decode().splitlines() if line.startswith(start)]


def _started(*arguments: str, until: str, **options: object) -> tuple[subprocess.Popen[bytes], str, list[bytes]]:
    """An attached run that has said `until`: its process, the id of its job, and the lines it says."""
    process = subprocess.Popen(command(PROGRAM, *arguments), stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    said: list[bytes] = []
    assert process.stderr
    descriptor = process.stderr.fileno()
    for line in process.stderr:
        said.append(line)
        if until in line.decode():
            break
    job_id = next(line.split()[2].decode() for line in said if b"is submitted" in line)
    rest = iter(lambda: os.read(descriptor, 1 << 16), b"")  # by chunks: a question does not end its line
    threading.Thread(target=lambda: said.extend(rest), daemon=True).start()
    return process, job_id, said


@pytest.mark.multiprocess
def test_two_nodes_train_the_local_curve(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp()
    cache = (root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "cache"
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    tiny = ["run", "dpo", "-c", "tiny", "dpo.max_num_steps=3", "data.train.limit=48", "data.validation=null"]
    check(PROGRAM, *tiny, "cluster.gpus_per_node=2", env=env)
    local = _local_job(here)
    done = check(PROGRAM, *tiny, "-r", "two", env=env)
    job = next(folder for folder in local.parent.iterdir() if folder != local)
    assert len(losses(job / "run")) == 3
    assert losses(job / "run") == pytest.approx(losses(local / "run"), rel=1e-6)
    assert f"checkpoint  {job}/checkpoint_megatron" in done.stdout.decode()
    assert (job / "checkpoint_megatron" / "latest_checkpointed_iteration.txt").is_file()
    said, log = done.stderr.decode().splitlines(), (job / "log.txt").read_text().splitlines()
    assert f"dpo-train: saved {job}/run/checkpoints/step_3" in log
    assert [line for line in said if line in log] == log


@pytest.mark.parametrize("profile", ["base", "far"])
def test_attached_run_streams_and_succeeds(here: Path, tokenize: list[str], profile: str) -> None:
    done = check(PROGRAM, *tokenize, "-r", profile)
    said = done.stderr.decode()
    assert "preference-tokenize: 4 rows read, 4 pairs written" in said
    place = here / "remote" if profile == "far" else here / ".nemotron" / "jobs"
    (folder,) = place.iterdir()
    assert f"tokenized_pairs: {folder}/pairs.arrow" in done.stdout.decode()
    assert "rows: 4" in done.stdout.decode()
    assert (folder / "pairs.arrow").is_file()


@pytest.mark.parametrize("profile", ["base", "far"])
def test_failing_job_gives_its_status_and_no_secret_away(here: Path, tokenize: list[str], profile: str) -> None:
    (here / "broken.jsonl").write_text('{"prompt": \n')
    lines, stop = set(), threading.Event()
    watcher = threading.Thread(target=_watch_command_lines, args=(lines, stop))
    watcher.start()
    done = run(PROGRAM, *tokenize, f"data.path={here / 'broken.jsonl'}", "data.on_error=fail", "-r", profile)
    stop.set()
    watcher.join()
    assert done.returncode == 1
    assert "broken.jsonl:1: " in done.stderr.decode()
    (line,) = error_lines(done.stderr)
    assert line.startswith("job ")
    assert "failed (exit 1); it said why above; the log is " in line
    assert any("slurm_script" in line for line in lines)
    assert not [line for line in lines if SECRET in line]
    assert SECRET not in done.stderr.decode() + done.stdout.decode()
    kept = [path for path in here.rglob("*") if path.is_file() and path != here / "env.toml" and "workspace" not in path.parts]
    assert {"job.sh", "log.txt"} <= {path.name for path in kept}
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


def _watch_command_lines(lines: set[str], stop: threading.Event) -> None:
    """Note the command line of every process on this machine, hosts of the cluster included."""
    while not stop.wait(0.02):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.add(path.read_bytes().decode(errors="replace").replace("\0", " "))
            except OSError:
                continue  # it has just ended


def test_the_job_sees_its_environment(here: Path, tokenize: list[str]) -> None:
    setup = here / "env.toml"
    setup.write_text(setup.read_text() + '[shown]\nextends = "base"\nrun_command = "env > $NEMO_RUN_DIR/seen; {script}"\n')
    check(PROGRAM, *tokenize, "-r", "shown")
    job = _local_job(here)
    seen = (job / "seen").read_text().splitlines()
    assert {f"MY_WORD={SECRET}", "WANDB_PROJECT=aligned", f"NEMO_RUN_DIR={job}"} <= set(seen)


@pytest.mark.parametrize("profile", ["slow", "far"])
def test_detached_run_says_how_to_follow_and_cancel(here: Path, cluster: Cluster, tokenize: list[str], profile: str) -> None:
    if profile == "far":
        setup = here / "env.toml"
        setup.write_text(setup.read_text().replace('host = "login"', 'host = "login"\nstartup_commands = ["sleep 120"]'))
    job_id, follow, cancel = check(PROGRAM, *tokenize, "-b", profile).stdout.decode().splitlines()
    place = here / "remote" if profile == "far" else here / ".nemotron" / "jobs"
    (folder,) = place.iterdir()
    secrets = folder / "env.sh"
    assert not secrets.exists() or secrets.stat().st_mode & 0o777 == 0o600
    cluster.wait_for(job_id, "RUNNING")
    for _ in range(100):
        if not secrets.exists():
            break
        time.sleep(0.1)
    assert not secrets.exists()
    follower = subprocess.Popen(shlex.split(follow.removeprefix("follow it: ")), stdout=subprocess.PIPE)
    assert follower.stdout
    assert follower.stdout.readline() == b"nemotron-steps: preference-tokenize\n"
    follower.terminate()
    follower.wait()
    follower.stdout.close()
    subprocess.run(shlex.split(cancel.removeprefix("cancel it: ")), check=True)
    cluster.wait_for(job_id, "CANCELLED")
    assert not secrets.exists()


def test_job_cancelled_by_others(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    process, job_id, said = _started(*tokenize, "-r", "slow", until="steps: preference-tokenize")
    cluster.slurm("scancel", job_id)
    assert process.wait(60) == 143
    time.sleep(0.2)
    (line,) = error_lines(b"".join(said))
    assert line.startswith(f"job {job_id} was cancelled; the log is ")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_job(here: Path, cluster: Cluster, tokenize: list[str], number: int, status: int) -> None:
    process, job_id, said = _started(*tokenize, "-r", "slow", until="steps: preference-tokenize", stdin=subprocess.DEVNULL)
    process.send_signal(number)
    assert process.wait(60) == status
    assert cluster.wait_for(job_id, "CANCELLED")
    time.sleep(0.2)
    assert error_lines(b"".join(said)) == ["interrupted" if number == signal.SIGINT else "terminated"]


def test_ctrl_c_asks_once(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    terminal, inside = pty.openpty()
    process, job_id, said = _started(*tokenize, "-r", "slow", until="steps: preference-tokenize", stdin=inside)
    process.send_signal(signal.SIGINT)
    _until(lambda: f"Cancel job {job_id}? [Y/n] ".encode() in b"".join(said))
    os.write(terminal, b"n\n")
    time.sleep(1.5)
    assert process.poll() is None
    assert cluster.state(job_id) == "RUNNING"
    process.send_signal(signal.SIGINT)
    _until(lambda: b"".join(said).count(b"Cancel job") == 2)
    os.write(terminal, b"y\n")
    assert process.wait(60) == 130
    assert cluster.wait_for(job_id, "CANCELLED")
    for descriptor in (terminal, inside):
        os.close(descriptor)


def _until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


REFUSED = [
    ("bad_partition", "profile bad_partition: sbatch refused the job: Invalid partition name specified: the cluster has batch, interactive"),  # noqa: E501
    ("bad_account", "profile bad_account: sbatch refused the job: Invalid account or account/partition combination specified"),
    ("far_and_bad", "profile far_and_bad: sbatch refused the job: Invalid partition name specified: the cluster has batch, interactive"),  # noqa: E501
    ("nobody", "nobody: cannot be reached: ssh: connect to host 127.0.0.1 port 1: Connection refused"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["-r", "-b"])
@pytest.mark.parametrize(("profile", "line"), REFUSED)
def test_what_is_refused_is_one_line_and_leaves_nothing(
    here: Path, tokenize: list[str], profile: str, line: str, how: str
) -> None:
    done = run(PROGRAM, *tokenize, how, profile)
    assert (done.returncode, error_line(done, PROGRAM)) == (1, line)
    for folder in (here / ".nemotron" / "jobs", here / "remote"):
        assert not folder.exists() or list(folder.iterdir()) == []


def test_a_scheduler_that_does_not_answer(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    controller = int((cluster.root / "slurm" / "run" / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        done = run(PROGRAM, *tokenize, "-b", "base")
    finally:
        os.kill(controller, signal.SIGCONT)
    assert done.returncode == 1
    (line,) = error_lines(done.stderr)
    assert line.startswith(("profile base: sbatch refused the job: ", "sbatch: no answer within 30 s: it may be queued"))


def test_a_controller_that_restarts_is_borne(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    setup = here / "env.toml"
    setup.write_text(setup.read_text() + '[brief]\nextends = "base"\nstartup_commands = ["sleep 12"]\n')
    process, _, said = _started(*tokenize, "-r", "brief", until="steps: preference-tokenize")
    controller = int((cluster.root / "slurm" / "run" / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    _until(lambda: b"still trying" in b"".join(said), seconds=60)
    os.kill(controller, signal.SIGCONT)
    assert process.wait(90) == 0
    time.sleep(0.2)
    assert b"4 pairs written" in b"".join(said)


def test_a_requeued_job_has_its_environment_again(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    setup = here / "env.toml"
    again = "[[ -e $NEMO_RUN_DIR/again ]] || { touch $NEMO_RUN_DIR/again; sleep 60; }; echo MY_WORD has ${#MY_WORD} letters"
    setup.write_text(setup.read_text() + f"[again]\nextends = \"base\"\nstartup_commands = ['{again}']\n")
    process, job_id, said = _started(*tokenize, "-r", "again", until="steps: preference-tokenize")
    _until(lambda: (_local_job(here) / "again").exists())
    cluster.slurm("scontrol", "requeue", job_id)
    assert process.wait(90) == 0
    time.sleep(0.2)
    assert f"MY_WORD has {len(SECRET)} letters" in b"".join(said).decode()
    assert not (_local_job(here) / "env.sh").exists()


def test_out_of_time_with_nothing_saved_is_the_end(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    process, job_id, said = _started(*tokenize, "-r", "slow", until="steps: preference-tokenize")
    _until(lambda: "RUNNING" in cluster.slurm("squeue", "-h", "-s", "-j", job_id, "-o", "%i RUNNING"))
    cluster.slurm("scancel", "--batch", "--signal=USR1", job_id)  # as Slurm does by --signal=B:USR1@...
    assert process.wait(60) == 124
    time.sleep(0.2)
    assert "nothing was saved before time was up: raise time in the profile" in b"".join(said).decode()


def test_out_of_time_saves_is_requeued_and_resumes(here: Path, cluster: Cluster, policy: Path) -> None:
    dpo = ["run", "dpo", "-c", "tiny", f"policy.model_name={policy}", "data.train.limit=48", "data.validation=null"]
    dpo += [
        "dpo.max_num_epochs=40",
        "dpo.max_num_steps=60",
        "checkpointing.save_optimizer=true",
        "checkpointing.save_period=100",
    ]
    process, job_id, said = _started(*dpo, "-r", "base", until="steps: dpo-train")
    metrics = _local_job(here) / "run" / "metrics.jsonl"
    _until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3)
    cluster.slurm("scancel", "--batch", "--signal=USR1", job_id)
    assert process.wait(150) == 0
    time.sleep(0.2)
    text = b"".join(said).decode()
    assert "nemotron-steps: requeued: it goes on from what was saved\n" in text
    assert "nemotron-steps: preference-tokenize train: done before\n" in text
    assert "resuming after step" in text
    job = _local_job(here)
    given = (job / "train.scored.arrow", "--policy", policy, "-c", job / "train.yaml", "--run-dir", here / "at-one-go")
    check("dpo-train", *given)
    assert len(losses(job / "run")) == 60
    assert losses(job / "run") == pytest.approx(losses(here / "at-one-go"), rel=1e-6)


ENROOT = """#!/bin/bash
[[ $1 == import && $2 == --output ]] || exit 9
printf '%s\\n' "$4" >"$3"
"""


def test_image_is_imported_once(here: Path, cluster: Cluster, tokenize: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for enroot; the job itself fails, for want of Pyxis, on the option that names the squash file."""
    (here / "tools").mkdir()
    (here / "tools" / "enroot").write_text(ENROOT)
    (here / "tools" / "enroot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'tools'}:{os.environ['PATH']}")
    squash = here / "remote" / "nvcr_io_nvidia_nemo_25_11.sqsh"
    for arguments, left, imports in (
        ([], "docker://nvcr.io#nvidia/nemo:25.11\n", True),
        ([], "kept", False),
        (["--force-squash"], "docker://nvcr.io#nvidia/nemo:25.11\n", True),
    ):
        done = run(PROGRAM, *tokenize, *arguments, "-r", "image")
        assert done.returncode == 255  # what srun ends with
        assert b"unrecognized option '--container-image=" in done.stderr
        assert (b" imports nvcr.io/nvidia/nemo:25.11 to " in done.stderr) == imports
        assert squash.read_text() == left
        squash.write_text("kept")


def test_an_image_that_cannot_be_imported_ends_the_job(here: Path, tokenize: list[str]) -> None:
    done = run(PROGRAM, *tokenize, "-r", "image")  # there is no enroot
    assert done.returncode == 143
    assert "was cancelled: what it depends on failed" in error_lines(done.stderr)[0]
    assert list((here / "remote").glob("*.sqsh*")) == [here / "remote" / "nvcr_io_nvidia_nemo_25_11.sqsh.log"]
