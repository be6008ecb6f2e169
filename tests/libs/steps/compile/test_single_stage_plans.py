"""Plans of the steps around DPO: their commands, what they lack, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root, discover, find_config, find_step
from nemotron_dpo.steps.compile.planners import planner_of
from nemotron_dpo.steps.compile.stages import Plan

STEPS = discover(configs_root())
JOB = Path("job")


def _config(name: str, *overrides: str) -> tuple[Any, Any]:
    step = find_step(name, STEPS)
    kind = planner_of(step)
    return kind, kind.load(find_config(step, None), overrides, None)[0]


def _plan(name: str, *overrides: str) -> Plan:
    kind, config = _config(name, *overrides)
    return kind.compile(config, JOB, find_step(name, STEPS).folder)


def _commands(plan: Plan) -> list[str]:
    """The commands with programs by name, wherever they lie."""
    return [" ".join([Path(stage.argv[0]).name, *stage.argv[1:]]) for stage in plan.stages]


@pytest.fixture(autouse=True)
def _no_policy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RL_POLICY_MODEL", raising=False)


PLANS = [
    ("hf_to_megatron", ["hf_model_id=org/m"], ["ckpt-export org/m -o job/checkpoint_megatron --to megatron"]),
    ("hf_to_megatron", ["hf_model_id=org/m", "megatron_path=out", "torch_dtype=bfloat16"], ["ckpt-export org/m -o out --to megatron --precision bfloat16"]),
    ("megatron_to_hf", ["megatron_path=run"], ["ckpt-export run -o job/checkpoint_hf --to hf"]),
    ("merge_lora", ["lora_checkpoint=run"], ["ckpt-export run -o job/checkpoint_hf --to hf"]),
    ("merge_lora", ["lora_checkpoint=a", "base_hf_path=org/m", "output_hf_path=out", "torch_dtype=float32"], [
        "ckpt-export a -o out --to hf --precision float32 --base org/m",
    ]),
    ("merge_lora", ["lora_checkpoint=a", "base_hf_path=h", "base_megatron_path=b", "backend=megatron_bridge", "torch_dtype=auto"], [
        "ckpt-export a -o job/checkpoint_megatron --to megatron --base b",
        "ckpt-export job/checkpoint_megatron -o job/checkpoint_hf --to hf",
    ]),
    ("merge_lora", ["lora_checkpoint=a", "output_megatron_path=m", "export_hf=false"], ["ckpt-export a -o m --to megatron"]),
    ("merge_lora", ["lora_checkpoint=a", "output_megatron_path=m", "backend=hf_peft"], ["ckpt-export a -o job/checkpoint_hf --to hf"]),
    ("preference_tokenize", ["data.path=p.jsonl", "tokenizer=org/m", "data.limit=3"], [
        "preference-tokenize p.jsonl -o job/pairs.arrow --tokenizer org/m --num-workers 1 --stats job/stats.json"
        " --rejects job/rejects.jsonl --max-length 4096 --limit 3 --on-error skip",
    ]),
    ("preference_score", ["data.path=p.jsonl", "policy.model_name=org/m", "max_length=null"], [
        "preference-tokenize p.jsonl -o job/pairs.arrow --tokenizer org/m",
        "ref-logprobs job/pairs.arrow -o job/policy.arrow --policy org/m --precision bfloat16 --of-policy",
        "PYTHON -m nemotron_dpo.preferences.margins job/policy.arrow -o job/scores.json",
    ]),
    ("preference_score", ["data.path=p", "policy.model_name=m", "reference.model_name=r", "cluster.gpus_per_node=2"], [
        "preference-tokenize p -o job/pairs.arrow --tokenizer m --max-length 4096",
        "dpo-torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 --no-python ref-logprobs job/pairs.arrow -o job/policy.arrow --policy m --precision bfloat16 --of-policy",
        "dpo-torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 --no-python ref-logprobs job/pairs.arrow -o job/reference.arrow --policy r --precision bfloat16",
        "PYTHON -m nemotron_dpo.preferences.margins job/policy.arrow -o job/scores.json --reference job/reference.arrow --beta 0.05",
    ]),
    ("preference_score", ["data.path=p", "policy.model_name=m", "against.model_name=a"], [
        "preference-tokenize p -o job/pairs.arrow --tokenizer m --max-length 4096",
        "ref-logprobs job/pairs.arrow -o job/policy.arrow --policy m --precision bfloat16 --of-policy",
        "ref-logprobs job/pairs.arrow -o job/against.arrow --policy a --precision bfloat16 --of-policy",
        "PYTHON -m nemotron_dpo.preferences.margins job/policy.arrow -o job/scores.json --against job/against.arrow",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "commands"), PLANS)
def test_commands(name: str, overrides: list[str], commands: list[str]):
    python = _commands(_plan("env_toml"))[0].split()[0]
    shown = [line.replace(f"{python} -m", "PYTHON -m") for line in _commands(_plan(name, *overrides))]
    folder = str(Path(_plan(name, *overrides).stages[0].argv[0]).parent)
    assert [line.replace(f"{folder}/", "") for line in shown] == commands


def test_env_toml_gives_every_key_to_its_writer():
    plan = _plan("env_toml", "sections.slurm_base.account=me", "sections.mine.nodes=2", "force=true", "output_path=e.toml")
    assert plan.stages[0].argv[4:] == ('slurm_base.account="me"', "mine.nodes=2", "-o", "e.toml", "--force")
    assert plan.artifacts == {"env_toml": Path("e.toml")}


MISSING = [
    ("hf_to_megatron", [], ["hf_model_id is not set: give hf_model_id=ID_OR_FOLDER"]),
    ("megatron_to_hf", [], ["megatron_path is not set: give megatron_path=CHECKPOINT_OR_RUN"]),
    ("merge_lora", [], ["lora_checkpoint is not set: give lora_checkpoint=RUN_OR_ADAPTERS"]),
    ("preference_tokenize", [], ["data.path is not set: give data.path=FILE", "tokenizer is not set: give tokenizer=ID_OR_FOLDER"]),
    ("preference_score", ["data.path=/none/p.jsonl", "policy.model_name=m"], ["/none/p.jsonl: no such file: it is data.path"]),
    ("env_toml", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "lines"), MISSING)
def test_what_is_missing_is_named(name: str, overrides: list[str], lines: list[str]):
    kind, config = _config(name, *overrides)
    assert kind.missing(config) == lines


def test_data_sets_are_mixed_and_held_out_by_no_other_step():
    for data, words in (
        ("data=[a.jsonl, b.jsonl]", "cannot be merged"),
        ("data.weight=2", "is no single data set: leave out"),
        ("data.split_from_train=0.1", '"data.split_from_train" is about training, and here is none: leave it out'),
    ):
        with pytest.raises(UserError, match=words):
            _plan("preference_tokenize", "tokenizer=org/m", data)


def test_conversion_onto_itself_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is source and target of the conversion"):
        _plan("megatron_to_hf", f"megatron_path={tmp_path}", f"hf_path={tmp_path}/../{tmp_path.name}")


OVERLAPS = [
    (["output_hf_path=job/lora"], "job/lora: would be written over lora_checkpoint, job/lora: name a new folder"),
    (["output_hf_path=base/merged", "base_hf_path=base"], "base/merged: would be written over the base, base"),
    (["output_megatron_path=job"], "job: would be written over lora_checkpoint, job/lora"),
    (["output_megatron_path=m", "output_hf_path=m"], "m: is the place of both formats: name two folders"),
    (["export_hf=false"], '"export_hf" is false, and no Megatron checkpoint is asked for either'),
]


@pytest.mark.parametrize(("overrides", "message"), OVERLAPS)
def test_a_merge_over_its_inputs_is_refused(overrides: list[str], message: str):
    with pytest.raises(UserError) as caught:
        _plan("merge_lora", "lora_checkpoint=job/lora", *overrides)
    assert message in str(caught.value).replace(f"{Path.cwd()}/", "")


def test_nvidias_own_config_of_the_merge_is_read(tmp_path: Path):
    """The keys of its default.yaml, with the values that it has: each counts or is said to have no meaning here."""
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text(
        "backend: auto\nlora_checkpoint: a\nbase_hf_path: b\noutput_hf_path: ${oc.env:HERE,x}/hf\ntrust_remote_code: true\n"
        "torch_dtype: auto\ndevice_map: null\nlow_cpu_mem_usage: true\nsafe_serialization: true\nsave_tokenizer: true\n"
        "upstream_script: /opt/merge_lora.py\nhf_model_id: null\nhf_model_path: null\nbase_megatron_path: null\n"
        "output_megatron_path: x/m\nexport_hf: true\ncpu: true\ntp: 1\npp: 1\nep: 1\nnproc_per_node: 1\ndebug: false\n"
        "show_progress: true\nstrict: true\n"
    )
    kind = planner_of(find_step("merge_lora", STEPS))
    config, warnings = kind.load(theirs, ["tp=2"], None)
    assert warnings == ['tp=2: "tp" has no meaning here: it divides the merge there; it takes one process here']
    assert _commands(kind.compile(config, JOB, tmp_path))[0].endswith("ckpt-export a -o x/m --to megatron --base b")
    assert kind.idle is not None
    idle = kind.idle(theirs, ["tp=2"], None)
    assert len(idle) == 15
    assert f'{theirs}:5: "trust_remote_code" has no meaning here: it runs code that lies in a model\'s folder' in " ".join(
        map(str, idle)
    )
    with pytest.raises(UserError, match='"save_tokenizer" is False where True is due'):
        kind.load(theirs, ["save_tokenizer=false"], None)


def test_manifest_without_code_is_refused(tmp_path: Path):
    text = '[step]\nid = "rl/mine"\nname = "N"\ncategory = "rl"\ndescription = "d"\n'
    (tmp_path / "step.toml").write_text(text)
    with pytest.raises(UserError, match="rl/mine: is known by its manifest alone; this program cannot run it"):
        planner_of(discover(tmp_path)[0])


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.id)
def test_every_step_can_be_planned_from_every_config(step):
    for name in step.configs:
        kind = planner_of(step)
        config, warnings = kind.load(find_config(step, name), [], None)
        assert warnings == []
        assert kind.compile(config, JOB, step.folder).stages
        for parameter in step.parameters:
            if parameter["name"].endswith(".prompt_file"):  # NeMo-RL's name of data.<set>.path
                overrides = [f"{parameter['name']}=x.jsonl", "dpo.val_at_end=true"]
                given = kind.load(find_config(step, name), overrides, None)[0]
                assert kind.tree(given)["data"] != kind.tree(config)["data"]
            else:
                assert _known(kind.tree(config), parameter["name"]), parameter["name"]


def _known(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if part.startswith("<"):
            return isinstance(tree, dict)
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True
