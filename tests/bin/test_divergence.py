"""dpo-train on a run that goes wrong: what it says, records and keeps, and how it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from support import small
from support.programs import Done, check, command, error_line, execute_job, metrics, run

pytestmark = pytest.mark.slow

BATCH, STEPS = 8, 18
COMMON = (
    "policy.precision=float32",
    f"policy.train_global_batch_size={BATCH}",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.name=constant",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.reference_policy_kl_penalty=0.1",
    f"dpo.max_num_steps={STEPS}",
    "dpo.val_period=0",
    "dpo.val_at_start=false",
    "dpo.val_at_end=false",
    "data.shuffle=false",
    "checkpointing.save_period=13",
    "checkpointing.keep_top_k=1",
    "checkpointing.metric_name=null",
)
EVERY, STOP = ("checkpointing.save_period=1",), ("dpo.on_divergence=stop",)


@pytest.fixture(scope="module")
def base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """INPUT and --policy: pairs that are easily learned, and from step 10 on the same ones with their responses swapped."""
    folder = tmp_path_factory.mktemp("diverges")
    one = small.random_pairs(STEPS // 2 * BATCH, 5)
    turned = small.Tokens(one.prompts * 2, [*one.chosen, *one.rejected], [*one.rejected, *one.chosen])
    small.write_pairs(folder / "pairs.arrow", turned)
    scored = ("-o", folder / "scored.arrow", "--policy", llama, "--precision", "float32")
    check("ref-logprobs", folder / "pairs.arrow", *scored)
    return (folder / "scored.arrow", "--policy", llama)


def status(run_dir: Path) -> dict:
    return orjson.loads((run_dir / "run.json").read_bytes())


def warnings(done: Done) -> list[str]:
    return [line for line in done.stderr.decode().splitlines() if line.startswith("dpo-train: warning: step ")]


@pytest.fixture(scope="module")
def warned(base: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A run that goes on to its end, with what can be resumed."""
    run_dir = tmp_path_factory.mktemp("runs") / "warned"
    return run_dir, check("dpo-train", *base, "--run-dir", run_dir, *COMMON, "checkpointing.save_optimizer=true")


def test_a_run_that_goes_wrong_is_warned_of(warned: tuple[Path, Done]) -> None:
    run_dir, done = warned
    assert len(metrics(run_dir)) == STEPS
    said, alarms = warnings(done), status(run_dir)["alarms"]
    assert len(said) == 3 * len(alarms) >= 6
    loss = [line for line in said if ": the loss is above its start: " in line]
    assert len(loss) <= 2  # and once more if it gets much worse
    step = int(loss[0].split("step ")[1].split(":")[0])
    at = said.index(loss[0])
    assert said[at + 1].startswith(f"dpo-train: warning: step {step}: worst of this step's pairs: line ")
    lines = {(step - 1) * BATCH + place for place in range(1, BATCH + 1)}
    alarm = next(one for one in alarms if one["kind"] == "loss_above_start")
    assert {pair["source_line"] for pair in alarm["pairs"]} < lines
    tried = "dpo.reference_policy_kl_penalty=0.2 (it is 0.1), or policy.optimizer.lr="
    assert said[at + 2].startswith(f"dpo-train: warning: step {step}: try {tried}")
    assert alarm["remedy"] in said[at + 2]
    assert (status(run_dir)["status"], status(run_dir)["reason"]) == ("done", None)
    summary = [line for line in done.stderr.decode().splitlines() if line.startswith("dpo-train: warned of ")]
    assert len(summary) == 1
    assert f"loss above start (step {step})" in summary[0]


def test_the_worst_pair_is_the_one_with_the_largest_loss(warned: tuple[Path, Done]) -> None:
    """By the log of all pairs, which is written by another part of the program."""
    from nemotron_dpo.streams import open_reader

    run_dir, _ = warned
    alarm = next(one for one in status(run_dir)["alarms"] if one["kind"] == "loss_above_start")
    with open_reader(run_dir / "pairs_log.arrow", "pairs_log") as reader:
        rows = [row for row in reader.read_all().to_pylist() if row["step"] == alarm["step"]]
    worst = sorted(rows, key=lambda row: -row["loss"])[:3]
    expected = [(row["pair_id"].hex(), row["source_line"]) for row in worst]
    assert [(pair["pair_id"], pair["source_line"]) for pair in alarm["pairs"]] == expected


def test_stop_ends_it_with_a_status_of_its_own_and_keeps_what_was_good(base: tuple[object, ...], tmp_path: Path) -> None:
    """Of a checkpoint a step the newest is kept, one from before the last 8 steps, and one that would have been that next."""
    run_dir = tmp_path / "run"
    arguments = (*base, "--run-dir", run_dir, *COMMON, *EVERY, *STOP, "checkpointing.save_optimizer=true")
    done = run("dpo-train", *arguments)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 3, done.stderr.decode()
    step, recorded = metrics(run_dir)[-1]["step"], status(run_dir)
    assert 12 <= step < 16, "kept is what follows from this"
    kept = sorted(int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").iterdir())
    assert kept == [1, 8, step - 1]
    assert recorded["alarms"][-1]["good_step"] == step - 9
    assert (recorded["status"], recorded["step"]) == ("stopped", step)
    assert recorded["reason"].startswith("dpo.on_divergence: ")
    assert lines[-1] == (
        f"dpo-train: ended after step {step} of {STEPS} by {recorded['reason']}: the last good checkpoint is "
        f"{run_dir}/checkpoints/step_1; step_8, step_{step - 1} may be worse"
    )
    check("ckpt-export", run_dir / "checkpoints" / "step_1", "-o", tmp_path / "good", "--to", "hf")
    again = run("dpo-train", *arguments)  # it goes on from the newest, and is as bad as before
    assert (again.returncode, again.stderr.decode().splitlines()[-1]) == (3, lines[-1])
    assert (status(run_dir)["status"], status(run_dir)["alarms"]) == ("stopped", recorded["alarms"])


def test_stop_before_anything_was_good(base: tuple[object, ...], tmp_path: Path) -> None:
    done = run("dpo-train", *base, "--run-dir", tmp_path, *COMMON, *EVERY, *STOP, "policy.optimizer.lr=1")
    assert done.returncode == 3, done.stderr.decode()
    assert ": none of its steps was good; step_1, step_7 may be worse" in done.stderr.decode().splitlines()[-1]


def test_off_looks_away(base: tuple[object, ...], warned: tuple[Path, Done], tmp_path: Path) -> None:
    """As on a command line, where YAML takes the word for false; every number is the same."""
    done = check("dpo-train", *base, "--run-dir", tmp_path, *COMMON, "dpo.on_divergence=off", "checkpointing.enabled=false")
    assert warnings(done) == []
    assert status(tmp_path)["alarms"] == []
    ours, theirs = ([record["train/loss"] for record in metrics(folder)] for folder in (tmp_path, warned[0]))
    assert ours == theirs
    done = run("dpo-train", *base, "--run-dir", tmp_path / "x", *COMMON, "dpo.on_divergence=on")
    expected = """"dpo.on_divergence" is True where 'warn' or 'stop' or 'off' is due"""
    assert expected in error_line(done, "dpo-train")
    assert done.returncode == 1


def test_a_resumed_run_says_the_rest_and_may_be_stopped_then(
    base: tuple[object, ...], warned: tuple[Path, Done], tmp_path: Path
) -> None:
    """Thirteen steps and then the others find what a run without interruption finds, and run.json has all of it."""
    settings = (*COMMON, "checkpointing.save_optimizer=true")
    first = check("dpo-train", *base, "--run-dir", tmp_path, *settings, "dpo.max_num_steps=13")
    second = check("dpo-train", *base, "--run-dir", tmp_path, *settings)
    whole_dir, whole = warned
    assert warnings(first) + [line for line in warnings(second) if " was 13, is " not in line] == warnings(whole)
    assert status(tmp_path)["alarms"] == status(whole_dir)["alarms"]


@pytest.mark.multiprocess
def test_two_processes_end_together_and_name_the_same_pairs(
    base: tuple[object, ...], warned: tuple[Path, Done], tmp_path: Path
) -> None:
    argv = command("dpo-train", *base, "--run-dir", tmp_path, *COMMON, *STOP)
    done = execute_job(2, argv)
    assert done.returncode == 3, done.stderr.decode()
    first, whole = status(tmp_path)["alarms"], status(warned[0])["alarms"]
    assert [(one["kind"], one["step"], one["pairs"]) for one in first] == [
        (one["kind"], one["step"], one["pairs"]) for one in whole[: len(first)]
    ]
    assert np.isfinite(metrics(tmp_path)[-1]["train/loss"])
