"""Golden curves: what a tiny run computes, step by step, so that a change which moves a number cannot do so unnoticed.

  python tests/golden/curves.py            compare with curves.json: bit for bit where it was written on a machine like this one
  python tests/golden/curves.py --write    write curves.json anew, after a change that moves numbers and says which and why

The policy is a Llama of 2 layers, the pairs are random ids; both come from numpy's frozen generator, so no library decides what
is trained. Each run is ten steps in one precision, divided in one way over processes, with our kernels or with torch's
operations. Recorded are the loss and the gradient norm of each step, the rewards of half of the pairs after each step, by two,
and the log-probs of every pair under the policy before the first step and after the last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("curves.json")
sys.path[:0] = [str(ROOT / "libs"), str(ROOT / "tests")] if __name__ == "__main__" else []

from support import forks, small  # noqa: E402 - run as a script, it has to say first where the libraries are
from support.programs import command, execute_job, metrics, run  # noqa: E402 - as above

HIDDEN, FEED_FORWARD, HEADS, GROUPS, HEAD, LAYERS = 32, 64, 4, 2, 8, 2
WATCHED = 6  # validation sets of two pairs: as small as two replicas allow
SETTINGS = (
    "policy.train_global_batch_size=8",
    "policy.max_total_sequence_length=64",
    "policy.sequence_packing.train_mb_tokens=128",
    "policy.scheduler.warmup_steps=2",
    "policy.optimizer.lr=0.0005",
    "dpo.reference_policy_kl_penalty=0.3",
    "dpo.max_num_steps=10",
    "dpo.max_num_epochs=4",
    "dpo.val_period=1",
    "dpo.val_at_start=true",
    "checkpointing.save_period=10",
)


@dataclass(frozen=True)
class Curve:
    """One run: its precision, how many processes divide it and by which key, and whether our kernels compute."""

    precision: str
    divided: str = "single"
    kernels: bool = True

    @property
    def name(self) -> str:
        return f"{self.precision}-{self.divided}{'' if self.kernels else '-torch'}"


VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what chooses the order of sums, in torch and in our C
PRECISIONS = ("float32", "bfloat16")
CURVES = [Curve(precision, divided) for precision in PRECISIONS for divided in ("single", "tp2", "dp2")]
CURVES += [Curve(precision, kernels=False) for precision in PRECISIONS]


def machine() -> dict[str, str]:
    """What must be alike for two runs to round alike."""
    from importlib import metadata

    said = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu, flags = ({name.strip(): value.strip() for name, _, value in said}.get(name, "") for name in ("model name", "flags"))
    vectors = " ".join(name for name in VECTORS if name in flags.split())  # the host of a virtual machine may show it without
    compiler = subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True).stdout.splitlines()[:1]
    versions = {package: metadata.version(package) for package in ("torch", "megatron-core")}
    return {"cpu": f"{platform.machine()} {cpu}", "vectors": vectors, "compiler": "".join(compiler), **versions}


def record(curve: Curve, inputs: Path, folder: Path) -> dict[str, Any]:
    """Run `curve` on what `write_inputs` has put into `inputs`; numbers are exact, as JSON writes a float64."""
    precision = ("--precision", curve.precision, "--micro-batch-tokens", "128")
    start, end = folder / "start.arrow", folder / "end.arrow"
    _run(curve, 1, "ref-logprobs", inputs / "pairs.arrow", "-o", start, "--policy", inputs / "policy", *precision)
    sets = [word for name, path in _watched(start, folder) for word in ("--validation", f"{name}={path}")]
    run_dir, processes = folder / "run", 1 if curve.divided == "single" else 2
    settings = [*SETTINGS, f"policy.precision={curve.precision}"]
    settings += ["policy.megatron_cfg.tensor_model_parallel_size=2"] if curve.divided == "tp2" else []
    _run(curve, processes, "dpo-train", start, "--policy", inputs / "policy", "--run-dir", run_dir, *sets, *settings)
    trained = next(run_dir.rglob("latest_checkpointed_iteration.txt")).parent
    _run(curve, 1, "ref-logprobs", inputs / "pairs.arrow", "-o", end, "--policy", trained, *precision)
    return {**_curve(metrics(run_dir)), "start": logps(start), "end": logps(end)}


def _watched(scored: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each validation set."""
    from nemotron_dpo.streams import open_reader, open_writer

    with open_reader(scored, "scored_pairs") as reader:
        table, info = reader.read_all(), reader.info
    for number in range(WATCHED):
        path = folder / f"set{number}.arrow"
        with open_writer(path, info) as writer:
            for batch in [*table.slice(number, 1).to_batches(), *table.slice(number + WATCHED, 1).to_batches()]:
                writer.write(batch)
        yield f"set{number}", path


def logps(path: Path) -> list[list[float]]:
    """Of every pair, the summed log-probs of its chosen and of its rejected response."""
    from nemotron_dpo.streams import open_reader

    with open_reader(path, "scored_pairs") as reader:
        table = reader.read_all()
    sides = (table[f"ref_{side}_logps"].to_pylist() for side in ("chosen", "rejected"))
    return [[float(np.sum(side, dtype=np.float64)) for side in pair] for pair in zip(*sides, strict=True)]


def _curve(records: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [record for record in records if "train/loss" in record]
    watched = [
        [
            [record[f"validation-set{number}/rewards_{side}_mean"] for side in ("chosen", "rejected")]
            for record in records
            if f"validation-set{number}/loss" in record
        ]
        for number in range(WATCHED)
    ]
    return {
        "loss": [step["train/loss"] for step in steps],
        "grad_norm": [step["train/grad_norm"] for step in steps],
        "rewards": watched,
    }


def _run(curve: Curve, processes: int, program: str, *arguments: object) -> None:
    if processes > 1:
        done = execute_job(processes, command(program, *arguments))
    else:
        kernels = {} if curve.kernels else {"NEMOTRON_DPO_KERNELS": "0"}
        done = run(program, *arguments, env={**os.environ, "OMP_NUM_THREADS": "1", **kernels})
    if done.returncode:
        raise RuntimeError(f"{curve.name}: {program}: {done.stderr.decode()}")


def write_inputs(folder: Path) -> None:
    """The policy as a Hugging Face folder and the pairs as pairs.arrow."""
    _write_policy(folder / "policy")
    random = np.random.RandomState(7)

    def side(low: int, high: int) -> np.ndarray:
        return random.randint(low, high, size=random.randint(1, 20)).astype(np.int32)

    rows = [(side(3, 96), side(3, 48), side(48, 96)) for _ in range(24)]
    small.write_pairs(folder / "pairs.arrow", small.Tokens(*map(list, zip(*rows, strict=True))))


def _write_policy(folder: Path) -> None:
    from safetensors.numpy import save_file

    random = np.random.RandomState(5)
    sizes = {"self_attn.q_proj": (HEADS * HEAD, HIDDEN), "self_attn.k_proj": (GROUPS * HEAD, HIDDEN)}
    sizes |= {"self_attn.v_proj": (GROUPS * HEAD, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD)}
    sizes |= {f"mlp.{name}_proj": (FEED_FORWARD, HIDDEN) for name in ("gate", "up")} | {"mlp.down_proj": (HIDDEN, FEED_FORWARD)}
    norms = ("input_layernorm", "post_attention_layernorm")

    def weight(*size: int) -> np.ndarray:
        return (0.2 * random.standard_normal(size)).astype(np.float32)

    weights = {"model.embed_tokens.weight": weight(small.VOCAB, HIDDEN), "model.norm.weight": 1 + weight(HIDDEN)}
    for layer in range(LAYERS):
        weights |= {f"model.layers.{layer}.{name}.weight": weight(*size) for name, size in sizes.items()}
        weights |= {f"model.layers.{layer}.{name}.weight": 1 + weight(HIDDEN) for name in norms}
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": small.VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def differences(found: Mapping[str, Any], recorded: Mapping[str, Any], tolerance: Mapping[str, float]) -> list[str]:
    """A line for every series that is further off than its tolerance, which is relative to 1 or to the recorded number.

    A series without a tolerance must be the same bit for bit.
    """
    lines = []
    for series, expected in recorded.items():
        ours, theirs = np.asarray(found[series], np.float64), np.asarray(expected, np.float64)
        if ours.shape != theirs.shape:
            lines.append(f"{series}: {ours.shape} numbers, not {theirs.shape}")
            continue
        off = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
        if num_off := int((~(off <= tolerance.get(series, 0))).sum()):  # not a number is off, too
            lines.append(f"{series}: {num_off} of {off.size} numbers differ, by up to {np.nanmax(off):.3g}")
    return lines


def record_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Every curve by its name."""
    write_inputs(folder / "inputs")
    curves = {}
    for curve in CURVES:
        (folder / curve.name).mkdir()
        curves[curve.name] = record(curve, folder / "inputs", folder / curve.name)
        print(
            f"{curve.name}: loss {curves[curve.name]['loss'][0]:.4f} -> {curves[curve.name]['loss'][-1]:.4f}", file=sys.stderr
        )
    return curves


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            curves = record_all(Path(folder))
    finally:
        forks.stop()
    if options.write:
        RECORDED.write_bytes(orjson.dumps({"machine": machine(), "curves": curves}, option=orjson.OPT_APPEND_NEWLINE))
        return
    recorded = orjson.loads(RECORDED.read_bytes())
    if recorded["machine"] != machine():
        sys.exit(f"curves.json was written elsewhere: {recorded['machine']}; this is {machine()}")
    lines = [f"{name}: {line}" for name, curve in curves.items() for line in differences(curve, recorded["curves"][name], {})]
    sys.exit("\n".join(lines) if lines else 0)


if __name__ == "__main__":
    main()
