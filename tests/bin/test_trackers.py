"""dpo-train with trackers: a library that is missing, and what TensorBoard gets of a real run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from support import small
from support.kept_kernels import with_kernels
from support.programs import check, error_line, metrics, run
from support.tracked import told
from support.tracker_packages import tracker_environment

NAMES = ("tensorboard", "wandb", "mlflow", "swanlab", "trackio")
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1])
events.Reload()
scalars = {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps({"scalars": scalars, "text": events.Tensors("run")[0].tensor_proto.string_val[0].decode()}))
"""


def test_a_missing_library_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    missing = [name for name in NAMES if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("all libraries of trackers are installed")
    for name in missing:
        argv = ("no.arrow", "--policy", "no", "--run-dir", tmp_path / "run", f"logger.{name}_enabled=true")
        done = run("dpo-train", *argv, cwd=tmp_path)
        assert (done.returncode, error_line(done, "dpo-train")) == (
            1,
            f'"logger.{name}_enabled" is true, and the library {name} is not installed: '
            f"pip install 'nemotron-dpo[{name}]', or set it to false",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tensorboard_has_what_metrics_jsonl_has(llama: Path, tmp_path: Path) -> None:
    source = small.write_pairs(tmp_path / "pairs.arrow", small.random_pairs(4, seed=1))
    sft = ("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "policy.train_global_batch_size=2", "dpo.max_num_steps=2")
    size = ("policy.precision=float32", "policy.max_total_sequence_length=64", "checkpointing.enabled=false")
    environment = tracker_environment(tmp_path, OMP_NUM_THREADS="1", XDG_CACHE_HOME=str(with_kernels(tmp_path / "cache")))
    argv = (source, "--policy", llama, "--run-dir", tmp_path / "run", "--validation", source, *sft, *size)
    done = check("dpo-train", *argv, "logger.tensorboard_enabled=true", "logger.log_dir=logs", cwd=tmp_path, env=environment)
    assert f"dpo-train: tracked by tensorboard: {tmp_path}/logs/exp_001" in done.stderr.decode().splitlines()
    read = told(READ, environment, tmp_path / "logs" / "exp_001" / "tensorboard")
    due: dict[str, list] = {}
    for record in metrics(tmp_path / "run"):
        step = record.pop("step")
        for name, value in record.items():
            due.setdefault(name, []).append([step, pytest.approx(value, rel=1e-6)])
    assert read["scalars"] == due
    facts = json.loads(read["text"].removeprefix("```\n").removesuffix("\n```"))
    assert facts["config"]["dpo"]["sft_loss_weight"] == 1
    assert facts["lineage"]["policy"] == str(llama)
