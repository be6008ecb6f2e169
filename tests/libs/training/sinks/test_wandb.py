"""The real client of Weights & Biases: offline, read by its own `wandb sync`, and against a server on loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.tracked import LINEAGE, NOT_MONITORED, log_folder, track
from support.tracker_packages import tracker_environment
from support.wandb_server import wandb_server

KEY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "sk-" + "s" * 40
ASKED = ["logger.wandb_enabled=true", "logger.wandb={project: p, name: n, tags: [a, b]}", NOT_MONITORED]


def _enter(monkeypatch: pytest.MonkeyPatch, home: Path, **variables: str) -> dict[str, str]:
    """Take on the environment of a user who has the library and these variables."""
    environment = dict(tracker_environment(home, **variables))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PYTHONPATH", "HOME", *variables):
        monkeypatch.setenv(name, environment[name])
    return environment


@pytest.mark.slow
def test_a_run_and_its_resumption_are_one_run_on_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [*ASKED, f"policy.tokenizer.chat_template_kwargs={{api_key: {SECRET}}}"]
    with wandb_server() as server:
        _enter(monkeypatch, tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, WANDB_SILENT="true")
        said = track(tmp_path / "run", hidden, 0, 5) + track(tmp_path / "run", hidden, 4, 7)
    (run,) = server.runs.values()
    log = log_folder(tmp_path / "run")
    line = f"tracked by wandb: {log}"
    assert said == [line, line, f"wandb: run {run.name} has steps up to 5 already, which stay as they are"]
    assert (run.project, run.display_name, run.exit_codes) == ("p", "n", [0, 0])
    assert [(row["_step"], row.get("train/loss")) for row in run.rows] == [
        (0, None),
        *((n, pytest.approx(1 / n)) for n in range(1, 8)),
    ]
    assert [row["_step"] for row in run.rows if "validation-held/loss" in row] == [0, 5, 7]
    assert run.config["dpo"]["value"]["reference_policy_kl_penalty"] == 0.05
    assert run.config["lineage"]["value"] == LINEAGE
    assert run.config["policy"]["value"]["tokenizer"]["chat_template_kwargs"] == {"api_key": "***"}
    assert server.keys == {KEY}  # in the header that it is for
    assert not [body for body in server.bodies if SECRET in body or KEY in body]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert KEY.encode() not in written


@pytest.mark.slow
def test_without_a_key_it_is_offline_and_what_is_said_sends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = _enter(monkeypatch, tmp_path)
    said = track(tmp_path / "run", ASKED, 0, 3)
    offline = next(line for line in said if line.startswith("wandb: "))
    assert "the run is kept offline" in offline
    command = offline.split("`")[-2].split()
    assert command[:2] == ["wandb", "sync"]
    with wandb_server() as server:
        there = {**environment, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        subprocess.run([sys.executable, "-m", *command], env=there, cwd=tmp_path, check=True, capture_output=True)
    (run,) = server.runs.values()
    assert [row.get("train/loss") for row in run.rows] == [None, 1.0, 0.5, pytest.approx(1 / 3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "due"),
    [
        ({"WANDB_MODE": "offline"}, 0),
        ({"WANDB_MODE": "disabled"}, 0),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}, 1),  # nobody listens
    ],
)
def test_modes_and_a_server_that_is_not_there(
    variables: dict[str, str], due: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _enter(monkeypatch, tmp_path, **variables)
    said = track(tmp_path / "run", ASKED, 0, 2)
    assert [line for line in said if "kept offline" in line] == [line for line in said if line.startswith("wandb: ")]
    assert (len(said), sum("kept offline" in line for line in said)) == (1 + due, due)
    offline = [path.parent.name for path in tmp_path.rglob("*.wandb")]
    assert len([name for name in offline if name.startswith("offline-run-")]) == (variables.get("WANDB_MODE") != "disabled")
