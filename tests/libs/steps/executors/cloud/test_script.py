"""The job's own script, run by bash: what was typed is only ever words, nodes wait for each other, and the end is told."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.executors.cloud import launch
from nemotron_dpo.steps.executors.lepton.executor import PLACE
from nemotron_dpo.steps.profiles.profile import Profile

HOSTILE = ["$(touch x)", "`touch x`", "'; touch x #", "a\nb", "\\", "*", "~", "-x", "$SAID", "{script}", ""]
PROGRAM = '#!/bin/bash\nprintf "%s\\0" "$@" >"$NEMO_RUN_DIR/received"\n'


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))


def written(root: Path, *stages: Stage, num_nodes: int = 1, **settings: object) -> Path:
    """The folder of a job with these stages, as it arrives on the nodes' storage."""
    mount = {"path": "/", "mount_path": str(root), "from": "x"}
    keys = {"executor": "lepton", "container_image": "i", "node_group": "g", "resource_shape": "s"}
    profile = Profile("mine", "lepton", {}, {**keys, "nemo_run_dir": f"{root}/jobs", "mounts": [mount], **settings})
    plan = Plan(Path("20261125-000000-a-step"), Path("run"), None, {}, None, stages, {}, num_nodes)
    made = PLACE.prepare(plan, profile, num_nodes=num_nodes, checkpoint_dir=None, attached=True)
    folder = Path(made.facts.folder)
    folder.mkdir(parents=True)
    for name, text in made.files.items():
        (folder / name).write_text(text)
    return folder


def start(folder: Path, node: int = 0, **env: str) -> subprocess.Popen[str]:
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "program").write_text(PROGRAM)
    (tools / "program").chmod(0o755)
    given = {"NEMOTRON_LINGER_SECONDS": "0", "LEPTON_JOB_WORKER_INDEX": str(node), **env}
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", **given}
    argv = ["bash", str(folder / launch.SCRIPT)]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, env=environment, cwd="/", stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=30)
    return process.returncode, said


def shell(name: str, line: str, *, launched: bool = False) -> Stage:
    words = ("dpo-torchrun", "x") if launched else ()
    return Stage(name, (*words, "bash", "-c", line), num_launcher_words=len(words))


def test_words_arrive_as_they_were_typed(tmp_path: Path):
    folder = written(tmp_path, Stage("a 'stage' $(x)", ("program", *HOSTILE)))
    status, said = finished(start(folder))
    assert status == 0, said
    assert (folder / "received").read_text().split("\0")[:-1] == HOSTILE
    assert not list(tmp_path.rglob("x"))
    assert said.splitlines()[-1] == f"nemotron-steps: job {folder.name} ends with exit status 0"
    assert (folder / "log-0.txt").read_text() == said


def test_the_first_failure_is_the_end_and_stays_it(tmp_path: Path):
    folder = written(tmp_path, shell("one", "echo why; exit 7"), shell("two", "touch $NEMO_RUN_DIR/two"))
    status, said = finished(start(folder))
    assert status == 7
    assert said.splitlines() == [
        "nemotron-steps: one",
        "why",
        "nemotron-steps: one failed (exit 7)",
        f"nemotron-steps: job {folder.name} ends with exit status 7",
    ]
    status, said = finished(start(folder))  # as Kubernetes does
    assert status == 7
    assert "this job failed before, and would again: submit it anew" in said
    assert not (folder / "two").exists()


def test_a_stopped_job_ends_its_stage_and_goes_on_when_restarted(tmp_path: Path):
    waits = 'trap "echo saved; exit 9" TERM; touch $NEMO_RUN_DIR/up; [[ -e $NEMO_RUN_DIR/go ]] || while :; do sleep 0.1; done'
    folder = written(tmp_path, shell("one", "echo once"), shell("two", waits))
    process = start(folder)
    until = time.monotonic() + 20
    while not (folder / "up").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, said = finished(process)
    assert (status, said.count("saved")) == (143, 1)
    (folder / "go").touch()
    status, said = finished(start(folder))
    assert status == 0, said
    assert "nemotron-steps: one: done before\n" in said
    assert "once" not in said


@pytest.mark.parametrize(("before", "status"), [(False, 0), (True, 1)])
def test_what_a_stopped_stage_made_is_not_in_its_way(tmp_path: Path, before: bool, status: int):
    """Of a stage that refuses a folder that is there, and is stopped when it has made it; but for one that is not its own."""
    target = tmp_path / "made"
    line = 'mkdir "$1" || exit 1; [[ -e $NEMO_RUN_DIR/up ]] || { touch $NEMO_RUN_DIR/up; while :; do sleep 0.1; done; }'
    folder = written(tmp_path, Stage("make", ("bash", "-c", line, "make", str(target)), outputs=(target,)))
    if before:
        target.mkdir()
        (target / "mine").touch()
    else:
        process = start(folder)
        until = time.monotonic() + 20
        while not (folder / "up").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert finished(process)[0] == 143
        assert target.is_dir()
    assert finished(start(folder))[0] == status
    assert [path.name for path in target.iterdir()] == (["mine"] if before else [])


@pytest.mark.slow
def test_nodes_wait_for_the_first_and_learn_where_it_is(tmp_path: Path):
    """With a stand-in for torchrun that says how it was called, and takes longer than a look at the first node."""
    folder = written(tmp_path, shell("one", "sleep 0.5"), shell("two", ":", launched=True), num_nodes=2)
    (folder / "tools").mkdir()
    (folder / "tools" / "dpo-torchrun").write_text('#!/bin/bash\necho "$*; ${RANK-no rank}, ${PET_NNODES-no nodes}"; sleep 2\n')
    (folder / "tools" / "dpo-torchrun").chmod(0o755)
    names = {"LEPTON_JOB_NAME": "j", "LEPTON_WORKSPACE_ID": "w", "RANK": "5", "PET_NNODES": "7"}
    both = [start(folder, node, **names) for node in (1, 0)]
    (late, said), (first, _) = finished(both[0]), finished(both[1])
    assert (late, first) == (0, 0)
    assert "nemotron-steps: one" not in said
    assert (
        "--nnodes 2 --nproc-per-node 1 --node-rank 1 --master-addr j-0.j-job-svc.ws-w.svc.cluster.local --master-port 29400 "
        "--no-python bash -c :; no rank, no nodes\n"
    ) in said


def test_a_waiting_node_ends_with_the_first(tmp_path: Path):
    folder = written(tmp_path, shell("one", "exit 6"), num_nodes=2)
    names = {"LEPTON_JOB_NAME": "j", "LEPTON_WORKSPACE_ID": "w"}
    both = [start(folder, node, **names) for node in (1, 0)]
    assert [finished(process)[0] for process in both] == [6, 6]
