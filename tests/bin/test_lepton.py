"""nemotron-steps on Lepton: NeMo-Run's own executor against a workspace on loopback that truly runs the jobs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nemotron_dpo.steps.tiny_policy import write_policy
from support import fake_containers
from support.cloud_runs import DATA, Runs, prepare_folder, watched_command_lines
from support.followed import SECRET, error_lines
from support.forking_python import forks_first
from support.launch_venv import launch_environment, launch_python
from support.programs import run
from support.two_hosts import two_hosts
from support.waiting import wait_until

PROFILES = """
[lepton_rl_nemo_rl_dpo]
executor = "lepton"
container_image = "nvcr.io/nvidia/nemo:25.11"
node_group = "my-node-group"
resource_shape = "cpu.small"
nemo_run_dir = "{folder}/storage/nemo-run"
workspace = "{folder}/workspace"
mounts = [{{ path = "/", mount_path = "{folder}/storage", from = "node-nfs:shared" }}]
env_vars = {{ MY_WORD = "{secret}", OMP_NUM_THREADS = "1", NEMOTRON_LINGER_SECONDS = "2" }}
[two]
extends = "lepton_rl_nemo_rl_dpo"
nodes = 2
nprocs_per_node = 1
startup_commands = ['export PATH="{folder}/forks:$PATH"']
[slow]
extends = "lepton_rl_nemo_rl_dpo"
startup_commands = ["sleep 120"]
[seven]
extends = "lepton_rl_nemo_rl_dpo"
run_command = ": {{script}}; echo $MY_WORD | wc -c; return 7"
[bad_group]
extends = "lepton_rl_nemo_rl_dpo"
node_group = "none"
"""
LOGIN = {"LEPTON_WORKSPACE_ID": "ws", "LEPTON_WORKSPACE_TOKEN": "right-token-of-the-test"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a workspace and the folder of its records."""
    folder = tmp_path_factory.mktemp("lepton") / "service"
    with fake_containers.running(launch_python(), "fake_lepton", folder, launch_environment()) as url:
        yield url, folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy with a tokenizer."""
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([DATA], folder)
    return folder


def runs_in(folder: Path, url: str, service: Path) -> Runs:
    prepare_folder(folder, PROFILES.format(folder=folder, secret=SECRET))
    (service / "requests.jsonl").unlink(missing_ok=True)
    where = {"LEPTON_WORKSPACE_URL": url, "LEPTON_WORKSPACE_ORIGIN_URL": url, "LEPTON_CACHE_DIR": str(folder / "lepton")}
    return Runs(folder, service, {**LOGIN, **where})


@pytest.fixture
def runs(service: tuple[str, Path], tmp_path: Path) -> Runs:
    return runs_in(tmp_path, *service)


@pytest.fixture
def tokenize(policy: Path) -> list[str]:
    """A step of one quick stage."""
    return ["run", "data_prep/preference_tokenize", f"data.path={DATA}", f"tokenizer={policy}", "data.limit=4"]


def test_attached_run_streams_and_succeeds(runs: Runs, tokenize: list[str]) -> None:
    done = runs.run(*tokenize, "-r", "lepton_rl_nemo_rl_dpo")
    assert done.returncode == 0, done.stderr.decode()
    said = done.stderr.decode()
    assert "\nnemotron-steps: preference-tokenize\n" in said
    assert "preference-tokenize: 4 rows read, 4 pairs written" in said
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert f"tokenized_pairs: {folder}/pairs.arrow" in done.stdout.decode()
    assert (folder / "pairs.arrow").is_file()
    assert "4 pairs written" in (folder / "log-0.txt").read_text()
    mover, job = [request["body"] for request in runs.requests() if request["method"] == "POST"]
    assert mover["spec"]["container"]["image"] == "busybox:1.37.0"
    assert job["spec"]["container"]["command"] == ["/bin/bash", "-c", f"bash {folder}/launch_script.sh"]
    assert {"name": "MY_WORD", "value": SECRET} in job["spec"]["envs"]
    script = (folder / "launch_script.sh").read_text()  # NeMo-Run's own begins by fetching another from the network
    assert not [word for word in ("wget", "curl", "http") if word in script]


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
    assert not [line for line in lines if SECRET in line]
    assert SECRET not in said + done.stdout.decode()
    kept = [path for path in runs.folder.rglob("*") if path.is_file() and path.name != "env.toml"]
    assert {"job.yaml", "launch_script.sh", "log-0.txt"} <= {path.name for path in kept}
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


def test_detached_run_says_how_to_follow_and_cancel(runs: Runs, tokenize: list[str]) -> None:
    done = runs.run(*tokenize, "-b", "slow")
    job_id, follow, cancel = done.stdout.decode().splitlines()
    assert job_id.startswith("preference-toke-")
    assert (follow, cancel) == (f"follow it: lep job log --id {job_id}", f"cancel it: lep job stop --id {job_id}")
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert folder.name == job_id
    wait_until(lambda: (folder / "log-0.txt").exists())


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_cancels_the_job(runs: Runs, tokenize: list[str], number: signal.Signals, status: int, word: str) -> None:
    started = runs.start(*tokenize, "-r", "slow", until="steps: preference-tokenize\n")
    started.process.send_signal(number)
    assert started.wait() == status
    assert started.said.error_lines() == ["interrupted" if number == signal.SIGINT else "terminated"]
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert "ends with exit status 143" in (folder / "log-0.txt").read_text()
    assert [request["body"] for request in runs.requests() if request["method"] == "PATCH"] == [{"spec": {"stopped": True}}]


REFUSED = [
    ("lepton_rl_nemo_rl_dpo", {"LEPTON_WORKSPACE_TOKEN": "wrong"}, "Lepton: the credentials are refused (401): lep login, or set LEPTON_WORKSPACE_ID and LEPTON_WORKSPACE_TOKEN"),
    ("lepton_rl_nemo_rl_dpo", {"LEPTON_WORKSPACE_TOKEN": ""}, "Lepton: no login: lep login, or set LEPTON_WORKSPACE_ID and LEPTON_WORKSPACE_TOKEN"),
    ("lepton_rl_nemo_rl_dpo", {"LEPTON_WORKSPACE_URL": "http://127.0.0.1:1"}, "Lepton: cannot be reached: connection refused"),
    ("bad_group", {}, "profile bad_group: there is no node group none: the workspace has my-node-group"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "env", "line"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_is_one_line_and_leaves_nothing(
    runs: Runs, tokenize: list[str], profile: str, env: dict[str, str], line: str
) -> None:
    done = runs.run(*tokenize, "-r", profile, **env)
    assert (done.returncode, done.stderr.decode()) == (1, f"nemotron-steps: error: {line}\n")
    assert runs.records() == []
    assert list((runs.folder / "storage").iterdir()) == []


@pytest.mark.multiprocess
def test_two_nodes_score_together(tmp_path: Path, policy: Path) -> None:
    """Each worker on a host of its own, which finds the first by the name that Lepton gives it."""
    with ExitStack() as held:
        hosts = held.enter_context(two_hosts())
        service = tmp_path / "service"
        where = (launch_python(), "fake_lepton", service, launch_environment(), hosts.prefix, hosts.subnet)
        url = held.enter_context(fake_containers.running(*where))
        (tmp_path / "run").mkdir()
        runs = runs_in(tmp_path / "run", url, service)
        held.enter_context(forks_first(tmp_path / "run" / "forks"))
        data = ["data.limit=6", f"data.path={DATA}", f"policy.model_name={policy}"]
        done = runs.run("run", "eval/preference_score", *data, "-r", "two")
    said = done.stderr.decode()
    assert done.returncode == 0, said
    (folder,) = (runs.folder / "storage" / "nemo-run").iterdir()
    assert (folder / "scores.json").is_file()
    logs = [(folder / f"log-{node}.txt").read_text() for node in (0, 1)]
    assert all("nemotron-steps: ref-logprobs policy\n" in log for log in logs)
    assert "nemotron-steps: preference-tokenize" in logs[0]
    assert "nemotron-steps: preference-tokenize\n" not in logs[1]  # where that node begins late, it was done before


def test_without_the_extra_one_line_says_what_to_install(runs: Runs, tokenize: list[str]) -> None:
    done = run("nemotron-steps", *tokenize, "-r", "lepton_rl_nemo_rl_dpo", cwd=runs.folder)
    line = "Lepton and DGX Cloud: needs nemo_run, which is not installed: pip install 'nemotron-dpo[launch]'"
    assert (done.returncode, done.stderr.decode()) == (1, f"nemotron-steps: error: {line}\n")
    assert runs.records() == []
