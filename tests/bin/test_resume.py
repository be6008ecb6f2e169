"""dpo-train interrupted and resumed: the numbers and the weights of a run that was never interrupted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.sources import resolve
from nemotron_dpo.streams import open_reader
from support import small
from support.programs import ROOT, Done, check, command, error_line, execute, execute_job, metrics, run, run_with_small_files

pytestmark = pytest.mark.slow

COMMON = (
    "policy.precision=float32",
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.scheduler.warmup_steps=0",
    "policy.optimizer.lr=0.003",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=6",
    "dpo.max_num_epochs=2",
    "dpo.val_period=2",
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=null",
    "checkpointing.save_optimizer=true",
)
BFLOAT16 = ("policy.precision=bfloat16", "policy.megatron_cfg.distributed_data_parallel_config.grad_reduce_in_fp32=true")
TP2 = ("policy.megatron_cfg.tensor_model_parallel_size=2",)


@pytest.fixture(scope="module")
def base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """INPUT and what else every run is given beside its folder and settings."""
    folder = tmp_path_factory.mktemp("scored")
    small.write_pairs(folder / "pairs.arrow", small.random_pairs(24, seed=11))
    scored = folder / "scored.arrow"
    check("ref-logprobs", folder / "pairs.arrow", "-o", scored, "--policy", llama, "--precision", "float32")
    return (scored, "--policy", llama, "--validation", scored)


# The runs of this file validate on what they train on.
SEEN = (
    "dpo-train: warning: 24 of the 24 pairs of validation set default are trained on as well: "
    "what it measures of them is no test\n"
)


@pytest.fixture(scope="module")
def whole(base: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of six steps without interruption."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    check("dpo-train", *base, "--run-dir", run_dir, *COMMON)
    return run_dir


@pytest.fixture(scope="module")
def terminated(base: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three steps, ended by SIGTERM in the third."""
    run_dir = tmp_path_factory.mktemp("runs") / "terminated"
    done = struck("SIGTERM", 3, "dpo-train", *base, "--run-dir", run_dir, *COMMON)
    assert done.returncode == 143, done.stderr.decode()
    assert done.stderr.decode().endswith("dpo-train: ended after step 3 of 6 by SIGTERM: the same command resumes it\n")
    return run_dir


@pytest.mark.parametrize(("name", "status"), [("SIGHUP", 129), ("SIGINT", 130)])
def test_a_closed_terminal_and_ctrl_c_end_a_run_as_sigterm_does(
    base: tuple[object, ...], tmp_path: Path, name: str, status: int
) -> None:
    done = struck(name, 1, "dpo-train", *base, "--run-dir", tmp_path / "run", *COMMON)
    assert done.returncode == status, done.stderr.decode()
    assert done.stderr.decode().endswith(f"dpo-train: ended after step 1 of 6 by {name}: the same command resumes it\n")


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [("SIGHUP", 129, "the terminal hung up"), ("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")],
)
def test_where_a_run_ends_that_cannot_be_resumed_is_said(
    base: tuple[object, ...], tmp_path: Path, name: str, status: int, word: str
) -> None:
    never = "checkpointing.save_optimizer=false"
    done = struck(name, 2, "dpo-train", *base, "--run-dir", tmp_path / "run", *COMMON, never)
    assert done.returncode == status, done.stderr.decode()
    place = f"dpo-train: ended after step 2 of 6 by {name}: without checkpointing.save_optimizer it cannot be resumed\n"
    assert done.stderr.decode().endswith(f"{place}dpo-train: error: {word}\n")


def test_of_what_a_second_ctrl_c_takes_nothing_is_promised(base: tuple[object, ...], tmp_path: Path) -> None:
    """The step that it strikes is not saved, whatever else can be resumed."""
    done = struck("SIGINT+SIGINT", 2, "dpo-train", *base, "--run-dir", tmp_path / "run", *COMMON)
    assert done.returncode == 130, done.stderr.decode()
    assert done.stderr.decode().endswith("; Ctrl-C again ends at once\ndpo-train: error: interrupted\n")


def struck(signal: str, step: int, *arguments: object, rank: int = 0, processes: int = 1, launched: bool = False) -> Done:
    """Run a program until `signal` strikes `rank` in `step`."""
    strike = map(str, (ROOT / "tests" / "support" / "struck.py", signal, step, rank))
    argv = [sys.executable, *strike, *command(str(arguments[0]), *arguments[1:])[1:]]
    return execute_job(processes, argv, launched=launched) if processes > 1 else execute(argv)


def resume(run_dir: Path, *arguments: object, processes: int = 1) -> str:
    """Run dpo-train to its end and return what it said of the resumption."""
    argv = command("dpo-train", *arguments, "--run-dir", run_dir)
    done = execute_job(processes, argv) if processes > 1 else execute(argv)
    assert done.returncode == 0, done.stderr.decode()
    (line,) = [line for line in done.stderr.decode().splitlines() if ": resuming after " in line]
    return line.removeprefix(f"dpo-train: {run_dir}/checkpoints/")


def measured(run_dir: Path) -> list[dict]:
    """All records that have more than timings and memory, without these."""
    return [found for record in metrics(run_dir) if len(found := _repeatable(record)) > 1]


def info(run_dir: Path) -> dict:
    return _repeatable(orjson.loads((run_dir / "checkpoints" / "step_6" / "training_info.json").read_bytes()))


def _repeatable(values: dict) -> dict:
    return {name: value for name, value in values.items() if not name.startswith(("timing", "memory", "val:timing"))}


def weights(run_dir: Path) -> dict[str, bytes]:
    """The bytes of every tensor file of the last step, the optimizer's included."""
    step = run_dir / "checkpoints" / "step_6"
    return {str(path.relative_to(step)): path.read_bytes() for path in sorted(step.rglob("*.distcp"))}


def same(run_dir: Path, other: Path) -> None:
    """Every number that is no timing, and every bit of weights and optimizer, is equal."""
    assert measured(run_dir) == measured(other)
    assert info(run_dir) == info(other)
    assert weights(run_dir) == weights(other)
    assert len(weights(other)) >= 2
    log = (run_dir / "pairs_log.arrow").read_bytes()
    assert log == (other / "pairs_log.arrow").read_bytes()
    with open_reader(run_dir / "pairs_log.arrow", "pairs_log") as reader:
        assert len(reader.read_all()) == 6 * 8 + 4 * 24  # each pair of each step and validation


def test_a_killed_run_resumes_from_its_last_checkpoint_bit_for_bit(base, whole: Path, tmp_path: Path) -> None:
    done = struck("SIGKILL", 5, "dpo-train", *base, "--run-dir", tmp_path, *COMMON)
    assert done.returncode == -9
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":6,"train/lo')  # as a kill in the middle of a write leaves it
    assert measured(whole)[-3]["step"] == 5
    assert resume(tmp_path, *base, *COMMON) == "step_4: resuming after step 4 of 6"
    same(tmp_path, whole)


def test_sigterm_ends_the_step_saves_and_the_same_command_resumes(base, whole: Path, terminated: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(terminated, tmp_path / "run")
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_2", "step_3"]
    assert resume(run_dir, *base, *COMMON) == "step_3: resuming after step 3 of 6"
    same(run_dir, whole)
    facts = json.loads((run_dir / "run.json").read_bytes())
    (run_dir / "run.json").write_text(json.dumps({**facts, "status": "running"}))  # as a kill behind the last save leaves it
    done = check("dpo-train", *base, "--run-dir", run_dir, *COMMON)
    assert done.stderr.decode() == f"{SEEN}dpo-train: {run_dir}/checkpoints/step_6: all 6 steps are done already\n"
    same(run_dir, whole)
    settled = json.loads((run_dir / "run.json").read_bytes())
    assert (settled["status"], settled["step"], settled["earlier"][-1]["status"]) == ("done", 6, "killed")


def test_bfloat16_keeps_its_float32_master_weights(base, tmp_path: Path) -> None:
    arguments = (*base, *COMMON, *BFLOAT16)
    check("dpo-train", *arguments, "--run-dir", tmp_path / "whole")
    struck("SIGKILL", 3, "dpo-train", *arguments, "--run-dir", tmp_path / "run")
    assert resume(tmp_path / "run", *arguments) == "step_2: resuming after step 2 of 6"
    same(tmp_path / "run", tmp_path / "whole")


def test_out_of_time_and_a_piped_input(base, whole: Path, tmp_path: Path) -> None:
    """One step a run by checkpoint_must_save_by, of pairs that came through a pipe, again through one, and from the folder."""
    scored, *others = base
    content = Path(str(scored)).read_bytes()
    limit = "checkpointing.checkpoint_must_save_by=00:00:00:00"  # past before the first step, however fast the start
    for step in (1, 2):
        done = check("dpo-train", "-", *others, "--run-dir", tmp_path, *COMMON, limit, input=content)
        ended = f"ended after step {step} of 6 by checkpointing.checkpoint_must_save_by: the same command resumes it\n"
        assert done.stderr.decode().endswith(ended)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "checkpoints",
            "input.arrow",
            "metrics.jsonl",
            "pairs_log.arrow",
            "run.json",
        ]
    assert resume(tmp_path, tmp_path / "input.arrow", *others, *COMMON) == "step_2: resuming after step 2 of 6"
    same(tmp_path, whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", [TP2, ()], ids=["tp2", "dp2"])
def test_one_process_resumes_as_two(layout: tuple[str, ...], base, whole: Path, terminated: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(terminated, tmp_path / "run")
    assert resume(run_dir, *base, *COMMON, *layout, processes=2) == "step_3: resuming after step 3 of 6"
    close(run_dir, whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "layout",
    [(*TP2,), (), (*TP2, "policy.megatron_cfg.distributed_data_parallel_config.use_distributed_optimizer=false")],
    ids=["tp2", "dp2", "tp2-plain-optimizer"],
)
def test_two_processes_resume_as_one(layout: tuple[str, ...], base, whole: Path, tmp_path: Path) -> None:
    """SIGTERM strikes one rank, and both end; then one process goes on, with what of the layout is not the processes."""
    arguments, launched = (*base, "--run-dir", tmp_path, *COMMON, *layout), layout == TP2
    done = struck("SIGTERM", 3, "dpo-train", *arguments, rank=1, processes=2, launched=launched)
    assert b"dpo-train: ended after step 3 of 6 by SIGTERM" in done.stderr, done.stderr.decode()
    assert done.returncode != 0
    optimizer = layout[1:] if layout else ()
    assert resume(tmp_path, *base, *COMMON, *optimizer) == "step_3: resuming after step 3 of 6"
    close(tmp_path, whole)


def close(run_dir: Path, whole: Path) -> None:
    """Every number is equal to 1e-4, as between any two layouts."""
    for ours, theirs in zip(measured(run_dir), measured(whole), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (ours["step"], name)


def test_weights_are_used_without_the_optimizer(terminated: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(terminated, tmp_path / "run")
    check("ckpt-export", run_dir, "-o", tmp_path / "with", "--to", "megatron")
    shutil.rmtree(run_dir / "checkpoints" / "step_3" / "optimizer")
    check("ckpt-export", run_dir, "-o", tmp_path / "without", "--to", "megatron")
    for name in ("__0_0.distcp", "__0_1.distcp", "common.pt"):
        assert (resolve(tmp_path / "with").path / name).read_bytes() == (resolve(tmp_path / "without").path / name).read_bytes()


def test_another_run_is_refused_and_a_longer_one_warned_of(base, terminated: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(terminated, tmp_path / "run")
    step = run_dir / "checkpoints" / "step_3"
    done = run("dpo-train", *base, "--run-dir", run_dir, *COMMON, "dpo.seed=1", "policy.optimizer.lr=0.001")
    assert error_line(done, "dpo-train") == (
        f"{step}: belongs to a run with other settings: dpo.seed was 42, is 1; policy.optimizer.lr was 0.003, is 0.001: "
        "set them back, or start in another folder"
    )
    assert done.returncode == 1
    done = check("dpo-train", *base, "--run-dir", run_dir, *COMMON, "dpo.max_num_steps=3")
    assert done.stderr.decode() == SEEN + (
        "dpo-train: warning: dpo.max_num_steps was 6, is 3: the rest of the run follows the new value\n"
        f"dpo-train: {step}: all 3 steps are done already\n"
    )
    assert measured(run_dir) == measured(terminated)
    shutil.rmtree(step / "optimizer")
    shutil.copytree(step.with_name("step_2") / "optimizer", step / "optimizer")
    done = run("dpo-train", *base, "--run-dir", run_dir, *COMMON)
    assert error_line(done, "dpo-train") == (
        f"{step}/optimizer/integrity.json: is not what was saved with step 3: "
        "without step_3 the run goes on from the checkpoint before it"
    )
    assert done.returncode == 1


def test_a_damaged_optimizer_is_one_line(base, terminated: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(terminated, tmp_path / "run")
    optimizer = run_dir / "checkpoints" / "step_3" / "optimizer"
    largest = max(optimizer.glob("*.distcp"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    done = run("dpo-train", *base, "--run-dir", run_dir, *COMMON)
    line = done.stderr.decode().splitlines()[-1]
    assert line.startswith(f"dpo-train: error: {largest}: is cut short ("), done.stderr.decode()
    assert line.endswith("is the copy complete? Without step_3 the run goes on from the checkpoint before it")
    assert "Traceback" not in done.stderr.decode()
    assert done.returncode == 1
    assert measured(run_dir) == measured(terminated)


def test_a_full_disk_leaves_what_was_saved(base, whole: Path, terminated: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(terminated, tmp_path / "run")
    step = whole / "checkpoints" / "step_6"
    sizes = {part: [file.stat().st_size for file in (step / part).rglob("*.distcp")] for part in ("policy", "optimizer")}
    limit = (max(sizes["policy"]) + max(sizes["optimizer"])) // 2  # the weights fit, the optimizer does not
    done = run_with_small_files(limit, "dpo-train", *base, "--run-dir", run_dir, *COMMON)
    line = done.stderr.decode().splitlines()[-1]
    assert line.startswith(f"dpo-train: error: {run_dir}/checkpoints/step_4: cannot be written ("), done.stderr.decode()
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_2", "step_3"]
    assert resume(run_dir, *base, *COMMON) == "step_3: resuming after step 3 of 6"
    same(run_dir, whole)
