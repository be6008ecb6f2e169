"""Profiles of Lepton and DGX Cloud: what is taken, and what is refused in which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.executors.cloud.settings import CloudSettings
from nemotron_dpo.steps.executors.dgxcloud import settings as dgxcloud_settings
from nemotron_dpo.steps.executors.lepton import settings as lepton_settings
from nemotron_dpo.steps.profiles.env_file import load_profile
from nemotron_dpo.steps.profiles.profile import Profile

MOUNT = {"path": "/", "mount_path": "/mnt", "from": "node-nfs:shared"}
LEPTON = {
    "executor": "lepton", "container_image": "image", "node_group": "group", "resource_shape": "cpu.small",
    "nemo_run_dir": "/mnt/jobs", "mounts": [MOUNT],
}  # fmt: skip
DGXCLOUD = {
    "executor": "dgxcloud", "container_image": "image", "base_url": "https://run.ai/api/v1/", "project_name": "project",
    "kube_apiserver_url": "https://run.ai/k8s", "client_id": "client", "pvc_nemo_run_dir": "/work/jobs",
    "pvcs": [{"name": "s", "path": "/work"}],
}  # fmt: skip


def profile(base: dict[str, Any], **settings: Any) -> Profile:
    return Profile("mine", base["executor"], {}, {**base, **settings}, Path("env.toml"))


def read_settings(profile: Profile) -> CloudSettings:
    return {"lepton": lepton_settings, "dgxcloud": dgxcloud_settings}[profile.executor].read_settings(profile)


REFUSED = [
    (LEPTON, {"nod_group": "x"}, '"nod_group" profile mine: is no known key: did you mean node_group?'),
    (LEPTON, {"node_group": ""}, '"node_group" profile mine: is missing: name a node group of the workspace'),
    (LEPTON, {"container_image": None}, '"container_image" profile mine: is missing: name an image that has nemotron-dpo, or set workspace'),
    (LEPTON, {"nemo_run_dir": "/mnt/my jobs"}, "\"nemo_run_dir\" profile mine: is '/mnt/my jobs' where a path of letters, digits and _ . + - / is due"),
    (LEPTON, {"nemo_run_dir": "/mnt/../etc"}, "\"nemo_run_dir\" profile mine: is '/mnt/../etc' where a path of letters, digits and _ . + - / is due"),
    (LEPTON, {"nemo_run_dir": "/mnt/$(x)"}, "\"nemo_run_dir\" profile mine: is '/mnt/$(x)' where a path of letters, digits and _ . + - / is due"),
    (LEPTON, {"nemo_run_dir": "/"}, "\"nemo_run_dir\" profile mine: is '/' where a path of letters, digits and _ . + - / is due"),
    (LEPTON, {"nemo_run_dir": "/data"}, '"nemo_run_dir" profile mine: is \'/data\', which is on none of the mounts: mounts = [{ path = "/", mount_path = "/mnt/shared", from = "node-nfs:shared" }]'),
    (LEPTON, {"mounts": ["/a:/b"]}, "\"mounts\" profile mine: is ['/a:/b'] where a list of tables is due"),
    (LEPTON, {"mounts": [{"path": "/"}]}, '"mounts" profile mine: has one without path, mount_path or from: mounts = [{ path = "/", mount_path = "/mnt/shared", from = "node-nfs:shared" }]'),
    (LEPTON, {"shared_memory_size": "1G"}, "\"shared_memory_size\" profile mine: is '1G' where a number of 1 or more is due"),
    (LEPTON, {"run_command": "nice"}, '"run_command" profile mine: lacks {script}: that is where the stage\'s command goes, such as nice {script}'),
    (DGXCLOUD, {"base_url": "run.ai"}, "\"base_url\" profile mine: is 'run.ai' where an address that starts with https:// is due"),
    (DGXCLOUD, {"client_secret": 12345678}, '"client_secret" profile mine: is not one line of text'),
    (DGXCLOUD, {"pvc_nemo_run_dir": "/workspace"}, '"pvc_nemo_run_dir" profile mine: is \'/workspace\', which is on none of pvcs: pvcs = [{ path = "/workspace", ... }]'),
    (DGXCLOUD, {"kube_apiserver_url": ""}, '"kube_apiserver_url" profile mine: is missing: the cluster\'s own address, where logs are read'),
]  # fmt: skip


@pytest.mark.parametrize(("base", "settings", "line"), REFUSED)
def test_what_is_refused(base: dict[str, Any], settings: dict[str, Any], line: str):
    with pytest.raises(UserError) as refused:
        read_settings(profile(base, **settings))
    assert str(refused.value) == f"env.toml: {line}"


def test_what_is_taken(monkeypatch: pytest.MonkeyPatch):
    lepton = read_settings(profile(LEPTON, shared_memory_size=1024, custom_spec={"a": 1}, time="01:00:00"))
    assert lepton.executor_fields["mounts"] == [MOUNT]
    assert lepton.executor_fields["shared_memory_size"] == 1024
    monkeypatch.setenv("DGXCLOUD_CLIENT_SECRET", "from-the-environment")
    dgx = read_settings(profile(DGXCLOUD, custom_spec={"a": 1}, node_group="x"))
    assert dgx.executor_fields["base_url"] == "https://run.ai/api/v1"
    assert dgx.executor_fields["custom_spec"] == {"a": 1}
    assert dgx.credentials == ("client", "from-the-environment")
    assert read_settings(profile(DGXCLOUD, app_id="app", client_id="", app_secret="s")).credentials == ("app", "s")


def test_keys_of_other_executors_are_idle():
    assert profile(LEPTON, custom_spec={"a": 1}, time="01:00:00").idle_keys() == ("custom_spec", "time")
    assert profile(DGXCLOUD, custom_spec={"a": 1}, node_group="x").idle_keys() == ("node_group",)


@pytest.mark.parametrize("executor", ["lepton", "dgxcloud"])
def test_templates_are_taken(monkeypatch: pytest.MonkeyPatch, executor: str):
    template = configs_root() / "env" / "env_toml" / "templates" / f"{executor}.toml"
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(template))
    for name in (f"{executor}_rl_nemo_rl_dpo", f"{executor}_eval_preference_score"):
        given = load_profile(name)
        assert read_settings(given).name == name
        assert given.idle_keys() == ()
    assert load_profile(f"{executor}_rl_nemo_rl_dpo").cluster() == {"cluster": {"gpus_per_node": 8, "num_nodes": 2}}


def test_what_a_config_set_is_refused_where_it_was_set():
    given = replace(profile(LEPTON, shared_memory_size="1G"), origins={"shared_memory_size": "own.yaml:3"})
    with pytest.raises(UserError, match=r'^own\.yaml:3: "run\.env\.shared_memory_size" is \'1G\' where a number '):
        read_settings(given)


def test_processes_of_a_node():
    assert profile(LEPTON, nprocs_per_node=2, gpus_per_node=8).cluster() == {"cluster": {"gpus_per_node": 2}}
    assert profile(LEPTON, gpus_per_node=8).cluster() == {"cluster": {"gpus_per_node": 8}}
