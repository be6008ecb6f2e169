"""Slurm profiles: what is taken, what is refused and in which words, and how many processes they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.executors.slurm.asked import with_gpus
from nemotron_dpo.steps.executors.slurm.keys import seconds_of
from nemotron_dpo.steps.executors.slurm.settings import read_settings
from nemotron_dpo.steps.profiles.env_file import load_profile
from nemotron_dpo.steps.profiles.profile import Profile

SOURCE = Path("env.toml")


def profile(**settings: Any) -> Profile:
    return Profile("mine", "slurm", {}, {"executor": "slurm", **settings}, SOURCE)


def test_an_empty_profile_is_this_machine():
    settings = read_settings(profile(account=None), attached=True)
    assert (settings.tunnel, settings.account, settings.partition, settings.cpus_per_task) == ("local", None, None, None)
    assert settings.is_shared
    assert not settings.has_gpus


REFUSED = [
    ({"acount": "x"}, '"acount" profile mine: is no known key: did you mean account?'),
    ({"zzz": 1}, '"zzz" profile mine: is no known key'),
    ({"nodes": "2"}, "\"nodes\" profile mine: is '2' where a number of 1 or more is due"),
    ({"nodes": True}, '"nodes" profile mine: is True where a number of 1 or more is due'),
    ({"cpus_per_task": -1}, '"cpus_per_task" profile mine: is -1 where a number of 1 or more is due'),
    ({"cpu_time": "01:00:00"}, '"cpu_time" profile mine: is of jobs that there are only with cpu_partition: name the partition, or leave it out'),
    ({"cpu_partition": "cpu", "cpu_cpus_per_task": 0}, '"cpu_cpus_per_task" profile mine: is 0 where a number of 1 or more is due'),
    ({"account": "a b"}, "\"account\" profile mine: is 'a b' where a name or a number as Slurm takes it is due"),
    ({"partition": "a\n#SBATCH -w x"}, "\"partition\" profile mine: is 'a\\n#SBATCH -w x' where a name or a number as Slurm takes it is due"),
    ({"time": "soon"}, "\"time\" profile mine: is 'soon': write it as Slurm does: \"HH:MM:SS\" or \"D-HH:MM:SS\""),
    ({"time": 5}, "\"time\" profile mine: is 5, a number: write it as text, \"HH:MM:SS\" or \"D-HH:MM:SS\""),
    ({"build_time": 90}, "\"build_time\" profile mine: is 90, a number: write it as text, \"HH:MM:SS\" or \"D-HH:MM:SS\""),
    ({"exclusive": 7}, "\"exclusive\" profile mine: is 7 where true, false, \"user\", \"mcs\" or \"topo\" is due"),
    ({"exclusive": "true"}, "\"exclusive\" profile mine: is 'true' where true, false, \"user\", \"mcs\" or \"topo\" is due"),
    ({"exclusive": 1}, "\"exclusive\" profile mine: is 1 where true, false, \"user\", \"mcs\" or \"topo\" is due"),
    ({"tunnel": "ssh"}, '"host" profile mine: is missing: tunnel = "ssh" needs the login node\'s name'),
    ({"tunnel": "telnet"}, "\"tunnel\" profile mine: is 'telnet' where local or ssh is due"),
    ({"host": "login"}, '"remote_job_dir" profile mine: is missing: name a folder on the cluster that all nodes share'),
    ({"remote_job_dir": "jobs"}, "\"remote_job_dir\" profile mine: is 'jobs' where an absolute path is due"),
    ({"mounts": "/a:/a"}, "\"mounts\" profile mine: is '/a:/a' where a list is due"),
    ({"setup_lines": 3}, '"setup_lines" profile mine: is 3 where shell commands are due'),
    ({"run_command": "nice"}, '"run_command" profile mine: lacks {script}: that is where the stage\'s command goes, such as nice {script}'),
    ({"build_include_gpus": "yes"}, "\"build_include_gpus\" profile mine: is 'yes' where true or false is due"),
    ({"container_image": "a\nb"}, "\"container_image\" profile mine: is 'a\\nb' where one line of text is due"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "line"), REFUSED)
def test_what_is_refused(settings: dict[str, Any], line: str):
    with pytest.raises(UserError) as refused:
        read_settings(profile(**settings), attached=True)
    assert str(refused.value) == f"env.toml: {line}"


@pytest.mark.parametrize(("attached", "partition"), [(True, "short"), (False, "long")])
def test_partition_of_run_and_batch(attached: bool, partition: str):
    given = profile(partition="other", run_partition="short", batch_partition="long")
    assert read_settings(given, attached=attached).partition == partition
    assert read_settings(profile(partition="other"), attached=attached).partition == "other"


def test_host_means_ssh_and_lists_may_be_one_line():
    given = profile(host="login", remote_job_dir="/jobs/", setup_lines="module load x", lustre_mount="/l:/l", mounts=["/m:/m"])
    settings = read_settings(given, attached=True)
    assert (settings.tunnel, settings.job_root, settings.is_shared) == ("ssh", "/jobs", False)
    assert (settings.setup_lines, settings.mounts) == (("module load x",), ("/m:/m", "/l:/l"))


def test_keys_of_other_executors_are_idle():
    given = profile(node_group="x", build_image="y")
    assert read_settings(given, attached=True).name == "mine"
    assert given.idle_keys() == ("build_image", "node_group")


# what sbatch(1) says of --time
TIMES = [("90", 5400), ("1:30", 90), ("01:00:05", 3605), ("2-3", 183600), ("1-00:30", 88200), ("1-00:00:01", 86401)]


@pytest.mark.parametrize(("text", "seconds"), TIMES)
def test_time(text: str, seconds: int):
    assert seconds_of(text) == seconds


def test_time_without_quotes_in_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "env.toml").write_text('[mine]\nexecutor = "slurm"\ntime = 04:00:00\n')
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    assert read_settings(load_profile("mine"), attached=True).time == "04:00:00"


# a profile -> processes a node, CPUs a node: of a given number of tasks those of all of them; 8 a GPU where nothing is said,
# one a process without GPUs, what the cluster gives where that is asked for, and all where the nodes are the job's alone
SIZES = [
    ({"ntasks_per_node": 8, "cpus_per_task": 12}, 8, 96),
    ({"ntasks_per_node": 1, "gpus_per_node": 4, "cpus_per_task": 32}, 4, 32),
    ({"gpus_per_node": 4}, 4, 32),
    ({"gpus_per_node": 8, "ntasks_per_node": 8}, 8, 64),
    ({"gpus_per_node": 4, "cpus_per_task": 0}, 4, None),
    ({"gpus_per_node": 4, "exclusive": True}, 4, None),
    ({"gpus_per_node": 4, "exclusive": "user"}, 4, 32),
    ({"nproc_per_node": 2}, 2, 2),
    ({"gpus_per_node": 0}, None, None),
]


@pytest.mark.parametrize(("settings", "num_processes", "cpus"), SIZES)
def test_processes_and_cpus_of_a_node(settings: dict[str, Any], num_processes: int | None, cpus: int | None):
    given = profile(**settings)
    assert given.cluster().get("cluster", {}).get("gpus_per_node") == num_processes
    assert with_gpus(read_settings(given, attached=True), 1, num_processes or 1).cpus == cpus


def test_the_import_of_an_image_has_a_time_and_needs_no_gpu():
    for settings, partition, time in [
        ({"partition": "gpu"}, "gpu", "01:00:00"),
        ({"partition": "gpu", "cpu_partition": "cpu"}, "cpu", "01:00:00"),
        ({"partition": "gpu", "cpu_partition": "cpu", "build_include_gpus": True}, "gpu", "01:00:00"),
        ({"partition": "gpu", "cpu_partition": "cpu", "build_partition": "b", "build_time": "5:00"}, "b", "5:00"),
    ]:
        build = read_settings(profile(**settings), attached=True).build
        assert (build.partition, build.time) == (partition, time), settings
