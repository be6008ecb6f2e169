"""Plans: which stages, in which order, with which arguments."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron_dpo.config import RunConfig, load_run
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile import tiny_sft
from nemotron_dpo.steps.compile.data_parts import without_unread_default
from nemotron_dpo.steps.compile.dpo_missing import missing_inputs
from nemotron_dpo.steps.compile.dpo_plan import compile_plan
from nemotron_dpo.steps.compile.stages import Plan
from support.families import write_config

STEP = configs_root() / "rl" / "nemo_rl" / "dpo"
JOB = Path("job")
BASE = ["policy.model_name=org/model", "data.train.path=t.jsonl", "policy.max_total_sequence_length=128"]


def _compile(*overrides: str) -> Plan:
    return compile_plan(load_run(None, [*BASE, *overrides])[0], JOB, STEP)


def _commands(plan: Plan) -> list[list[str]]:
    """The commands with programs by name, wherever they lie."""
    return [[Path(word).name if word.startswith("/") else word for word in stage.argv] for stage in plan.stages]


STAGES = """
preference-tokenize t.jsonl -o job/train.pairs.arrow --tokenizer org/model --max-length 128
preference-tokenize v.jsonl -o job/validation-default.pairs.arrow --tokenizer org/model --max-length 128
ref-logprobs job/train.pairs.arrow -o job/train.scored.arrow --policy org/model --precision bfloat16
ref-logprobs job/validation-default.pairs.arrow -o job/validation-default.scored.arrow --policy org/model --precision bfloat16
dpo-train job/train.scored.arrow --policy org/model --run-dir job/run --validation default=job/validation-default.scored.arrow\
 -c job/train.yaml
ckpt-export job/run -o job/checkpoint_megatron --to megatron
"""


def test_stages_of_a_run_with_validation():
    commands = [" ".join(command) for command in _commands(_compile("data.validation.path=v.jsonl"))]
    assert commands == STAGES.strip().splitlines()


MIXED = """
preference-tokenize t.jsonl -o job/train.1.pairs.arrow --tokenizer org/model --max-length 128
preference-tokenize HelpSteer3 -o job/train.2.pairs.arrow --tokenizer org/model --max-length 128 --split train --limit 9
preference-tokenize v.jsonl -o job/validation-hard.1.pairs.arrow --tokenizer org/model --max-length 128
ref-logprobs job/train.1.pairs.arrow -o job/train.1.scored.arrow --policy org/model --precision bfloat16
ref-logprobs job/train.2.pairs.arrow -o job/train.2.scored.arrow --policy org/model --precision bfloat16
ref-logprobs job/validation-hard.1.pairs.arrow -o job/validation-hard.1.scored.arrow --policy org/model --precision bfloat16
PYTHON -m nemotron_dpo.preferences.mixture job/train.1.scored.arrow job/train.2.scored.arrow --weights 2 0.5 -o job/train.scored.arrow --seed 7
PYTHON -m nemotron_dpo.preferences.mixture job/validation-hard.1.scored.arrow --weights 1 -o job/validation-hard.scored.arrow --seed 7
dpo-train job/train.scored.arrow --policy org/model --run-dir job/run --validation hard=job/validation-hard.scored.arrow -c job/train.yaml
ckpt-export job/run -o job/checkpoint_megatron --to megatron
"""


def test_data_sets_of_a_list_are_mixed_once_they_are_scored():
    parts = "data.train=[{path: t.jsonl, weight: 2}, {dataset_name: HelpSteer3, split: train, limit: 9, weight: 0.5}]"
    plan = _compile(parts, "data.validation={hard: [v.jsonl]}", "dpo.seed=7")
    python = Path(sys.executable).name
    assert [" ".join(c).replace(f"{python} -m", "PYTHON -m") for c in _commands(plan)] == MIXED.strip().splitlines()
    mixing = plan.stages[6]
    assert mixing.name == "mixture train"
    assert sorted(mixing.inputs) == ["job/train.1.scored.arrow", "job/train.2.scored.arrow"]


HELD_OUT = """
preference-tokenize t.jsonl -o job/train.pairs.arrow --tokenizer org/model --max-length 128 --split train[:10%]\
 --split default=0.05 --seed 7 --split-output job/validation-default.pairs.arrow
ref-logprobs job/train.pairs.arrow -o job/train.scored.arrow --policy org/model --precision bfloat16
ref-logprobs job/validation-default.pairs.arrow -o job/validation-default.scored.arrow --policy org/model --precision bfloat16
dpo-train job/train.scored.arrow --policy org/model --run-dir job/run --validation default=job/validation-default.scored.arrow\
 -c job/train.yaml
ckpt-export job/run -o job/checkpoint_megatron --to megatron
"""


def test_a_share_of_the_training_set_comes_of_its_one_tokenization():
    share = ["data.validation.split_from_train=0.05", "data.validation.split_seed=7", "data.train.split=train[:10%]"]
    plan = _compile(*share)
    assert [" ".join(command) for command in _commands(plan)] == HELD_OUT.strip().splitlines()
    assert plan.stages[0].outputs == (JOB / "train.pairs.arrow", JOB / "validation-default.pairs.arrow")
    weighed = _compile("data.train.weight=2", "data.validation={hard: {split_from_train: 0.1}}")
    assert "--split hard=0.1 --split-output job/validation-hard.pairs.arrow" in " ".join(_commands(weighed)[0])
    assert [stage.name for stage in weighed.stages[:4]] == [
        "preference-tokenize train.1",
        "ref-logprobs train.1",
        "ref-logprobs validation-hard",
        "mixture train",
    ]


def test_data_that_look_swapped_are_named_before_any_stage(tmp_path: Path):
    def rows(*gaps: int) -> str:
        lines = [f'{{"prompt": "p", "chosen": "a", "rejected": "b", "mine": {gap}, "theirs": 0}}' for gap in gaps]
        (data := tmp_path / f"{len(gaps)}{sum(gaps)}.jsonl").write_text("\n".join(lines))
        return f"data.train.path={data}"

    keys = ("data.train.chosen_reward_key=mine", "data.train.rejected_reward_key=theirs")
    what = f"in 3 of the first 5 rows of {tmp_path}/5-2.jsonl with rewards the rejected response has the higher one"
    names = "reads the column 'bad' as the chosen one and 'good' as the rejected one: are they swapped?"
    for overrides, expected in (
        ((rows(-1, -1, 1, 0, -1), *keys), [f"warning: data.train: {what}: are chosen_key and rejected_key swapped?"]),
        ((rows(-1, -1, 1, 1), *keys), []),
        ((rows(-1, -1, -1), *keys), []),
        ((rows(-1, -1, -1, -1),), []),  # columns that nobody names or knows
        (
            ("data.validation={hard: [{path: v, chosen_key: bad, rejected_key: good}]}",),
            [f"warning: data.validation.hard: {names}"],
        ),
    ):
        assert list(_compile(*overrides).notes) == expected
    with pytest.raises(UserError, match=r"\"data.train\" 'rejected' is named as chosen and as rejected: name two columns"):
        _compile("data.train.chosen_key=rejected")


def test_without_a_reference_pairs_are_mixed_as_they_are():
    plan = _compile("data.train.weight=1.5", "dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1")
    commands = [" ".join(command) for command in _commands(plan)]
    assert [stage.program for stage in plan.stages] == ["preference-tokenize", "mixture", "dpo-train", "ckpt-export"]
    assert " job/train.1.pairs.arrow --weights 1.5 -o job/train.pairs.arrow" in commands[1]


def test_parts_that_would_be_called_alike_get_names_that_tell_them_apart():
    parts = (
        "{path: a/t.jsonl}", "{path: b/t.jsonl}", "{path: u.jsonl}", "{path: c/t.jsonl, source_name: mine}",
        "{path: org/d, split: train}", "{path: org/d, split: test, subset: s}", "{path: org/e, split: train}",
    )  # fmt: skip
    commands = _commands(_compile(f"data.train=[{', '.join(parts)}]"))[: len(parts)]
    names = [command[command.index("--source-name") + 1] if "--source-name" in command else None for command in commands]
    assert names == ["a/t.jsonl", "b/t.jsonl", None, "mine", "org/d:train", "org/d:s:test", None]


HELPSTEER = "data: {train: {split: train}, validation: {split: validation}, default: {dataset_name: HelpSteer3}}"


def test_a_validation_set_that_nobody_named_and_that_cannot_be_had_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As NVIDIA's own configs have it, offline, with data.train set by hand. What is named, or can be had, stays."""
    (config := tmp_path / "c.yaml").write_text(HELPSTEER)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for given, stays in (
        (["data.train.path=t.jsonl"], False),
        (["data.train=[t.jsonl]"], False),
        (["data.train.path=t.jsonl", "data.validation.dataset_name=HelpSteer3"], True),
        (["data.train.path=t.jsonl", f"data.default.dataset_name={config}"], True),
        (["dpo.seed=3"], True),
    ):
        run, _ = load_run(config, given)
        settled, lines = without_unread_default(run)
        assert (len(settled.data.validation), len(lines)) == ((1, 0) if stays else (0, 1)), given
        assert settled.data.train == run.data.train
    line = without_unread_default(load_run(config, ["data.train.path=t.jsonl"])[0])[1][0]
    assert line.startswith("data.validation: HelpSteer3, which only data.default names, is read by the package datasets, which")
    assert line.endswith(": nothing is validated; data.validation.path=FILE names a set, data.validation=null none")


def test_template_and_its_arguments_reach_the_tokenizer():
    given = ["policy.tokenizer.chat_template=null", "policy.tokenizer.chat_template_kwargs={enable_thinking: false}"]
    plan = _compile(*given)
    command = _commands(plan)[0]
    assert command[command.index("--chat-template") + 1] == "job/chat_template.jinja"
    assert command[command.index("--chat-template-kwargs") + 1] == '{"enable_thinking": false}'
    assert "message['content']" in plan.files["chat_template.jinja"]
    plain = _commands(_compile("policy.tokenizer.chat_template=default"))[0]
    assert not any(word.startswith("--chat-template") for word in plain)


def test_a_router_that_is_not_built_is_found_before_any_stage(tmp_path: Path):
    """Of a policy with experts; one without has no router that the key could mean."""
    (tmp_path / "rows.jsonl").touch()
    for family, override, is_said in (
        ("mixtral", "policy.megatron_cfg.freeze_moe_router=true", False),
        ("mixtral", "policy.megatron_cfg.moe_router_load_balancing_type=sinkhorn", True),
        ("mixtral", "policy.megatron_cfg.moe_router_load_balancing_type=global_aux_loss", False),
        ("mixtral", "dpo.seed=1", False),
        ("llama", "policy.megatron_cfg.moe_router_load_balancing_type=sinkhorn", False),
    ):
        write_config(tmp_path / family, family)
        given = [f"policy.model_name={tmp_path / family}", f"data.train.path={tmp_path}/rows.jsonl", override]
        lines = missing_inputs(load_run(None, given)[0])
        assert len(lines) == is_said, (family, override, lines)
        assert all(override.partition("=")[0] in line for line in lines)


def test_nothing_is_scored_where_nothing_is_preferred():
    programs = [command[0] for command in _commands(_compile("dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"))]
    assert programs == ["preference-tokenize", "dpo-train", "ckpt-export"]


def test_nothing_is_exported_where_nothing_is_saved():
    for without in (["checkpointing.enabled=false"], ["dpo.max_num_steps=0", "data.validation.prompt_file=held_out.jsonl"]):
        plan = _compile(*without)
        assert plan.export_dir is None
        assert _commands(plan)[-1][0] == "dpo-train"


def test_several_processes_run_under_torchrun():
    plan = _compile("cluster.gpus_per_node=2", "cluster.num_nodes=2")
    launched = [" ".join(c[:8]) for c in _commands(plan) if c[0] == "dpo-torchrun"]
    prefix = "dpo-torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 4 --no-python"
    assert launched == [f"{prefix} ref-logprobs", f"{prefix} dpo-train"]
    assert all("OMP_NUM_THREADS" in stage.env for stage in plan.stages if "torchrun" in stage.argv[0])


OPTIONS = [
    ("data.train.prompt_key=context", "--prompt-key context"),
    ("data.train.chosen_key=good", "--chosen-key good"),
    ("data.train.rejected_key=bad", "--rejected-key bad"),
    ("data.train={chosen_reward_key: a, rejected_reward_key: b}", "--chosen-reward-key a --rejected-reward-key b"),
    ("data.train.source_name=mine", "--source-name mine"),
    ("data.train.drop=[duplicates, both-ways]", "--drop duplicates,both-ways"),
    ("data.train.limit=64", "--limit 64"),
    ("data.train.on_error=skip", "--on-error skip"),
    ("policy.tokenizer.name=org/other", "--tokenizer org/other"),
    ("policy.tokenizer.chat_template='{% for m in messages %}{% endfor %}'", "--chat-template job/chat_template.jinja"),
]


@pytest.mark.parametrize(("override", "option"), OPTIONS)
def test_settings_reach_the_tokenizer(override: str, option: str):
    assert option in " ".join(_commands(_compile(override))[0])


def test_the_reward_of_one_response_alone_is_refused():
    for key, absent in (("chosen", "rejected"), ("rejected", "chosen")):
        with pytest.raises(UserError, match=f"the data t.jsonl have no {absent}_reward_key, and a pair has two rewards"):
            _compile(f"data.train.{key}_reward_key=x")


def test_the_export_reads_where_training_saves():
    assert _commands(_compile())[-1][1] == "job/run"
    assert _commands(_compile("checkpointing.checkpoint_dir=results/dpo"))[-1][1] == "results/dpo"


def test_another_export_trains_nothing_anew():
    validated = "data.validation.path=v.jsonl"
    plain = _compile(validated)
    for step in ("best", "30"):
        plan = _compile(f"checkpointing.export_step={step}", validated)
        assert _commands(plan)[-1][-2:] == ["--step", step]
        assert _commands(plan)[:-1] == _commands(plain)[:-1]
        assert plan.files == plain.files
    for wrong in ("0", "first", "-1", "null"):
        with pytest.raises(UserError, match="export_step"):
            _compile(f"checkpointing.export_step={wrong}")
    with pytest.raises(UserError, match="no step is the best: name it"):
        _compile("checkpointing.export_step=best", "checkpointing.metric_name=null", validated)
    with pytest.raises(UserError, match="nothing measures val:validation-default_loss: no step is the best"):
        _compile("checkpointing.export_step=best", "data.validation=null")
    assert _compile("checkpointing.export_step=best", "checkpointing.metric_name=train:loss").stages


def test_inline_template_becomes_a_file():
    plan = _compile("policy.tokenizer.chat_template='{{ messages }}'")
    assert plan.files["chat_template.jinja"] == "{{ messages }}"
    with pytest.raises(UserError, match=r"none\.jinja: no such file: policy\.tokenizer\.chat_template names it"):
        _compile("policy.tokenizer.chat_template=none.jinja")


def test_train_yaml_reads_back_with_the_policy_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = _compile("policy.model_name=nemotron-dpo/tiny-sft")
    assert plan.prelude is not None
    (tmp_path / "train.yaml").write_text(plan.files["train.yaml"])
    run, warnings = load_run(tmp_path / "train.yaml", [])
    assert run.policy.model_name == str(plan.prelude.checkpoint)
    assert warnings == []


def test_tiny_policy_is_made_first_and_kept_by_what_it_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prelude = _compile("policy.model_name=nemotron-dpo/tiny-sft").prelude
    assert prelude is not None
    assert [name for name, _ in prelude.commands] == [
        "tiny_policy", "preference-tokenize", "dpo-train", "ckpt-export", "publish",
    ]  # fmt: skip
    assert prelude.commands[-1][1] == ("mv", "-T", str(prelude.scratch), str(prelude.target))
    assert prelude.target.parent == tmp_path / "nemotron-dpo"
    assert not prelude.is_cached
    prelude.checkpoint.mkdir(parents=True)
    assert prelude.is_cached
    assert _compile().prelude is None


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user whom the system does not know
    with pytest.raises(UserError, match=r"^~/\.cache: there is no home folder .*: set XDG_CACHE_HOME or HOME"):
        tiny_sft.cache_root()


def test_a_library_that_is_missing_is_named_before_the_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where a folder has its name, as wandb makes one."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    run, _ = load_run(None, [f"data.train.path={tmp_path}/a.jsonl", "logger.wandb_enabled=true"])
    missing_inputs(run)  # imports what it needs before there is nothing to import it from
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    line = "\"logger.wandb_enabled\" is true, and the library wandb is not installed: pip install 'nemotron-dpo[wandb]'"
    assert missing_inputs(run) == [f"{line}, or set it to false"]
    assert missing_inputs(run, look=False) == []
    both = replace(run, logger=replace(run.logger, mlflow_enabled=True))
    assert missing_inputs(both) == [
        '"logger.mlflow_enabled" is true, and the library mlflow is not installed (nor is wandb, which is asked for too): '
        "pip install 'nemotron-dpo[mlflow,wandb]', or set them to false"
    ]


def test_missing_inputs_are_named(tmp_path: Path):
    assert missing_inputs(RunConfig()) == [
        "data.train.prompt_file is not set: give data.train.prompt_file=FILE, preference JSONL"
    ]
    (tmp_path / "a.jsonl").write_text("{}\n")
    run, _ = load_run(None, [f"data.train.path={tmp_path}/*.jsonl", f"data.validation.path={tmp_path}/b.jsonl"])
    assert missing_inputs(run) == [
        f"{tmp_path}/b.jsonl: no such file: it is the data of validation default; data.validation=null trains without validation"
    ]
    run, _ = load_run(None, [f"data.train=[{tmp_path}/a.jsonl, {tmp_path}/c.jsonl]"])
    assert missing_inputs(run) == [f"{tmp_path}/c.jsonl: no such file: it is the data of train"]


@pytest.mark.parametrize(
    ("form", "scoring"),
    [("megatron_bridge", "--policy ckpt"), ("megatron_lm", "--policy ckpt --precision bfloat16 --hf-model org/model")],
)
def test_a_pretrained_checkpoint_is_what_scores_and_trains(form: str, scoring: str):
    pretrained = "checkpointing.pretrained_checkpoint"
    tokenize, score, train, _ = _commands(_compile(f"{pretrained}.path=ckpt", f"{pretrained}.format={form}"))
    assert "--tokenizer org/model" in " ".join(tokenize)
    assert scoring in " ".join(score)
    assert "--policy org/model" in " ".join(train)  # which train.yaml's pretrained_checkpoint stands in for
