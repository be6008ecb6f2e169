"""Several jobs as one array: what is asked of Slurm, and what each task and the job after them do."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.executors.slurm import launch
from nemotron_dpo.steps.executors.slurm.array import JobArray, dry_lines
from nemotron_dpo.steps.profiles.profile import Profile

PROFILE = {"executor": "slurm", "account": "us", "partition": "p", "gpus_per_node": 2, "time": "00:04:00"}
# Drops its own options, as srun does, and notes the rest.
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nprintf "%s\\n" "$@" >"$HERE/compared"\n'


def _job(folder: Path) -> launch.PreparedSlurmJob:
    stage = Stage("one", ("one",))
    plan = Plan(folder, folder / "run", None, {}, None, (stage,), {}, 2)
    return launch.prepare(plan, Profile("mine", "slurm", {}, PROFILE), num_nodes=1, checkpoint_dir=None, attached=False)


def _array(root: Path, number: int, at_once: int | None = None) -> JobArray:
    (root / "sweep").mkdir()
    return JobArray(
        "s", str(root / "sweep"), [_job(root / f"it's {n}") for n in range(1, number + 1)], _job(root / "scores"), at_once
    )


def _directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_array_asks_for_what_each_of_its_jobs_would(tmp_path: Path) -> None:
    array = _array(tmp_path, 3, at_once=2)
    alone = _directives(array.jobs[0].script)
    assert _directives(array.script) == ["job-name=s", *alone[1:], "array=1-3%2"]
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
    shown = [text for what, text in dry_lines(array) if what.startswith(("scored", "submitted"))]
    assert shown == [
        f"sbatch --parsable {tmp_path}/scores/job.sh",
        f"sbatch --parsable --dependency=afterok:SCORES {tmp_path}/sweep/array.sh",
        f"sbatch --parsable --dependency=afterany:ARRAY {tmp_path}/sweep/compare.sh",
    ]


def test_each_task_becomes_the_script_of_its_job(tmp_path: Path) -> None:
    array = _array(tmp_path, 3)
    for number in (1, 2, 3):
        job = tmp_path / f"it's {number}"
        job.mkdir()
        (job / "job.sh").write_text('echo "job $0"; exit 4')
        done = subprocess.run(
            ["bash", "-c", array.script], env={"SLURM_ARRAY_TASK_ID": str(number), "PATH": "/bin:/usr/bin"}, check=False
        )
        assert done.returncode == 4
        assert (job / "log.txt").read_text() == f"job {job}/job.sh\n"


def test_what_is_done_is_compared_and_what_is_not_is_said(tmp_path: Path) -> None:
    array = _array(tmp_path, 4)
    for number, state in enumerate(("done", "failed", "done"), start=1):
        (tmp_path / f"it's {number}" / "run").mkdir(parents=True)
        (tmp_path / f"it's {number}" / "state.json").write_text(f'{{"status": "{state}", "exit": 0}}\n')
        (tmp_path / f"it's {number}" / "run" / "metrics.jsonl").write_text("{}\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "srun").chmod(0o755)
    path = f"{tools}:/bin:/usr/bin"
    script = array.compare_script.replace("export PATH=", "ignored=")  # the folder of our own programs is not asked
    done = subprocess.run(["bash", "-c", script], env={"HERE": str(tmp_path), "PATH": path}, capture_output=True, check=False)
    assert done.stderr.decode().splitlines() == ["it's 1: done", "it's 2: failed", "it's 3: done", "it's 4: left nothing"]
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
