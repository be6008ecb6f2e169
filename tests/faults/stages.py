"""The stages that the matrix of faults is about: how each is run, and what counts as what it wrote.

All write below one folder OUT, whose place is the same for every run, so that the bytes of two runs can be compared.
"""

from __future__ import annotations

import hashlib
import pickletools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.tiny_policy import write_policy
from support.programs import check

ROWS = 8
_STEPS = ("dpo.max_num_steps=2", "policy.train_global_batch_size=4", "policy.precision=float32")
_SAVES = ("checkpointing.save_period=1", "checkpointing.save_optimizer=true")
TRAIN = (*_STEPS, *_SAVES, "policy.optimizer.lr=1e-4", "policy.scheduler.warmup_steps=0")
LORA = ("policy.megatron_cfg.peft.enabled=true", "policy.megatron_cfg.peft.dim=4")
# what is no output: it grows while a program runs, or tells of the run itself
_GROWS = re.compile(r".*(metrics\.jsonl|pairs_log\.arrow|run\.json|state\.json|job\.yaml|train\.yaml|logs/.*|report\.html)")
_KEPT = re.compile(r"(.*/)?cache(/.*)?")  # what is computed once and taken again
LEFT = re.compile(r"(.*/)?\.([^/]*\.)?(tmp|lock)(/.*)?")
# what differs between two runs that nothing disturbs: times, speeds, memory, and the digests of files with these
_OF_A_RUN = re.compile(
    rb'"(?:(?:timing|memory)[^"]*|[^"]*integrity\.json|\.metadata|training_info\.json|digest|seconds)": ?[^,}\n]+'
)
_NAMES = re.compile(rb"[0-9a-f]{8}((-[0-9a-f]{4}){3}-[0-9a-f]{12}|-[0-9a-f]{16}\.tmp)")  # of a save, and of a temporary place
_JOB = re.compile(rb"\d{8}-\d{6}-rl-nemo_rl-dpo(-\d+)?")


@dataclass(frozen=True)
class Stage:
    """A program with its arguments; `processes` of them, where it is a job of several. `argv` takes inputs and OUT."""

    argv: Callable[[Path, Path], Sequence[object]]
    processes: int = 1
    holds_jobs: bool = False  # OUT is a folder of jobs, of which the last counts
    begun: str = ""  # a folder of the inputs that OUT has as `run` beforehand


def _tokenize(inputs: Path, out: Path) -> Sequence[object]:
    files = ("-o", out / "pairs.arrow", "--stats", out / "stats.json", "--rejects", out / "rejects.jsonl")
    return ("preference-tokenize", inputs / "rows.jsonl", *files, "--tokenizer", inputs / "policy")


def _score(inputs: Path, out: Path) -> Sequence[object]:
    files = (inputs / "pairs.arrow", "-o", out / "scored.arrow", "--cache", out / "cache")
    return ("ref-logprobs", *files, "--policy", inputs / "policy", "--precision", "float32")


def _score_again(inputs: Path, out: Path) -> Sequence[object]:
    store = ("--cache", inputs / "store")
    files = (inputs / "pairs.arrow", "-o", out / "scored.arrow")
    return ("ref-logprobs", *files, "--policy", inputs / "policy", "--precision", "float32", *store)


def _score_export(inputs: Path, out: Path) -> Sequence[object]:
    files = (inputs / "pairs.arrow", "-o", out / "scored.arrow")
    return ("ref-logprobs", *files, "--policy", inputs / "hf", "--precision", "float32")


def _train(*more: str) -> Callable[[Path, Path], Sequence[object]]:
    def argv(inputs: Path, out: Path) -> Sequence[object]:
        run = ("--policy", inputs / "policy", "--run-dir", out / "run")
        return ("dpo-train", inputs / "scored.arrow", *run, *TRAIN, *more)

    return argv


def _export(source: str, form: str) -> Callable[[Path, Path], Sequence[object]]:
    return lambda inputs, out: ("ckpt-export", inputs / source, "-o", out / form, "--to", form)


def _steps(*more: str) -> Callable[[Path, Path], Sequence[object]]:
    def argv(inputs: Path, out: Path) -> Sequence[object]:
        files = (f"policy.model_name={inputs}/policy", f"data.train.prompt_file={inputs}/rows.jsonl", "data.validation=null")
        return ("nemotron-steps", "run", "rl/nemo_rl/dpo", "-c", "tiny", *files, *_STEPS, *_SAVES, *more)

    return argv


STAGES: Mapping[str, Stage] = {
    "preference-tokenize": Stage(_tokenize),
    "ref-logprobs": Stage(_score),
    "dpo-train": Stage(_train()),
    "dpo-train, LoRA": Stage(_train(*LORA)),
    "dpo-train, 2 ranks": Stage(_train(), processes=2),
    "ckpt-export --to megatron": Stage(_export("run", "megatron")),
    "ckpt-export --to hf": Stage(_export("run", "hf")),
    "ckpt-export --to peft": Stage(_export("lora", "peft")),
    "LoRA, ckpt-export --to hf": Stage(_export("lora", "hf")),
    "dpo-report": Stage(lambda inputs, out: ("dpo-report", inputs / "run", "-o", out / "report.html")),
    "dpo-train, resumed": Stage(_train(), begun="begun"),
    "ref-logprobs by a store": Stage(_score_again),
    "ref-logprobs of an export": Stage(_score_export),
    "nemotron-steps": Stage(_steps(), holds_jobs=True),
    "nemotron-steps, 2 ranks": Stage(_steps("cluster.gpus_per_node=2"), holds_jobs=True),
}


def write_rows(folder: Path) -> None:
    """Rows and a policy: what preference-tokenize reads."""
    rows = (configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "train.jsonl").read_text().splitlines()[:ROWS]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    write_policy([folder / "rows.jsonl"], folder / "policy")


def write_inputs(folder: Path) -> None:
    """What all stages read: pairs, scores, a run, one with adapters and one that was stopped, an export, a store."""
    write_rows(folder)
    pairs, scored, policy = folder / "pairs.arrow", folder / "scored.arrow", folder / "policy"
    check("preference-tokenize", folder / "rows.jsonl", "-o", pairs, "--tokenizer", policy)
    check("ref-logprobs", pairs, "-o", scored, "--policy", policy, "--precision", "float32")
    for name, more in (("run", ()), ("lora", LORA)):
        check("dpo-train", scored, "--policy", policy, "--run-dir", folder / name, *TRAIN, *more)
    check("dpo-train", scored, "--policy", policy, "--run-dir", folder / "begun", *TRAIN, "dpo.max_num_steps=1")
    check("ckpt-export", folder / "run", "-o", folder / "hf", "--to", "hf")
    again = (pairs, "-o", folder / "again.arrow", "--policy", policy, "--precision", "float32")
    check("ref-logprobs", *again, "--cache", folder / "store")


def begin(stage: Stage, inputs: Path, out: Path) -> None:
    """Make `out` as the stage finds it: empty, or with what it goes on with."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if stage.begun:
        shutil.copytree(inputs / stage.begun, out / "run")


def outputs(stage: Stage, out: Path) -> dict[str, str]:
    """What the stage published below `out`: the digest of each file, without what differs between equal runs."""
    root = _last_job(out) if stage.holds_jobs else out
    files = (path for path in sorted(root.rglob("*")) if path.is_file()) if root.is_dir() else ()
    named = {str(path.relative_to(root)): path for path in files}
    ignored = (_GROWS, _KEPT, LEFT)
    return {name: _digest(path) for name, path in named.items() if not any(rule.fullmatch(name) for rule in ignored)}


def _last_job(out: Path) -> Path:
    jobs = sorted((out / ".nemotron" / "jobs").glob("*"))
    return jobs[-1] if jobs else out / ".nemotron" / "jobs"


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        data = _OF_A_RUN.sub(b"", data)
    if path.name == ".metadata":  # a pickle, in the order in which threads wrote
        texts = (_JOB.sub(b"JOB", _NAMES.sub(b"NAME", text)) for text in _texts(data))
        data = b"\n".join(sorted(texts))
    if path.suffix in (".yaml", ".md"):
        data = _JOB.sub(b"JOB", data)
    return hashlib.sha256(data).hexdigest()


def _texts(pickled: bytes) -> Iterator[bytes]:
    """The texts in a pickle, which is not run."""
    for _, value, _ in pickletools.genops(pickled):
        if isinstance(value, str | bytes):
            yield value.encode() if isinstance(value, str) else value


def without_names(path: str) -> str:
    """A path in the store without what is random in it."""
    return re.sub(r"\d{20}-[^/]*", "SHARD", path)


def left_over(stage: Stage, out: Path) -> list[str]:
    """Temporary places and lock files below `out`. In the store a place may wait for its next writer, but without content.

    A job that was killed stays as it lay; what counts is the last one.
    """
    out = _last_job(out) if stage.holds_jobs else out
    found = [str(path.relative_to(out)) for path in out.rglob("*")]
    return [name for name in found if LEFT.fullmatch(name) and not (_KEPT.fullmatch(name) and _is_empty(out / name))]


def _is_empty(place: Path) -> bool:
    return not any(path.name != ".lock" for path in place.iterdir()) if place.is_dir() else place.name == ".lock"
