"""How a run on Slurm ends that does not end well, or not at once: refused, cancelled, unanswered, out of time."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.followed import PROGRAM, SECRET, error_lines
from support.programs import BIN, ROOT, check, error_line, losses, run
from support.slurm_cluster import Cluster
from support.slurm_runs import local_job, started
from support.waiting import wait_until

pytestmark = pytest.mark.slow

PACED = ROOT / "tests" / "support" / "paced.py"


def test_job_cancelled_by_others(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    process, job_id, said = started(*tokenize, "-r", "slow", until="steps: preference-tokenize")
    cluster.slurm("scancel", job_id)
    assert process.wait(60) == 143
    (line,) = said.error_lines()
    assert line.startswith(f"job {job_id} was cancelled; the log is ")


SIGNALS = [(signal.SIGINT, 130, "slow"), (signal.SIGTERM, 143, "slow"), (signal.SIGINT, 130, "far_and_slow")]


@pytest.mark.parametrize(("number", "status", "profile"), SIGNALS)
def test_a_signal_cancels_the_job(
    here: Path, cluster: Cluster, tokenize: list[str], number: signal.Signals, status: int, profile: str
) -> None:
    process, job_id, said = started(*tokenize, "-r", profile, until="steps: preference-tokenize")
    process.send_signal(number)
    assert process.wait(60) == status
    assert cluster.wait_for(job_id, "CANCELLED")
    assert said.error_lines() == ["interrupted" if number == signal.SIGINT else "terminated"]


def test_ctrl_c_asks_once(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    terminal, inside = pty.openpty()
    process, job_id, said = started(*tokenize, "-r", "slow", until="steps: preference-tokenize", stdin=inside)
    process.send_signal(signal.SIGINT)
    said.wait_for(f"Cancel job {job_id}? [Y/n] ")
    os.write(terminal, b"n\n")
    time.sleep(1.5)
    assert psutil.pid_exists(process.pid)
    assert cluster.state(job_id) == "RUNNING"
    process.send_signal(signal.SIGINT)
    said.wait_for("Cancel job", times=2)
    os.write(terminal, b"y\n")
    assert process.wait(60) == 130
    assert cluster.wait_for(job_id, "CANCELLED")
    for descriptor in (terminal, inside):
        os.close(descriptor)


REFUSED = [
    ("bad_partition", "profile bad_partition: sbatch refused the job: Invalid partition name specified: the cluster has batch, interactive"),
    ("bad_account", "profile bad_account: sbatch refused the job: Invalid account or account/partition combination specified"),
    ("far_and_bad", "profile far_and_bad: sbatch refused the job: Invalid partition name specified: the cluster has batch, interactive"),
    ("denied", "login: cannot be reached: root@127.0.0.1: Permission denied (publickey)."),
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
    with _stopped_controller(cluster):
        done = run(PROGRAM, *tokenize, "-b", "base")
    assert done.returncode == 1
    (line,) = error_lines(done.stderr.decode())
    assert line.startswith(("profile base: sbatch refused the job: ", "sbatch: no answer within 30 s: it may be queued"))


def test_a_controller_that_restarts_is_borne(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    setup, there, go = here / "env.toml", here / "there", here / "go"
    # srun itself gives up on a controller that does not answer: so the step is there first
    waits = f"touch {there}; until test -e {go}; do sleep 0.1; done"
    setup.write_text(setup.read_text() + f'[brief]\nextends = "base"\nstartup_commands = ["{waits}"]\n')
    process, _, said = started(*tokenize, "-r", "brief", until="steps: preference-tokenize")
    wait_until(there.exists, seconds=60)
    with _stopped_controller(cluster):
        said.wait_for("still trying")
    wait_until(lambda: cluster.slurm("sinfo", "--noheader") != "", seconds=60)
    go.touch()
    assert process.wait(90) == 0, said.so_far()
    assert "4 pairs written" in said.whole()


def test_a_requeued_job_has_its_environment_again(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    setup = here / "env.toml"
    again = "[[ -e $NEMO_RUN_DIR/again ]] || { touch $NEMO_RUN_DIR/again; sleep 60; }; echo MY_WORD has ${#MY_WORD} letters"
    setup.write_text(setup.read_text() + f"[again]\nextends = \"base\"\nstartup_commands = ['{again}']\n")
    process, job_id, said = started(*tokenize, "-r", "again", until="steps: preference-tokenize")
    wait_until(lambda: (local_job(here) / "again").exists())
    cluster.slurm("scontrol", "requeue", job_id)
    assert process.wait(90) == 0
    assert f"MY_WORD has {len(SECRET)} letters" in said.whole()
    assert not (local_job(here) / "env.sh").exists()


def test_out_of_time_with_nothing_saved_is_the_end(here: Path, cluster: Cluster, tokenize: list[str]) -> None:
    process, job_id, said = started(*tokenize, "-r", "slow", until="steps: preference-tokenize")
    wait_until(lambda: "RUNNING" in cluster.slurm("squeue", "-h", "-s", "-j", job_id, "-o", "%i RUNNING"))
    # Slurm looks at its clock every minute, and sends the signal that the script asked for two minutes before the end
    cluster.slurm("scontrol", "update", f"JobId={job_id}", "EndTime=now+115")
    assert process.wait(110) == 124
    text = said.whole()
    assert "nemotron-steps: time is nearly up: preference-tokenize is told to save and end\n" in text
    assert "nothing was saved before time was up: raise time in the profile" in text


@pytest.mark.usefixtures("forks_on_nodes")
def test_out_of_time_and_preemption_save_and_the_job_goes_on(here: Path, cluster: Cluster, policy: Path) -> None:
    """The second is by a job of a partition that comes first, where jobs of this one have a minute to end."""
    dpo = ["run", "dpo", "-c", "tiny", f"policy.model_name={policy}", "data.train.limit=48", "data.validation=null"]
    dpo += [
        "dpo.max_num_epochs=40",
        "dpo.max_num_steps=24",
        "policy.train_global_batch_size=8",
        "checkpointing.save_optimizer=true",
        "checkpointing.save_period=100",
    ]
    with_time = shlex.join(["exec", "python", str(PACED), "0.4", str(BIN / "dpo_train.py")])
    (here / "forks" / "dpo-train").write_text(f'#!/bin/sh\n{with_time} "$@"\n')
    (here / "forks" / "dpo-train").chmod(0o755)
    process, job_id, said = started(*dpo, "-r", "forked", until="steps: dpo-train")
    _steps_more(3)
    cluster.slurm("scancel", "--batch", "--signal=USR1", job_id)  # what Slurm's clock sends in the test before
    said.wait_for("resuming after step")  # it was queued again, and has begun to train
    for partition, key, value in (("batch", "GraceTime", "60"), ("interactive", "PriorityTier", "10")):
        cluster.slurm("scontrol", "update", f"PartitionName={partition}", f"{key}={value}")
    _steps_more(3)
    first = cluster.slurm(
        "sbatch", "--parsable", "-p", "interactive", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true"
    )
    said.wait_for("resuming after step", times=2)
    for partition, key, value in (("batch", "GraceTime", "0"), ("interactive", "PriorityTier", "1")):
        cluster.slurm("scontrol", "update", f"PartitionName={partition}", f"{key}={value}")
    assert process.wait(150) == 0, said.so_far()
    assert cluster.state(first) == "COMPLETED"
    text = said.whole()
    assert text.count("nemotron-steps: time is nearly up: dpo-train is told to save and end\n") == 1
    assert text.count("nemotron-steps: requeued: it goes on from what was saved\n") == 2
    assert text.count("nemotron-steps: preference-tokenize train: done before\n") == 2
    assert text.count("resuming after step") == 2
    job = local_job(here)
    given = (job / "train.scored.arrow", "--policy", policy, "-c", job / "train.yaml", "--run-dir", here / "at-one-go")
    check("dpo-train", *given)
    assert len(losses(job / "run")) == 24
    assert losses(job / "run") == pytest.approx(losses(here / "at-one-go"), rel=1e-6)


@contextlib.contextmanager
def _stopped_controller(cluster: Cluster) -> Iterator[None]:
    controller = int((cluster.root / "slurm" / "run" / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(controller, signal.SIGCONT)


def _steps_more(number: int) -> None:
    """Wait until so many more steps were trained."""
    metrics = local_job(Path()) / "run" / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
    wait_until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= before + number, seconds=60)
