"""Keys of stages: which settings make a stage run again, and which do not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from nemotron_dpo.config import load_run
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile import programs
from nemotron_dpo.steps.compile.digests import Digests
from nemotron_dpo.steps.compile.dpo_plan import compile_plan
from nemotron_dpo.steps.compile.stage_choice import choose, decide
from nemotron_dpo.steps.compile.stage_keys import stage_key
from nemotron_dpo.steps.tiny_policy import write_policy

STEP = configs_root() / "rl" / "nemo_rl" / "dpo"
ALL = {"preference-tokenize", "ref-logprobs", "dpo-train", "ckpt-export"}
MODEL = ALL - {"preference-tokenize"}
TRAINING = {"dpo-train", "ckpt-export"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([STEP / "data" / "validation.jsonl"], folder)
    return folder


def _keys(
    folder: Path, policy: Path, *overrides: str, job: str = "job", env: dict[str, str] | None = None
) -> dict[str, str | None]:
    """The key of each stage by its program."""
    data = folder / "rows.jsonl"
    if not data.exists():
        data.write_text("{}\n")
    base = [f"policy.model_name={policy}", f"data.train.path={data}", "policy.max_total_sequence_length=128"]
    plan = compile_plan(load_run(None, [*base, *overrides])[0], Path(job), STEP)
    digests, made, keys = Digests(folder / "memo.json"), {}, {}
    for stage in plan.stages:
        keys[stage.program] = key = stage_key(plan, stage, made, digests, env or {})
        made |= {str(output): key for output in stage.outputs if key is not None}
    return keys


CHANGES = [
    ("dpo.reference_policy_kl_penalty=0.3", TRAINING),
    ("policy.optimizer.lr=1", TRAINING),
    ("dpo.max_num_steps=3", TRAINING),
    ("policy.precision=float32", MODEL),
    ("policy.sequence_packing.train_mb_tokens=512", MODEL),
    ("policy.max_total_sequence_length=64", ALL),
    ("data.train.limit=3", ALL),
    ("data.train.prompt_key=context", ALL),
    ("policy.tokenizer.chat_template='{{ messages }}'", ALL),
    ("cluster.gpus_per_node=2", TRAINING),
]


@pytest.mark.parametrize(("override", "again"), CHANGES)
def test_what_a_setting_makes_run_again(tmp_path: Path, policy: Path, override: str, again: set[str]):
    before, after = _keys(tmp_path, policy), _keys(tmp_path, policy, override)
    assert None not in before.values()
    assert {name for name in ALL if before[name] != after[name]} == again


def test_both_streams_of_one_tokenization_are_scored_under_keys_of_their_own(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
):
    """The two commands of ref-logprobs differ in paths alone, which do not count; and what makes another share, does."""
    monkeypatch.chdir(tmp_path)
    (data := tmp_path / "rows.jsonl").write_text("{}\n")

    def keys(*overrides: str) -> dict[str, str | None]:
        base = [f"policy.model_name={policy}", f"data.train.path={data}", "data.validation.split_from_train=0.05"]
        plan = compile_plan(load_run(None, [*base, *overrides])[0], Path("job"), STEP)
        decisions = decide(plan, choose(plan, None, None, force=False), Digests(tmp_path / "memo.json"), {})
        return {decision.stage.name: decision.key for decision in decisions}

    before = keys()
    assert None not in before.values()
    assert len(set(before.values())) == len(before) == 5
    assert before == keys("policy.optimizer.name=adamw")
    for override in ("data.validation.split_from_train=0.1", "data.validation.split_seed=7"):
        assert set(before.values()).isdisjoint(keys(override).values())


def test_where_the_job_lies_does_not_count(tmp_path: Path, policy: Path):
    assert _keys(tmp_path, policy) == _keys(tmp_path, policy, job="another/job")


def test_rows_count_by_content(tmp_path: Path, policy: Path):
    before = _keys(tmp_path, policy)
    (tmp_path / "rows.jsonl").write_text("{} \n")
    after = _keys(tmp_path, policy)
    assert not set(before.values()) & set(after.values())


def test_version_of_the_program_counts(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch):
    before = _keys(tmp_path, policy)
    monkeypatch.setattr(programs, "__version__", "0")
    programs.program_version.cache_clear()
    after = _keys(tmp_path, policy)
    programs.program_version.cache_clear()
    assert not set(before.values()) & set(after.values())


def test_every_source_of_the_program_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also what is no Python, as the kernels in C and their headers."""
    package = tmp_path / "package"
    for name in ("policy/model.py", "kernels/c/attention.c", "kernels/c/vectors.h", "policy/__pycache__/model.pyc"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("1")
    monkeypatch.setattr(programs, "_ROOT", package)
    monkeypatch.setattr(programs, "_PARTS", {"ref-logprobs": (("policy", "kernels"), ())})
    version = programs.program_version.__wrapped__
    seen = [version("ref-logprobs")]
    for name in ("policy/model.py", "kernels/c/attention.c", "kernels/c/vectors.h"):
        (package / name).write_text("2")
        seen.append(version("ref-logprobs"))
    assert len(set(seen)) == 4
    (package / "policy" / "__pycache__" / "model.pyc").write_text("2")
    (package / "policy" / "README.md").write_text("what a program does not read")
    assert version("ref-logprobs") == seen[-1]


# What a program imports besides, and no row, score or weight depends on: how it is started, how it speaks, where the shipped
# configs lie (steps), which nemotron-steps names by their paths.
_AT_THE_EDGE = {
    "__init__", "ages", "cli", "collector", "documents", "errors", "launcher", "locks", "machine_errors", "outcome", "parent", "paths",
    "processes", "progress", "published", "run_state", "standard_streams", "steps", "terminal_text", "versions",
    "wording",
}  # fmt: skip
_AT_THE_EDGE_OF_ROWS = {"kernels"}  # of which streams ask for the C compiler, for their checksums


def test_what_a_program_imports_is_among_its_sources():
    for program in ("preference-tokenize", "ref-logprobs", "dpo-train"):
        parts = {part.removesuffix(".py") for part in programs._PARTS.get(program, programs._ALL)[0]}
        edge = _AT_THE_EDGE | (_AT_THE_EDGE_OF_ROWS if program == "preference-tokenize" else set())
        assert _imported(program) - parts - edge == set(), program


def _imported(program: str) -> set[str]:
    """The parts of nemotron_dpo that a program's file imports, and those of these parts, and so on."""
    seen: set[str] = set()
    files = [programs._ROOT.parents[1] / "bin" / f"{program.replace('-', '_')}.py"]
    while files:
        names = (
            set(re.findall(r"nemotron_dpo(?:\.| import )(\w+)", files.pop().read_text()))
            - seen
            - _AT_THE_EDGE
            - {"__version__", "not_in_megatron_bridge"}  # the second names a class that there is none of
        )
        seen |= names
        files += [file for name in names for file in _files(programs._ROOT / name)]
    return seen


def _files(part: Path) -> list[Path]:
    return sorted(part.rglob("*.py")) if part.is_dir() else [part.with_suffix(".py")]


def test_kernels_in_c_are_among_the_sources():
    found = {path.name for path in programs._sources(programs._ROOT / "kernels")}
    assert {"attention.c", "layers.c", "products.h", "vectors.h", "triton_kernels.py"} <= found
    assert all("kernels" in parts for parts, _ in (programs._PARTS["ref-logprobs"], programs._ALL))


def test_machine_counts_where_numbers_are_made(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", sys.executable)  # a compiler as good as any: it is not started
    monkeypatch.delenv("NEMOTRON_DPO_KERNELS", raising=False)
    before, without = _keys(tmp_path, policy), _keys(tmp_path, policy, env={"NEMOTRON_DPO_KERNELS": "0"})
    assert {name for name in ALL if before[name] != without[name]} == MODEL
    monkeypatch.setenv("NEMOTRON_DPO_KERNELS", "0")  # of the process itself, as of a profile's env_vars
    assert _keys(tmp_path, policy) == without


def test_no_key_where_something_is_missing(tmp_path: Path, policy: Path):
    keys = _keys(tmp_path, policy, "data.train.path=none.jsonl")
    assert keys == dict.fromkeys(ALL)


def test_training_that_saves_elsewhere_is_never_up_to_date(tmp_path: Path, policy: Path):
    keys = _keys(tmp_path, policy, "checkpointing.checkpoint_dir=elsewhere")
    assert {name for name, key in keys.items() if key is None} == TRAINING
