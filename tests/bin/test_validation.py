"""dpo-train's validations: each set in its own time, of a policy that is not trained, and pairs of it as text."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from nemotron_dpo.steps.tiny_policy import write_policy
from nemotron_dpo.streams import open_reader
from support import small
from support.programs import ROOT, check, error_line, metrics, run

pytestmark = pytest.mark.slow
COMMON = ("policy.precision=float32", "policy.train_global_batch_size=8", "policy.max_total_sequence_length=64")
QUICK = (*COMMON, "policy.scheduler.warmup_steps=0", "policy.optimizer.lr=0.003", "checkpointing.enabled=false")


@pytest.fixture(scope="module")
def base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """INPUT, the policy, and two validation sets of other pairs: 10 of `default`, 6 of `hard`."""
    folder, policy = tmp_path_factory.mktemp("scored"), ("--policy", llama)
    for name, count, seed in (("train", 24, 11), ("held", 10, 12), ("hard", 6, 13)):
        small.write_pairs(folder / "pairs.arrow", small.random_pairs(count, seed=seed))
        check("ref-logprobs", folder / "pairs.arrow", "-o", folder / f"{name}.arrow", *policy, "--precision", "float32")
    held, hard = folder / "held.arrow", f"hard={folder / 'hard.arrow'}"
    return (folder / "train.arrow", *policy, "--validation", held, "--validation", hard)


def validated(run_dir: Path) -> list[tuple[int, str, float]]:
    """(step, set, pairs) of each validation."""
    named = ((record["step"], name) for record in metrics(run_dir) for name in record if name.endswith("num_valid_samples"))
    sets = [(step, name.partition("/")[0]) for step, name in named if name.startswith("validation-")]
    with open_reader(run_dir / "pairs_log.arrow", "pairs_log") as reader:
        rows = [(row["step"], row["split"]) for row in reader.read_all().to_pylist()]
    return [(step, split.removeprefix("validation-"), rows.count((step, split))) for step, split in sets]


def test_each_set_in_its_own_time(base: tuple[object, ...], tmp_path: Path) -> None:
    own = ("val_period=1", "val_batches=1", "val_global_batch_size=4", "val_at_start=false", "val_at_end=false")
    settings = ("dpo.val_period=0", "dpo.val_at_end=true", "dpo.max_num_steps=3", *(f"dpo.val_sets.hard.{key}" for key in own))
    check("dpo-train", *base, "--run-dir", tmp_path, *QUICK, *settings)
    default = [(0, "default", 10), (3, "default", 10)]
    assert sorted(validated(tmp_path)) == sorted([*default, (1, "hard", 4), (2, "hard", 4), (3, "hard", 4)])


def test_a_policy_is_validated_without_training(base: tuple[object, ...], llama: Path, tmp_path: Path) -> None:
    """Every set, whatever its cadence; nothing is saved; what was measured is what the start of a training measures."""
    never = ("dpo.val_period=0", "dpo.val_at_start=false", "dpo.val_at_end=false", "policy.train_global_batch_size=512")
    done = check("dpo-train", *base, "--run-dir", tmp_path / "run", *COMMON, *never, "dpo.max_num_steps=0")
    said = done.stderr.decode()
    assert "warning" not in said
    assert said.endswith("dpo-train: nothing was trained\n")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "pairs_log.arrow", "run.json"]
    assert validated(tmp_path / "run") == [(0, "default", 10), (0, "hard", 6)]
    told = orjson.loads((tmp_path / "run" / "run.json").read_bytes())
    assert (told["status"], told["step"]) == ("done", 0)
    check("dpo-train", *base, "--run-dir", tmp_path / "trained", *QUICK, "dpo.max_num_steps=1", "checkpointing.enabled=true")
    numbers = [
        [{name: value for name, value in record.items() if "timing" not in name} for record in metrics(folder)[:2]]
        for folder in (tmp_path / "run", tmp_path / "trained")
    ]
    assert numbers[0] == numbers[1]
    done = run(
        "dpo-train", *base, "--run-dir", tmp_path / "none", *COMMON, "dpo.max_num_steps=0", "logger.num_val_samples_to_print=1"
    )
    assert f"{llama}" in error_line(done, "dpo-train")  # it has no tokenizer to show pairs by
    assert done.returncode == 1


def test_a_run_is_not_gone_on_with_to_validate(base: tuple[object, ...], tmp_path: Path) -> None:
    saving = (*QUICK, "checkpointing.enabled=true", "checkpointing.save_optimizer=true")
    check("dpo-train", *base, "--run-dir", tmp_path, *saving, "dpo.max_num_steps=1")
    done = run("dpo-train", *base, "--run-dir", tmp_path, *saving, "dpo.max_num_steps=0")
    expected = "has steps of a run, and with dpo.max_num_steps=0 nothing goes on from them: name another folder"
    assert error_line(done, "dpo-train") == f"{tmp_path}: {expected}"


def test_pairs_of_each_validation_are_shown(tmp_path: Path) -> None:
    """With the margin and the log-probs that the log has of them."""
    data = ROOT / "configs" / "rl" / "nemo_rl" / "dpo" / "data" / "validation.jsonl"
    policy = tmp_path / "policy"
    write_policy([data], policy)
    check("preference-tokenize", data, "-o", tmp_path / "pairs.arrow", "--tokenizer", policy, "--limit", 16)
    check("ref-logprobs", tmp_path / "pairs.arrow", "-o", tmp_path / "s.arrow", "--policy", policy, "--precision", "float32")
    given = (tmp_path / "s.arrow", "--policy", policy, "--validation", tmp_path / "s.arrow", "--run-dir", tmp_path / "run")
    settings = (*QUICK, "policy.max_total_sequence_length=512", "dpo.max_num_steps=1", "logger.num_val_samples_to_print=2")
    said = check("dpo-train", *given, *settings).stderr.decode()
    with open_reader(tmp_path / "run" / "pairs_log.arrow", "pairs_log") as reader:
        rows = [
            row for row in reader.read_all().to_pylist() if row["split"] == "validation-default" and row["source_line"] <= 2
        ]
    assert said.count(" of 2 of validation-default after step ") == len(rows) == 4
    for row in rows:
        place, step = row["source_line"], row["step"]
        head = f"dpo-train: pair {place} of 2 of validation-default after step {step}: margin {row['margin']:.4g}, chosen log-prob "
        assert f"{head}{row['chosen_logp']:.2f} ({row['chosen_log_ratio']:+.2f}), rejected log-prob " in said
    first = orjson.loads(data.read_bytes().splitlines()[0])
    assert all(said.count(f"  | {first[side]}") == 2 for side in ("chosen", "rejected"))
