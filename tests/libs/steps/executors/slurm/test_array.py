"""Several jobs as one array: what is asked of Slurm, and what each task and the job after them do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.executors.slurm import launch
from nemotron_dpo.steps.executors.slurm.array import JobArray, dry_lines
from nemotron_dpo.steps.profiles.profile import Profile

PROFILE = {"executor": "slurm", "account": "us", "partition": "p", "gpus_per_node": 2, "time": "00:04:00"}
# Drops its own options, as srun does, and notes the rest.
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nprintf "%s\\n" "$@" >"$HERE/compared"\n'
STAGES = tuple(Stage(name, (name,)) for name in ("preference-tokenize", "dpo-train", "ckpt-export"))


def _job(folder: Path, stages: tuple[Stage, ...] = STAGES, **keys: str) -> launch.PreparedSlurmJob:
    plan = Plan(folder, folder / "run", None, {}, None, stages, {}, 2)
    profile = Profile("mine", "slurm", {}, PROFILE | keys)
    return launch.prepare(plan, profile, num_nodes=1, checkpoint_dir=None, attached=False)


def _array(root: Path, number: int, at_once: int | None = None, **keys: str) -> JobArray:
    (root / "sweep").mkdir()
    jobs = [_job(root / f"it's {n}", STAGES, **keys) for n in range(1, number + 1)]
    return JobArray("s", str(root / "sweep"), jobs, _job(root / "scores", STAGES[:2], **keys), at_once)


def _directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def _submitted(array: JobArray) -> list[str]:
    return [text for what, text in dry_lines(array) if what.startswith(("scored", "submitted"))]


def test_the_array_asks_for_what_each_of_its_jobs_would(tmp_path: Path) -> None:
    array = _array(tmp_path, 3, at_once=2)
    (part,) = array.parts
    alone = _directives(array.jobs[0].script(part))
    assert _directives(array.script(part)) == ["job-name=s", *alone[1:], "array=1-3%2"]
    compare = [
        "job-name=s-compare",
        "account=us",
        "nodes=1",
        "ntasks-per-node=1",
        "open-mode=append",
        "partition=p",
        "time=00:04:00",
    ]
    assert _directives(array.compare_script) == compare
    sweep = f"{tmp_path}/sweep"
    assert _submitted(array) == [
        f"sbatch --parsable --output={tmp_path}/scores/log.txt {tmp_path}/scores/job.sh",
        f"sbatch --parsable --dependency=afterok:SCORES --kill-on-invalid-dep=yes --output={sweep}/array-%a.txt {sweep}/array.sh",
        f"sbatch --parsable --dependency=afterany:ARRAY --output={sweep}/compare.txt {sweep}/compare.sh",
    ]


def test_each_part_of_the_runs_is_an_array_and_no_gpu_is_held_before_and_after(tmp_path: Path) -> None:
    array = _array(tmp_path, 3, cpu_partition="cpu", cpu_time="00:02:00")
    asked = {part.name: _directives(array.script(part)) for part in array.parts}
    assert {name: [line for line in lines if "gpus" in line or "partition" in line] for name, lines in asked.items()} == {
        "before": ["partition=cpu"],
        "job": ["gpus-per-node=2", "partition=p"],
        "after": ["partition=cpu"],
    }
    assert [lines[-1] for lines in asked.values()] == ["array=1-3"] * 3
    words = [line.removeprefix("sbatch --parsable ").split(" --output=")[0] for line in _submitted(array)]
    kill = "--kill-on-invalid-dep=yes"
    assert [word if word.startswith("--dep") else "" for word in words] == [
        "",
        f"--dependency=afterok:SCORES_BEFORE {kill}",
        "",
        f"--dependency=afterok:SCORES,aftercorr:BEFORE_ARRAY {kill}",
        f"--dependency=aftercorr:ARRAY {kill}",
        "--dependency=afterany:BEFORE_ARRAY:ARRAY:AFTER_ARRAY",
    ]
    assert {"partition=cpu", "time=00:02:00"} <= set(_directives(array.compare_script))


def test_each_task_becomes_the_script_of_its_job(tmp_path: Path) -> None:
    array = _array(tmp_path, 3, cpu_partition="cpu")
    part = next(part for part in array.parts if part.name == "before")
    for number in (1, 2, 3):
        job = tmp_path / f"it's {number}"
        job.mkdir()
        there = number != 2  # the second has no such part: it has nothing to do
        if there:
            (job / "before.sh").write_text('echo "job $0"; exit 4')
        environment = {"SLURM_ARRAY_TASK_ID": str(number), "PATH": "/bin:/usr/bin"}
        done = subprocess.run(["bash", "-c", array.script(part)], env=environment, check=False)
        assert done.returncode == (4 if there else 0)
        assert (job / "log.txt").exists() == there
        assert not there or (job / "log.txt").read_text() == f"job {job}/before.sh\n"


def test_what_is_done_is_compared_and_what_is_not_is_said(tmp_path: Path) -> None:
    array = _array(tmp_path, 5)
    for number, state in enumerate(("done", "failed", "done", "submitted"), start=1):
        (tmp_path / f"it's {number}" / "run").mkdir(parents=True)
        (tmp_path / f"it's {number}" / "state.json").write_text(f'{{"status": "{state}", "exit": 0}}\n')
        (tmp_path / f"it's {number}" / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "it's 2" / "log.txt").write_text("dpo-train: error: too much: lower it\nsrun: error: node1: task 0\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    path = f"{tools}:/bin:/usr/bin"
    script = array.compare_script.replace("export PATH=", "ignored=")  # the folder of our own programs is not asked
    done = subprocess.run(["bash", "-c", script], env={"HERE": str(tmp_path), "PATH": path}, capture_output=True, check=False)
    said = [
        "it's 1: done",
        "it's 2: failed: dpo-train: error: too much: lower it",
        "it's 3: done",
        "it's 4: stopped",
        "it's 5: left nothing",
    ]
    assert done.stderr.decode().splitlines() == said
    assert json.loads((tmp_path / "it's 4" / "state.json").read_bytes())["status"] == "stopped"  # it will never begin
    assert done.returncode == 1
    runs = [f"{tmp_path}/it's {n}/run" for n in (1, 3)]
    assert (tmp_path / "compared").read_text().splitlines() == ["dpo-report", *runs, "-o", f"{tmp_path}/sweep/compare.html"]


def test_a_task_speaks_of_itself_and_not_of_the_whole_array(tmp_path: Path) -> None:
    """The last task of an array has the array's own id, by which all tasks would be signalled or queued again."""
    head = "\n".join((Path(launch.__file__).parent / "job.sh").read_text().splitlines()[:3])
    for variables, own in [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3"),
    ]:
        done = subprocess.run(["bash", "-c", f"{head}\necho $own_id"], env=variables, capture_output=True, check=True)
        assert done.stdout.decode() == f"{own}\n"
