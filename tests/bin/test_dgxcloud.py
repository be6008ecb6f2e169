"""nemotron-steps on DGX Cloud: NeMo-Run's own executor against a Run:ai on loopback that truly runs the workloads."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_dpo.steps.tiny_policy import write_policy
from support import fake_containers
from support.cloud_runs import DATA, Runs, prepare_folder, watched_command_lines
from support.followed import SECRET, error_lines
from support.forking_python import forks_first
from support.launch_venv import launch_environment, launch_python
from support.waiting import wait_until

PROFILES = """
[one]
executor = "dgxcloud"
base_url = "{url}/api/v1"
kube_apiserver_url = "{url}/k8s"
client_id = "my-client"
project_name = "my-project"
container_image = "nvcr.io/nvidia/nemo:25.11"
pvc_nemo_run_dir = "{folder}/storage/nemo-run"
workspace = "{folder}/workspace"
pvcs = [{{ name = "storage", path = "{folder}/storage", existingPvc = true, claimName = "my-claim" }}]
env_vars = {{ MY_WORD = "{secret}", OMP_NUM_THREADS = "1", NEMOTRON_LINGER_SECONDS = "2" }}
[two]
extends = "one"
nodes = 2
nprocs_per_node = 1
startup_commands = ['export PATH="{folder}/forks:$PATH"']
[slow]
extends = "one"
startup_commands = ["sleep 120"]
[seven]
extends = "one"
run_command = ": {{script}}; echo $MY_WORD | wc -c; return 7"
[nobody]
extends = "one"
base_url = "http://127.0.0.1:1/api/v1"
[bad_project]
extends = "one"
project_name = "none"
[bad_spec]
extends = "one"
custom_spec = {{ unheardOf = 1 }}
"""
KEY = "right-secret-of-the-test"
REMEDY = "check client_id, and the secret in DGXCLOUD_CLIENT_SECRET"
LOGS_AT_INFO = """
import logging, runpy, sys
logging.basicConfig(level=logging.INFO, force=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a control plane and the folder of its records."""
    folder = tmp_path_factory.mktemp("dgxcloud") / "service"
    with fake_containers.running(launch_python(), "fake_dgxcloud", folder, launch_environment()) as url:
        yield url, folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy with a tokenizer."""
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([DATA], folder)
    return folder


@pytest.fixture
def runs(service: tuple[str, Path], tmp_path: Path) -> Runs:
    url, records = service
    prepare_folder(tmp_path, PROFILES.format(url=url, folder=tmp_path, secret=SECRET))
    (records / "requests.jsonl").unlink(missing_ok=True)
    return Runs(tmp_path, records, {"DGXCLOUD_CLIENT_SECRET": KEY})


@pytest.fixture
def tokenize(policy: Path) -> list[str]:
    """A step of one quick stage."""
    return ["run", "data_prep/preference_tokenize", f"data.path={DATA}", f"tokenizer={policy}", "data.limit=4"]


def test_attached_run_streams_and_succeeds(runs: Runs, tokenize: list[str]) -> None:
    """Nor do the variables appear where all of NeMo-Run's own log is shown: it logs the whole request."""
    (runs.folder / "logs_at_info.py").write_text(LOGS_AT_INFO)
    done = runs.run(*tokenize, "-r", "one", through=runs.folder / "logs_at_info.py")
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "\nnemotron-steps: preference-tokenize\n" in said
    assert "preference-tokenize: 4 rows read, 4 pairs written" in said
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert f"tokenized_pairs: {folder}/pairs.arrow" in done.stdout.decode()
    assert (folder / "pairs.arrow").is_file()
    assert SECRET not in said
    assert KEY not in said
    posted = [request for request in runs.requests() if request["method"] == "POST"]
    mover, job = [request for request in posted if "/workloads/" in request["path"]]
    assert [mover["path"], job["path"]] == ["/api/v1/workloads/workspaces", "/api/v1/workloads/trainings"]
    assert job["body"]["spec"]["command"] == f"/bin/bash {folder}/launch_script.sh"
    assert {"name": "MY_WORD", "value": SECRET} in job["body"]["spec"]["environmentVariables"]


def test_a_job_that_fails_at_once_keeps_its_status_and_log(runs: Runs, tokenize: list[str]) -> None:
    lines: set[str] = set()
    stop = threading.Event()
    watcher = threading.Thread(target=lambda: lines.update(watched_command_lines(stop)))
    watcher.start()
    done = runs.run(*tokenize, "-r", "seven")
    stop.set()
    watcher.join()
    said = done.stderr.decode()
    assert done.returncode == 7, said
    assert f"\n{len(SECRET) + 1}\n" in said
    (line,) = error_lines(said)
    assert "failed (exit 7); it said why above; the log is " in line
    assert any("launch_script.sh" in line for line in lines)
    assert not [line for line in lines if SECRET in line or KEY in line]
    assert SECRET not in said + done.stdout.decode()
    kept = [path for path in runs.folder.rglob("*") if path.is_file() and path.name != "env.toml"]
    assert {"job.yaml", "launch_script.sh", "log-0.txt"} <= {path.name for path in kept}
    assert not [path for path in kept if SECRET.encode() in path.read_bytes() or KEY.encode() in path.read_bytes()]


def test_detached_run_says_how_to_follow_and_cancel(runs: Runs, tokenize: list[str]) -> None:
    done = runs.run(*tokenize, "-b", "slow")
    assert done.returncode == 0, done.stderr.decode()
    job_id, follow, cancel = done.stdout.decode().splitlines()
    assert re.fullmatch(r"follow it: runai training logs preference-toke-\S+-\w{5} -p my-project --follow", follow)
    assert cancel == f"cancel it: runai training delete --uuid={job_id} -p my-project"
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    wait_until(lambda: (folder / "log-0.txt").exists())


def test_a_signal_cancels_the_job(runs: Runs, tokenize: list[str]) -> None:
    started = runs.start(*tokenize, "-r", "slow", until="steps: preference-tokenize\n")
    started.process.send_signal(signal.SIGTERM)
    assert started.wait() == 143
    assert started.said.error_lines() == ["terminated"]
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert "ends with exit status 143" in (folder / "log-0.txt").read_text()
    assert "/api/v1/workloads/trainings/" in [r["path"] for r in runs.requests() if r["method"] == "DELETE"][-1]


REFUSED = [
    ("one", {"DGXCLOUD_CLIENT_SECRET": "wrong"}, "{url}/api/v1: the credentials are refused (401): " + REMEDY),
    ("one", {"DGXCLOUD_CLIENT_SECRET": ""}, 'profile one: "client_secret" is missing: export DGXCLOUD_CLIENT_SECRET=...'),
    ("nobody", {}, "http://127.0.0.1:1/api/v1: cannot be reached: connection refused"),
    ("bad_project", {}, "{url}/api/v1: has no project none: check project_name, and what the application may see"),
    ("bad_spec", {}, "{url}/api/v1: refused (400): unknown fields"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "env", "line"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_is_one_line_and_leaves_nothing(
    runs: Runs, tokenize: list[str], service: tuple[str, Path], profile: str, env: dict[str, str], line: str
) -> None:
    done = runs.run(*tokenize, "-r", profile, **env)
    assert (done.returncode, done.stderr.decode()) == (1, f"nemotron-steps: error: {line.format(url=service[0])}\n")
    assert runs.records() == []


@pytest.mark.multiprocess
def test_two_nodes_score_together(runs: Runs, policy: Path) -> None:
    data = ["data.limit=6", f"data.path={DATA}", f"policy.model_name={policy}"]
    with forks_first(runs.folder / "forks"):
        done = runs.run("run", "eval/preference_score", *data, "-r", "two")
    assert done.returncode == 0, done.stderr.decode()
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert (folder / "scores.json").is_file()
    logs = [(folder / f"log-{node}.txt").read_text() for node in (0, 1)]
    assert all("nemotron-steps: ref-logprobs policy\n" in log for log in logs)
    assert "nemotron-steps: preference-tokenize" not in logs[1]
    (job,) = [request["body"] for request in runs.requests() if request["path"].endswith("/distributed")]
    assert job["spec"]["numWorkers"] == 2
