"""One process of a job that trains a small policy for a few steps: `hybrid_job.py FOLDER JSON...`.

The folder is that of a Hugging Face model, or has the `weights.pt` of a hybrid of "pattern", a state dict of transformers. JSON
says the rest: {"pattern", "layout": fields of Layout, "steps",
"load": a folder to go on from or null, "save": a folder to leave weights and optimizer in or null, "recompute", "lora",
"bias_rate", "out": the file that rank 0 writes}. Several such jobs are done in turn, each with a policy and groups of its own.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

PAIRS = 8


def main(folder: Path, jobs: list[dict[str, Any]]) -> None:
    from megatron.core import parallel_state

    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.layout import Layout

    torch.set_num_threads(1)
    gc.set_threshold(10_000, 20, 20)  # as the tests have it: what these models leave is little
    try:
        for number, job in enumerate(jobs):
            if number:
                parallel_state.destroy_model_parallel()
            parallel.initialize(Layout(**job.get("layout", {})))
            done = _train(folder, job)
            if parallel.rank() == 0:
                Path(job["out"]).write_text(json.dumps(done))
    finally:
        parallel.shut_down()


def _train(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    from nemotron_dpo.checkpoint import megatron, optimizer_state
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.balanced_routers import move_biases
    from nemotron_dpo.policy.lora import Adapted, Base, adapt
    from nemotron_dpo.policy.lora_targets import Lora
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from support import hybrids

    model = _model(folder, job)
    load, save = (Path(job[key]) if job.get(key) else None for key in ("load", "save"))
    if job.get("lora") is not None:
        adapt(model, Adapted(Lora(**job["lora"]), Base("", "")))
    else:
        move_biases(model, job.get("bias_rate", 0.0))
    if load is not None:
        megatron.load(model, load)
    policy = TrainablePolicy(model, Optimization(lr=1e-3))
    if load is not None:
        optimizer_state.load(policy, load.with_suffix(".optimizer"))
    losses, norms = [], []
    for _ in range(job.get("steps", 2)):
        sums = policy.accumulate(_batches(), _loss)
        mine = sum(sums) if parallel.is_last_stage() else 0.0
        losses.append(parallel.sum_over_job(torch.tensor([float(mine)], dtype=torch.float64)).item())
        norms.append(policy.step(1e-3))
    if save is not None:
        _save(model, save)
        optimizer_state.save(policy, save.with_suffix(".optimizer"))
    biases = {name: t.tolist() for name, t in hybrids.named(model).items() if name.endswith("expert_bias")}
    return {"losses": losses, "norms": norms, "biases": biases}


def _model(folder: Path, job: dict[str, Any]) -> Any:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.model import build_policy
    from nemotron_dpo.policy.recompute import Recompute
    from nemotron_dpo.sources import resolve
    from support import hybrids

    recompute = Recompute(**job["recompute"]) if job.get("recompute") else None
    if (folder / "config.json").exists():
        return open_policy(resolve(folder), "float32", recompute=recompute)
    model = build_policy(hybrids.architecture(job["pattern"]), torch.float32, max_length=256, recompute=recompute)
    hybrids.fill(model, torch.load(folder / "weights.pt"))
    return model


def _save(model: Any, folder: Path) -> None:
    """The weights, or the adapters alone, without the small files beside them."""
    import torch.distributed as dist

    from nemotron_dpo.checkpoint import torch_dist
    from nemotron_dpo.policy.lora import adapted_of, only_adapters

    content = {"singleton_local_shards": False}
    weights = {k: v for k, v in model.sharded_state_dict(metadata=dict(content)).items() if not k.endswith("_extra_state")}
    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    torch_dist.save({"model": only_adapters(weights) if adapted_of(model) else weights}, folder, content)


def _batches() -> list[Any]:
    """This replica's part of the same pairs, in rows of at most four."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.policy.rows import pack_row
    from nemotron_dpo.training.batches import PairBatch
    from support import small

    pairs, (rank, size) = small.random_pairs(PAIRS, seed=7, longest=70), (parallel.data_rank(), parallel.data_size())
    rows = []
    end = (rank + 1) * PAIRS // size
    for start in range(rank * PAIRS // size, end, 4):
        part = slice(start, min(start + 4, end))
        row = pack_row(pairs.prompts[part], pairs.chosen[part], pairs.rejected[part], parallel.row_cut())
        rows.append(PairBatch(row=row, ref_logps_R=torch.zeros(len(row.targets_R)), pairs=tuple(range(PAIRS)[part])))
    return rows


def _loss(batch: Any, logps_R: torch.Tensor) -> tuple[torch.Tensor, float]:
    margins = batch.row.sums_of_responses(logps_R) @ torch.tensor([1.0, -1.0])
    total = -torch.nn.functional.logsigmoid(0.1 * margins).sum()
    return total, float(total)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(Path(sys.argv[1]), [json.loads(job) for job in sys.argv[2:]])
