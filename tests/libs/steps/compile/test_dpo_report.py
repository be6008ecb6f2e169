"""The commands that a report ends with: each is to work as it is pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nemotron_dpo.config import load_run
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile import dpo_report
from nemotron_dpo.steps.compile.dpo_plan import compile_plan
from nemotron_dpo.steps.compile.dpo_report import report

STEP = configs_root() / "rl" / "nemo_rl" / "dpo"
BASE = ["policy.model_name=org/model", "data.train.path=t.jsonl", "policy.max_total_sequence_length=128"]
BETA, OUT = "dpo.reference_policy_kl_penalty", "checkpointing.checkpoint_dir"
# Words that were typed, settings that a file might have had -> the command that is proposed. Without noise or a validation
# that turned it is twice the beta; the shipped one is 0.05, and the shipped rate 5e-7.
AGAIN = [
    (["-c", "tiny"], [], f"-c tiny {BETA}=0.1"),
    (["-c", "tiny", f"{BETA}=0.1", "a.b=1"], [], f"-c tiny a.b=1 {BETA}=0.2"),
    (["-c", "tiny", "--force"], [], f"-c tiny {BETA}=0.1"),
    (["-c", "tiny"], [f"{OUT}=out/"], f"-c tiny {BETA}=0.1 {OUT}=out-2"),
    (["-c", "tiny", f"{OUT}=out-2"], [], f"-c tiny {BETA}=0.1 {OUT}=out-3"),
    (["-c", "tiny"], [f"{OUT}=dpo-2026"], f"-c tiny {BETA}=0.1 {OUT}=dpo-2026-2"),
    (["-c", "tiny"], [f"{OUT}=my job/results"], f"-c tiny {BETA}=0.1"),
    (["--name", "mine", "-c", "tiny"], [], f"-c tiny {BETA}=0.1"),
    (["-c", "orpo"], ["dpo.preference_loss=orpo"], "-c orpo policy.optimizer.lr=2.5e-07"),
    (["-c", "sft"], ["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"], "-c sft policy.optimizer.lr=2.5e-07"),
]  # fmt: skip


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes a second, and is tested below."""
    monkeypatch.setattr(dpo_report, "_page", lambda plan: plan.job / "report.html")


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize(("typed", "settings", "again"), AGAIN)
def test_the_next_run(
    typed: list[str], settings: list[str], again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = _report(typed, settings)
    assert said[-1] == f"  nemotron-steps run dpo {again}"


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize(
    ("warmup_steps", "again"), [(20, "policy.scheduler.warmup_steps=2"), (19, "policy.optimizer.lr=5e-06")]
)
def test_where_all_was_warm_up_it_is_made_shorter(
    warmup_steps: int, again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 steps, whose margins are 0 and known to a hundredth."""
    monkeypatch.chdir(tmp_path)
    values = '"train/loss": 0.7, "train/rewards_chosen_mean": 0.0, "train/rewards_rejected_mean": 0.0'
    rows = "".join(f'{{"step": {n}, {values}, "train/reward_noise_floor": 0.01}}\n' for n in range(1, 21))
    said = _report([], [f"policy.scheduler.warmup_steps={warmup_steps}"], rows)
    assert said[-1] == f"  nemotron-steps run dpo {again}"


@pytest.mark.usefixtures("no_page")
def test_paths_with_spaces_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, score, export, _ = _report(["-c", "my config.yaml"], [])[-4:]
    trained = str(Path("my job/checkpoint_megatron"))
    wanted = ["policy.model_name=" + trained, "reference.model_name=org/model", "data.path=HELD_OUT.jsonl"]
    assert shlex.split(score) == ["nemotron-steps", "run", "eval/preference_score", *wanted]
    assert shlex.split(export) == ["ckpt-export", trained, "-o", "my job/checkpoint_hf", "--to", "hf"]


@pytest.mark.slow
def test_the_page_is_named_and_where_it_fails_the_run_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails where there is no such program, where the program says why, where it crashes, and where it takes too long."""
    monkeypatch.chdir(tmp_path)
    assert "report      my job/report.html" in _report([], [])
    assert Path("my job/report.html").read_text().startswith("<!doctype html>")
    for script, said in (
        (None, "report      not written ([Errno 2] No such file or directory: "),
        ("echo dpo-report: error: full >&2; exit 1", "report      not written (dpo-report: error: full)"),
        ("kill -9 $$", "report      not written (exit -9)"),
        ("sleep 9", "report      not written (Command "),
    ):
        program = tmp_path / "program"
        program.unlink(missing_ok=True)
        if script:
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setattr(dpo_report, "executable", lambda name, program=program: str(program))
        monkeypatch.setattr(dpo_report, "_PAGE_SECONDS", 1)
        lines = _report([], [])
        assert [line for line in lines if line.startswith(said)], lines
        assert lines[-1].startswith("  nemotron-steps run dpo")


ONE_STEP = '{"step": 1, "train/loss": 0.5, "train/accuracy": 0.75}\n'


def _report(typed: list[str], settings: list[str], metrics: str = ONE_STEP) -> list[str]:
    """The lines of the report of a run, whose job folder has a space in its name."""
    words = [word for word in typed if "=" in word and not word.startswith("a.b")]
    run = load_run(None, [*BASE, *settings, *words])[0]
    plan = compile_plan(run, Path("my job"), STEP)
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    (plan.run_dir / "metrics.jsonl").write_text(metrics)
    return report(plan, run, ["nemotron-steps", "run", "dpo", *typed]).splitlines()
