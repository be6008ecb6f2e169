"""The batch script: what it asks Slurm for, and that nothing typed by a user is ever more than a word in it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile.stages import Plan, Stage
from nemotron_dpo.steps.executors.shared.environment import job_environment, shell_text
from nemotron_dpo.steps.executors.shared.path_map import PathMap
from nemotron_dpo.steps.executors.slurm import launch
from nemotron_dpo.steps.profiles.profile import Profile

# Drops its own options, as srun does, and runs the rest. The stage's program notes the words that it was given.
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
PROGRAM = '#!/bin/bash\nprintf "%s\\0" "${SAID-unset}" "$@" >"$NEMO_RUN_DIR/received"\n'
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
HOSTILE = ["$(touch x)", "`touch x`", "'; touch x #", '"; touch x #', "a\nb", "\\", "!!", "*", "~", "-x", "$SAID", "{script}"]


def plan_of(job: Path, *stages: Stage) -> Plan:
    return Plan(job, job / "run", None, {}, None, stages, {}, 1)


def made(
    plan: Plan, profile: dict[str, Any], *, num_nodes: int = 1, env: dict[str, str] | None = None
) -> launch.PreparedSlurmJob:
    settings = {"executor": "slurm", **profile}
    return launch.prepare(
        plan, Profile("mine", "slurm", env or {}, settings), num_nodes=num_nodes, checkpoint_dir=None, attached=True
    )


def script(compiled: launch.PreparedSlurmJob, name: str = "job") -> str:
    """Of the part of that name."""
    return next(compiled.script(part) for part in compiled.parts if part.name == name)


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.one_of(WORDS, st.sampled_from(HOSTILE)), max_size=5), said=st.one_of(WORDS, st.sampled_from(HOSTILE)))
@pytest.mark.usefixtures("_no_login")
@pytest.mark.slow
def test_words_and_variables_arrive_as_they_were_typed(words: list[str], said: str):
    with tempfile.TemporaryDirectory(prefix="it's a $HOME; ") as folder:
        root = Path(folder)
        tools, job = root / "tools", root / "job"
        for path in (tools, job):
            path.mkdir()
        for name, text in (("srun", SRUN), ("program", PROGRAM)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        compiled = made(plan_of(job, Stage("a 'stage' $(x)", ("program", *words))), {}, env={"SAID": said})
        (job / "job.sh").write_text(script(compiled))
        (job / "task.sh").write_text(compiled.task)
        (job / "env.sh").write_text(shell_text(compiled.environment))
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
        done = subprocess.run(["bash", job / "job.sh"], env=env, cwd=root, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert (job / "received").read_bytes().decode().split("\0")[:-1] == [said, *words]
        assert sorted(path.name for path in root.iterdir()) == ["job", "tools"]
        assert not (job / "env.sh").exists()


LINE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20)
HOSTILE_LINE = st.one_of(LINE, st.sampled_from([word for word in HOSTILE if "\n" not in word]))
ENROOT = '#!/bin/bash\nprintf "%s\\0" "$@" >"$RECEIVED"; : >"$3"\n'


@settings(max_examples=40, deadline=None)
@given(image=HOSTILE_LINE, work=HOSTILE_LINE, mount=HOSTILE_LINE, cache=HOSTILE_LINE)
@pytest.mark.usefixtures("_no_login")
def test_places_and_images_arrive_as_they_were_typed(image: str, work: str, mount: str, cache: str):
    with tempfile.TemporaryDirectory(prefix="it's a $HOME; ") as folder:
        root = Path(folder)
        (root / "enroot").write_text(ENROOT)
        (root / "srun").write_text(SRUN)
        for name in ("enroot", "srun"):
            (root / name).chmod(0o755)
        profile = {"container_image": image, "workspace": f"/w/{work}", "mounts": [mount], "remote_job_dir": folder}
        compiled = made(plan_of(Path("j")), {**profile, "build_cache_dir": f"/c/{cache}"})
        (root / "facts.sh").write_text(script(compiled).partition("\nsay() ")[0])
        shown = _bash(root, 'source facts.sh; printf "%s\\0" "$folder" "${step_options[@]}"')
        place, *options = shown.split("\0")[:-1]
        squash = compiled.squash
        assert squash is not None
        settled = compiled.settings
        assert place == settled.workspace
        assert options[:2] == [
            f"--container-image={squash.file}",
            f"--container-mounts={folder}:{folder},{place}:{place},{mount}",
        ]
        if squash.source is not None:
            (root / "image.sh").write_text(compiled.squash_script(force=True))
            _bash(root, "bash image.sh")
            received = (root / "received").read_bytes().decode().split("\0")[:-1]
            assert received == ["import", "--output", f"{squash.file}.7", squash.source]
            assert Path(squash.file).is_file()
        assert not (root / "x").exists()


def _bash(root: Path, text: str) -> str:
    env = {"PATH": f"{root}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "RECEIVED": str(root / "received")}
    done = subprocess.run(["bash", "-c", text], env=env, cwd=root, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize(("before", "statuses"), [(False, [3, 3]), (True, [1, 1])])
def test_what_an_interrupted_stage_left_is_not_in_the_way(tmp_path: Path, before: bool, statuses: list[int]):
    """Of a stage that makes a folder, refuses one that is there (mkdir's 1), and then fails (3)."""
    target, job = tmp_path / "made", tmp_path / "job"
    job.mkdir()
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    if before:
        target.mkdir()
        (target / "mine").touch()
    stage = Stage("make", ("bash", "-c", 'mkdir "$1" || exit 1; exit 3', "make", str(target)), outputs=(target,))
    compiled = made(plan_of(job, stage), {})
    (job / "job.sh").write_text(script(compiled))
    (job / "task.sh").write_text(compiled.task)
    for status in statuses:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
        done = subprocess.run(["bash", job / "job.sh"], env=env, cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == status, done.stderr
    assert [path.name for path in target.iterdir()] == (["mine"] if before else [])


def directives(compiled: launch.PreparedSlurmJob, name: str = "job") -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script(compiled, name).splitlines() if line.startswith("#SBATCH ")]


def test_directives():
    profile = {
        "account": "us", "partition": "p", "nodes": 2, "gpus_per_node": 4, "ntasks_per_node": 4, "cpus_per_task": 8,
        "time": "00:04:00", "mem": "0", "exclusive": True,
    }  # fmt: skip
    launched = Stage("dpo-train", ("dpo-torchrun", "--standalone", "dpo-train", "x"), num_launcher_words=2)
    plan = Plan(Path("j"), Path("j/run"), None, {}, None, (Stage("one", ("one",)), launched), {}, 8)
    compiled = made(plan, profile, num_nodes=2)
    assert directives(compiled) == [
        "job-name=j", "account=us", "nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "open-mode=append", "partition=p",
        "cpus-per-task=32", "time=00:04:00", "mem=0", "signal=B:USR1@60", "exclusive", "requeue",
    ]  # fmt: skip
    assert script(compiled).splitlines()[-5:] == [
        "makes=()",
        "stage 1 one 1 one",
        "makes=()",
        'stage 2 dpo-train 2 dpo-torchrun "${rendezvous[@]}" dpo-train x',
        'state done 0 ""',
    ]
    assert "\nprocesses_per_node=4\n" in script(compiled)


def test_least_directives():
    assert directives(made(plan_of(Path("j")), {})) == [
        "job-name=j", "nodes=1", "ntasks-per-node=1", "open-mode=append", "signal=B:USR1@120", "requeue",
    ]  # fmt: skip


STEPS = tuple(
    Stage(f"{name} x", (name,)) for name in ("preference-tokenize", "ref-logprobs", "mixture", "dpo-train", "ckpt-export")
)
ALONE = "preference-tokenize x, ckpt-export x: no model runs there, and the job holds 8 GPUs meanwhile: cpu_partition in the profile gives such stages jobs of their own"


def test_what_runs_no_model_is_a_job_without_gpus_where_the_profile_names_a_partition():
    """And in a job that has GPUs it is said that they wait."""
    gpus, cpu = {"gpus_per_node": 4, "nodes": 2, "mem": "0", "exclusive": True}, {"cpu_partition": "c", "cpu_cpus_per_task": 3}
    tokenize, export = STEPS[:1], STEPS[-1:]
    cases = [
        (STEPS, gpus, {"job": "1 2 3 4 5"}, [ALONE]),
        (STEPS, {"nproc_per_node": 4, "nodes": 2}, {"job": "1 2 3 4 5"}, []),
        (STEPS, gpus | cpu, {"before": "1", "job": "2 3 4", "after": "5"}, []),
        (STEPS[:4], gpus | cpu, {"before": "1", "job": "2 3 4"}, []),
        (STEPS[1:], gpus | cpu, {"job": "1 2 3", "after": "4"}, []),
        (tokenize, gpus | cpu, {"job": "1"}, []),
    ]
    for stages, profile, numbers, remarks in cases:
        compiled = made(Plan(Path("j"), Path("j/run"), None, {}, None, stages, {}, 8), profile, num_nodes=2)
        assert {part.name: " ".join(str(number) for number, _ in part.stages) for part in compiled.parts} == numbers
        assert compiled.remarks == remarks
        ends = [script(compiled, name).splitlines()[-1] for name in numbers]
        assert ends == ['state submitted null "its next job waits"'] * (len(ends) - 1) + ['state done 0 ""']
    compiled = made(Plan(Path("j"), Path("j/run"), None, {}, None, STEPS, {}, 8), gpus | cpu, num_nodes=2)
    small = [
        "nodes=1",
        "ntasks-per-node=1",
        "open-mode=append",
        "partition=c",
        "cpus-per-task=3",
        "signal=B:USR1@120",
        "requeue",
    ]
    assert directives(compiled, "before") == ["job-name=j-before", *small]
    assert directives(compiled, "after") == ["job-name=j-after", *small]
    assert {"gpus-per-node=4", "nodes=2", "exclusive", "mem=0"} <= set(directives(compiled))
    shown = dict(launch.dry_lines(compiled, force_squash=False))["submitted by"].splitlines()
    assert [line.split(" --output")[0] for line in shown] == [
        "sbatch --parsable",
        "sbatch --parsable --dependency=afterok:BEFORE --kill-on-invalid-dep=yes",
        "sbatch --parsable --dependency=afterok:JOB --kill-on-invalid-dep=yes",
    ]
    assert directives(made(plan_of(Path("j"), *export), gpus | cpu)) == ["job-name=j", *small]


def test_a_script_that_would_find_no_program_is_said(tmp_path: Path):
    far, named = {"host": "login", "remote_job_dir": "/jobs"}, "nothing says where nodes find the programs: workspace = "
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "one").touch()
    cases = [
        ({}, None),  # ours, which nodes share
        (far, named),
        (far | {"workspace": "/w"}, None),  # which only the cluster sees
        (far | {"container_image": "x.sqsh"}, None),
        (far | {"startup_commands": ["conda activate x"]}, None),
        ({"workspace": str(tmp_path)}, f"{tmp_path}/.venv/bin lacks two: make it there by `just setup`"),
    ]
    for profile, said in cases:
        compiled = made(plan_of(Path("j"), Stage("one", ("one",)), Stage("two", ("two",))), profile)
        assert len(compiled.remarks) == (said is not None)
        assert said is None or (compiled.remarks[0].startswith("warning: ") and said in compiled.remarks[0])
    assert made(plan_of(Path("j")), far, env={"PATH": "/p"}).remarks == []


def test_container_options():
    profile = {
        "container_image": "/images/x.sqsh", "remote_job_dir": "/jobs", "workspace": "/code", "mounts": ["/data:/data"],
        "host": "login", "lustre_mount": "/lustre",
    }  # fmt: skip
    compiled = made(plan_of(Path("j")), profile, env={"WORD": "x"})
    (line,) = [line for line in script(compiled).splitlines() if line.startswith("step_options=")]
    assert line == (
        "step_options=(${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} --container-image=/images/x.sqsh --container-mounts=/jobs:/jobs,/code:/code,/data:/data,/lustre "
        "--no-container-mount-home --container-workdir=/code --container-env=NEMO_RUN_DIR,HF_HOME,WORD)"
    )
    assert "export PATH=" not in script(compiled)  # the image has programs of its own
    named = made(plan_of(Path("j")), profile, env={"HF_HOME": "/mine", "WORD": "x"})
    assert "--container-env=NEMO_RUN_DIR,HF_HOME,WORD)" in script(
        named
    )  # a variable that is ours and the profile's is named once


def test_a_container_without_programs_takes_those_of_the_workspace():
    profile = {"container_image": "x.sqsh", "remote_job_dir": "/jobs", "workspace": "/my code", "host": "login"}
    compiled = made(plan_of(Path("j")), profile)
    assert "\nexport PATH=$PATH:'/my code/.venv/bin'\n" in compiled.task
    assert "export PATH" not in script(compiled)


def test_no_variable_is_exported_twice():
    """Those of ours that the profile has, too, are the profile's."""
    mine = {"HF_HOME": "/mine", "NEMO_RUN_DIR": "/r", "PATH": "/p"}
    for environment, ours in [({}, ["NEMO_RUN_DIR", "HF_HOME", "PATH"]), (mine, [])]:
        compiled = made(plan_of(Path("j")), {"remote_job_dir": "/jobs", "workspace": "/w"}, env=environment)
        lines = [line for line in script(compiled).splitlines() if line.startswith("export ")]
        assert [line.removeprefix("export ").partition("=")[0] for line in lines] == ours
        assert dict(compiled.environment) == environment


def test_mounts_without_a_container_have_no_effect():
    for asked, idle in [
        ({"mounts": ["/a:/a"]}, ("mounts",)),
        ({"mounts": ["/a:/a"], "container_image": "x.sqsh"}, ()),
        ({"mounts": []}, ()),
        ({"mounts": ["/a:/a"], "lustre_mount": "/l:/l"}, ("lustre_mount", "mounts")),
    ]:
        assert Profile("mine", "slurm", {}, {"executor": "slurm", **asked}).idle_keys() == idle, asked


def test_shell_of_the_profile_is_taken_as_it_is():
    profile = {
        "setup_lines": ["module load cuda"],
        "startup_commands": "source /v/bin/activate",
        "run_command": "nice {script}",
    }
    compiled = made(plan_of(Path("j")), profile)
    assert "\nstart\nmodule load cuda\n" in script(compiled)
    assert '\nrun_stage() { nice "$@"; }\nset -eo pipefail\nsource /v/bin/activate\nset +e\n' in compiled.task


def test_dry_run_hides_values():
    compiled = made(plan_of(Path("j")), {}, env={"API_KEY": "planted", "WORD": "shown"})
    text = "\n".join(content for _, content in launch.dry_lines(compiled, force_squash=False))
    assert "planted" not in text
    assert "export API_KEY='***'\nexport WORD=shown\n" in text


@pytest.mark.parametrize("name", ["A B", "A;x", "1A", ""])
def test_no_variable_of_another_name(name: str):
    with pytest.raises(UserError, match="cannot be an environment variable"):
        job_environment(Profile("mine", "slurm", {name: "x"}))


def test_environment_of_login_wandb_and_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "token").write_text("from-the-login\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("WANDB_API_KEY", "key")
    profile = Profile("mine", "slurm", {"WANDB_ENTITY": "mine"}, wandb={"project": "p", "entity": "e"})
    wanted = {"HF_TOKEN": "from-the-login", "WANDB_API_KEY": "key", "WANDB_PROJECT": "p", "WANDB_ENTITY": "mine"}
    assert job_environment(profile) == wanted


def test_places():
    paths = PathMap(((".nemotron/jobs/x", "/far/x"), ("/home/me/configs", "/code/configs")))
    assert paths.command(["/venv/bin/dpo-train", ".nemotron/jobs/x/a", "-o", "n=.nemotron/jobs/x", "/home/me/configs2"]) == [
        "dpo-train", "/far/x/a", "-o", "n=/far/x", "/home/me/configs2",
    ]  # fmt: skip
    assert paths.command(["/venv/bin/python3.11", "-m", "x"])[0] == "python"
