"""Slurm's answers, as its commands print them, and what each end of a job means; commands that hang are given up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.shared.follow import Follower, JobState, NoAnswer, ending
from nemotron_dpo.steps.executors.slurm.asked import Asked
from nemotron_dpo.steps.executors.slurm.client import SlurmClient, SlurmJob
from nemotron_dpo.steps.executors.slurm.launch import fitting
from nemotron_dpo.steps.executors.slurm.tunnel import LocalTunnel

# name, reason, code, signal -> our status and line
ENDINGS = [
    (("COMPLETED", "None", 0, 0), 0, None),
    (("FAILED", "NonZeroExitCode", 7, 0), 7, "job 5 failed (exit 7); it said why above"),
    (("FAILED", "RaisedSignal:9(Killed)", 0, 9), 137, "job 5 was killed by signal 9; its last words are above"),
    (("CANCELLED", "None", 143, 0), 143, "job 5 was cancelled"),
    (("CANCELLED", "DependencyNeverSatisfied", 0, 0), 143, "job 5 was cancelled: what it depends on failed"),
    (("TIMEOUT", "TimeLimit", 0, 0), 124, "job 5 ran out of time: raise time in the profile"),
    (
        ("OUT_OF_MEMORY", "OutOfMemory", 0, 125),
        137,
        "job 5 ran out of memory: raise mem in the profile, or make batches smaller",
    ),
    (("NODE_FAIL", "NodeFail", 1, 0), 1, "job 5 ended as node_fail: NodeFail"),
    (("BOOT_FAIL", "None", 0, 0), 1, "job 5 ended as boot_fail"),
]


@pytest.mark.parametrize(("state", "status", "line"), ENDINGS)
def test_endings(state: tuple[str, str, int, int], status: int, line: str | None):
    ended = JobState(*state)
    assert ended.has_ended
    assert (ending(ended, "5").status, ending(ended, "5").line) == (status, line)


@pytest.mark.parametrize("name", ["PENDING", "RUNNING", "COMPLETING", "REQUEUE_HOLD", "SUSPENDED"])
def test_what_has_not_ended(name: str):
    assert not JobState(name, "None", 0, 0).has_ended


@dataclass(frozen=True)
class Recorded:
    """A tunnel to answers that were written down: program -> (status, stdout, stderr)."""

    answers: Mapping[str, tuple[int, str, str]]
    asked: list[Sequence[str]] = field(default_factory=list)
    pause_seconds: float = 0.0

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = 30) -> subprocess.CompletedProcess[bytes]:
        self.asked.append(argv)
        status, stdout, stderr = self.answers[argv[0]]
        return subprocess.CompletedProcess(argv, status, stdout.encode(), stderr.encode())

    def by_hand(self, argv: Sequence[str]) -> str:
        return " ".join(argv)


# as Slurm 22.05 printed it
SHOWN = "JobId=3 JobName=j.sh JobState=FAILED Reason=NonZeroExitCode Dependency=(null) Requeue=1 Restarts=0 ExitCode=7:0\n"
FORGOTTEN = (1, "", "slurm_load_jobs error: Invalid job id specified\n")


def test_state_from_the_controller_or_the_accounts():
    assert SlurmClient(Recorded({"scontrol": (0, SHOWN, "")})).state("3") == JobState("FAILED", "NonZeroExitCode", 7, 0)
    client = SlurmClient(Recorded({"scontrol": FORGOTTEN, "sacct": (0, "CANCELLED by 0|0:15\n", "")}))
    assert client.state("3") == JobState("CANCELLED", "None", 0, 15)
    with pytest.raises(UserError, match="job 3: Slurm no longer knows this job, and sacct does not either"):
        SlurmClient(Recorded({"scontrol": FORGOTTEN, "sacct": (0, "", "")})).state("3")
    down = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    with pytest.raises(NoAnswer, match="Unable to contact"):
        SlurmClient(Recorded({"scontrol": down})).state("3")


def test_submitting_to_a_federation_and_without_slurm():
    assert SlurmClient(Recorded({"bash": (0, "17;cluster\n", "")})).submit([], "x") == "17"
    with pytest.raises(UserError, match="sbatch: no such program there: run on the cluster, or name a login node by host"):
        SlurmClient(Recorded({"bash": (127, "", "bash: sbatch: command not found\n")})).submit([], "x")


REFUSALS = [
    ("Requested node configuration is not available", "cpus_per_task, mem or gpus_per_node is more than a node has"),
    ("Invalid generic resource (gres) specification", "where Slurm does not count GPUs, write gpus_per_node = 0 and nproc_per_node"),
    ("Invalid partition name specified", "the cluster has a, b"),
    ("Invalid qos specification", None),
]  # fmt: skip


def test_what_slurm_refuses_has_a_remedy_where_one_is_known():
    for reason, remedy in REFUSALS:
        stderr = f"sbatch: error: Batch job submission failed: {reason}\n"
        client = SlurmClient(Recorded({"bash": (1, "", stderr), "sinfo": (0, "b\na\n", "")}))
        with pytest.raises(UserError) as refused:
            client.submit([], "x")
        assert (refused.value.message, refused.value.remedy) == (f"sbatch refused the job: {reason}", remedy)


SBATCH = '#!/bin/bash\n{ printf "%s\\n" "$@"; compgen -e | grep ^SLURM; } >"$HERE/asked"; echo 7\n'


def test_another_jobs_variables_are_not_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Submitted from a job of Slurm, whose sizes are in the environment; and a script's options win over SBATCH_ variables."""
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "job.sh").write_text("#!/bin/bash\n#SBATCH --partition=p\n#SBATCH --requeue\necho\n")
    for name, value in {"SLURM_MEM_PER_CPU": "1", "SLURM_ARRAY_JOB_ID": "3", "SLURM_CONF": "c", "HERE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in [
        name for name in os.environ if name.startswith("SLURM_") and name[6:] not in ("MEM_PER_CPU", "ARRAY_JOB_ID", "CONF")
    ]:
        monkeypatch.delenv(name)
    assert SlurmClient(LocalTunnel()).submit(["--output=o"], str(tmp_path / "job.sh")) == "7"
    words = ["--parsable", "--partition=p", "--requeue", "--output=o", str(tmp_path / "job.sh")]
    assert (tmp_path / "asked").read_text().splitlines() == [*words, "SLURM_CONF"]


def test_silence_is_borne_for_a_while():
    said: list[str] = []
    down = (1, "", "Unable to contact slurm controller\n")
    job = SlurmJob(SlurmClient(Recorded({"scontrol": down})), "5", "/log")
    follower = Follower(job, "5", "/log", lambda content: None, said.append, 0.05)
    with pytest.raises(UserError, match="job 5 goes on without us; its log is /log"):
        follower.follow()
    assert said == ["warning: scontrol: Unable to contact slurm controller: still trying"]


def test_a_command_that_hangs_is_given_up():
    with pytest.raises(NoAnswer) as gone:
        LocalTunnel().run(["sleep", "60"], seconds=0.2)
    assert str(gone.value) == "sleep: no answer within 0.2 s"


def test_no_slurm_here():
    with pytest.raises(UserError, match="no-such-sbatch: no such program here"):
        LocalTunnel().run(["no-such-sbatch"])


def test_a_guess_at_cpus_is_no_more_than_nodes_have():
    """As sinfo prints them: two kinds of nodes in one partition, a plus where there are more in some, a star at the default."""
    client = SlurmClient(Recorded({"sinfo": (0, "gpu* 96+\ngpu* 64\nsmall 2\n", "")}))
    for partition, there in [(None, 64), ("gpu", 64), ("small", 2), ("gpu,small", 2), ("other", None)]:
        assert client.cpus_of_node(partition) == there
    for asked, options in [
        (Asked("small", None, cpus=8, guessed=True), ["--cpus-per-task=2"]),
        (Asked("small", None, cpus=8), []),
        (Asked("gpu", None, cpus=64, guessed=True), []),
        (Asked("other", None, cpus=64, guessed=True), []),
        (Asked("small", None, guessed=True), []),
    ]:
        said: list[str] = []
        assert fitting(client, asked, said.append) == options
        assert len(said) == len(options)
