"""nemotron-steps on a real Slurm, whose two nodes are hosts of their own, reached here and through a real sshd."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support.followed import PROGRAM, SECRET, error_lines
from support.programs import check, losses, run
from support.slurm_cluster import Cluster
from support.slurm_runs import local_job

pytestmark = pytest.mark.slow


@pytest.mark.multiprocess
@pytest.mark.usefixtures("forks_on_nodes")
def test_two_nodes_train_the_local_curve(here: Path, cache: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    tiny = ["run", "dpo", "-c", "tiny", "dpo.max_num_steps=3", "data.train.limit=48", "data.validation=null"]
    check(PROGRAM, *tiny, "cluster.gpus_per_node=2", env=env)
    local = local_job(here)
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
def test_failing_job_gives_its_status_and_no_secret_away(
    here: Path, cluster: Cluster, tokenize: list[str], profile: str
) -> None:
    (here / "broken.jsonl").write_text('{"prompt": \n')
    lines, stop = set(), threading.Event()
    watcher = threading.Thread(target=_watch_command_lines, args=(lines, stop))
    watcher.start()
    done = run(PROGRAM, *tokenize, f"data.path={here / 'broken.jsonl'}", "data.on_error=fail", "-r", profile)
    stop.set()
    watcher.join()
    assert done.returncode == 1
    assert "broken.jsonl:1: " in done.stderr.decode()
    (line,) = error_lines(done.stderr.decode())
    assert line.startswith("job ")
    assert "failed (exit 1); it said why above; the log is " in line
    assert any("slurm_script" in line for line in lines)
    assert not [line for line in lines if SECRET in line]
    assert SECRET not in done.stderr.decode() + done.stdout.decode()
    kept = [path for path in here.rglob("*") if path.is_file() and path != here / "env.toml" and "workspace" not in path.parts]
    assert {"job.sh", "log.txt"} <= {path.name for path in kept}
    slurms = [path for name in ("log", "state", "spool") for path in (cluster.root / "slurm" / name).rglob("*")]
    assert any(path.name == "script" for path in slurms)  # the batch script, as the controller keeps it
    assert not [path for path in (*kept, *filter(Path.is_file, slurms)) if SECRET.encode() in path.read_bytes()]


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
    job = local_job(here)
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
    assert "was cancelled: what it depends on failed" in error_lines(done.stderr.decode())[0]
    assert list((here / "remote").glob("*.sqsh*")) == [here / "remote" / "nvcr_io_nvidia_nemo_25_11.sqsh.log"]


@pytest.mark.usefixtures("forks_on_nodes")
def test_a_sweep_of_dpo_holds_gpus_for_models_alone(here: Path, cluster: Cluster, policy: Path) -> None:
    """One reference pass, each part an array. The batch of one point is larger than its data: the other goes on."""
    dpo = ["run", "dpo", "-c", "tiny", f"policy.model_name={policy}", "data.train.limit=16", "data.validation=null"]
    dpo += ["dpo.max_num_steps=1", "--sweep", "policy.train_global_batch_size=8,64", "-r", "split"]
    done = run(PROGRAM, *dpo)
    said = done.stderr.decode()
    assert done.returncode == 1, said
    ids = next(line for line in said.splitlines() if "scancel" in line).partition("scancel ")[2].split()
    shown = cluster.slurm("sacct", "-n", "-P", "-X", "-j", ",".join(ids), "-o", "JobID,Partition,State,AllocTRES").splitlines()
    jobs = [line.replace("|", " ").partition(" billing")[0] + " GPU" * ("gres/gpu=1" in line) for line in shown]
    before, scores, first, main, last, compare = ids
    # a task that never began is in the accounting as what was left of its array, sometimes as it was before others left it
    jobs = [re.sub(rf"^{last}_\[(1-)?2\]", f"{last}_2", job) for job in jobs]
    wanted = [f"{job} interactive COMPLETED" for job in (before, f"{first}_1", f"{first}_2", f"{last}_1")]
    wanted += [f"{scores} batch COMPLETED GPU", f"{main}_1 batch COMPLETED GPU", f"{main}_2 batch FAILED GPU"]
    wanted += [f"{last}_2 interactive CANCELLED ", f"{compare} interactive FAILED"]
    assert sorted(map(str.strip, jobs)) == sorted(map(str.strip, wanted))
    assert "train_global_batch_size=8: done\n" in said
    assert (
        "train_global_batch_size=64: failed: dpo-train: error: policy.train_global_batch_size 64 is more than the 16 pairs"
        in said
    )
    good = next((here / ".nemotron" / "jobs").glob("*=8"))
    assert (good / "checkpoint_megatron" / "latest_checkpointed_iteration.txt").is_file()
    assert "16 pairs scored, 16 of them reused" in (good / "log.txt").read_text()  # scores come from the store
    (sweep,) = (here / ".nemotron" / "sweeps").iterdir()
    assert f"compared in {sweep}/compare.html" in done.stdout.decode()
    assert not list((here / ".nemotron" / "jobs").glob("*/*env.sh"))
