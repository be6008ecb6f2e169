"""Config: what is read, what is refused and in which words, what warns; a merge equals OmegaConf's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_dpo.config import (
    DatasetConfig,
    DpoConfig,
    MegatronConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    dump_run,
    idle_keys,
    load_run,
    redact,
    redact_override,
)
from nemotron_dpo.errors import UserError

NEMO_RL = """
dpo:
  max_num_steps: 150
  val_micro_batch_size: 1
  preference_average_log_probs: false
  sft_average_log_probs: ${.preference_average_log_probs}
policy:
  model_name: meta-llama/Llama-3.2-1B-Instruct
  tokenizer: {name: "${policy.model_name}", chat_template_kwargs: null}
  max_total_sequence_length: 1024
  dtensor_cfg: {enabled: true, tensor_parallel_size: 2, lora_cfg: {enabled: false, dim: 8}}
  optimizer:
    name: torch.optim.AdamW
    kwargs: {lr: 5.0e-6, weight_decay: 0.1, betas: [0.9, 0.98], eps: 1e-5, foreach: false}
  scheduler:
    - name: torch.optim.lr_scheduler.LinearLR
      kwargs: {start_factor: 0.1, end_factor: 1.0, total_iters: 20}
    - name: torch.optim.lr_scheduler.ConstantLR
      kwargs: {factor: 1.0, total_iters: 10000000000}
    - milestones: [20]
  megatron_cfg:
    enabled: false
    tensor_model_parallel_size: 4
    sequence_parallel: true
    optimizer: {optimizer: adam, lr: 1.0e-3, min_lr: 1.0e-4, adam_beta2: 0.95}
    scheduler: {lr_decay_style: cosine, lr_warmup_iters: 7}
    distributed_data_parallel_config: {grad_reduce_in_fp32: false, overlap_grad_reduce: true}
checkpointing: {save_period: 150, metric_name: "val:validation-easy_loss"}
data:
  max_input_seq_length: ${policy.max_total_sequence_length}
  train: {data_path: train.jsonl, prompt_key: context}
  val_data_paths: {easy: easy.jsonl, hard: hard.jsonl}
  default: {chosen_key: good}
"""


@pytest.fixture
def nemo_rl(tmp_path: Path) -> Path:
    path = tmp_path / "nemo_rl.yaml"
    path.write_text(NEMO_RL)
    return path


def test_no_config_is_the_documented_default():
    run, warnings = load_run(None, [])
    assert run == RunConfig()
    assert warnings == []
    assert (run.dpo.reference_policy_kl_penalty, run.dpo.max_num_steps, run.dpo.val_period, run.dpo.seed) == (0.05, 500, 50, 42)
    assert run.policy.train_global_batch_size == 32
    assert run.policy.optimizer.lr == 5e-7


def test_nemo_rl_config_is_understood(nemo_rl: Path):
    run, warnings = load_run(nemo_rl, [])
    policy = run.policy
    assert policy.tokenizer.name == "meta-llama/Llama-3.2-1B-Instruct"
    assert policy.optimizer == OptimizerConfig(lr=5e-6, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-5)
    linear = ("LinearLR", {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 20})
    constant = ("ConstantLR", {"factor": 1.0, "total_iters": 10000000000})
    assert policy.scheduler == ScheduleConfig("torch", 0, 0.0, (linear, constant), (20,))
    assert policy.megatron_cfg == MegatronConfig(tensor_model_parallel_size=2)
    assert run.data.train == DatasetConfig("train.jsonl", "context", "good")
    assert run.data.validation == (
        ("easy", DatasetConfig("easy.jsonl", chosen_key="good")),
        ("hard", DatasetConfig("hard.jsonl", chosen_key="good")),
    )
    assert warnings == []
    idle = {key.key: key for key in idle_keys(nemo_rl, [])}
    for key in ("dpo.val_micro_batch_size", "policy.megatron_cfg", "policy.optimizer.foreach"):
        assert idle[key].source == str(nemo_rl)
        assert idle[key].reason


def test_megatron_backend_brings_its_own_optimizer(nemo_rl: Path):
    overrides = ["policy.megatron_cfg.enabled=true", "policy.dtensor_cfg.enabled=false"]
    run, _ = load_run(nemo_rl, overrides)
    assert run.policy.optimizer == OptimizerConfig(lr=1e-3, betas=(0.9, 0.95))
    assert run.policy.scheduler == ScheduleConfig("cosine", 7, 1e-4, warmup_init=0.0)
    assert run.policy.megatron_cfg == MegatronConfig(4, sequence_parallel=True, grad_reduce_in_fp32=False)
    assert {"policy.optimizer", "policy.scheduler"} <= {key.key for key in idle_keys(nemo_rl, overrides)}


SHAPES = [
    (["policy.optimizer.lr=1e-3"], 1e-3),
    (["policy.optimizer.kwargs.lr=1e-3"], 1e-3),
    (["policy.optimizer.kwargs.lr=1e-3", "policy.optimizer.lr=2e-3"], 2e-3),
    (["policy.optimizer.lr=2e-3", "policy.optimizer.kwargs.lr=1e-3"], 1e-3),
]


@pytest.mark.parametrize(("overrides", "lr"), SHAPES)
def test_later_spelling_of_the_learning_rate_wins(nemo_rl: Path, overrides: list[str], lr: float):
    assert load_run(nemo_rl, overrides)[0].policy.optimizer.lr == lr


def test_a_schedule_of_another_shape_replaces_the_one_below(nemo_rl: Path):
    run, _ = load_run(nemo_rl, ["policy.scheduler={name: cosine, warmup_steps: 3, min_lr: 1e-8}"])
    assert run.policy.scheduler == ScheduleConfig("cosine", 3, 1e-8)


ALIASES = [
    ("data.train.prompt_file=a.jsonl", DatasetConfig("a.jsonl")),
    ("data.train.data_path=a.jsonl", DatasetConfig("a.jsonl")),
    ("data.train.path=a.jsonl", DatasetConfig("a.jsonl")),
]


@pytest.mark.parametrize(("override", "dataset"), ALIASES)
def test_names_of_the_data_file(override: str, dataset: DatasetConfig):
    assert load_run(None, [override])[0].data.train == dataset


HELPSTEER = "data: {train: {split: train}, validation: {split: validation}, default: {dataset_name: HelpSteer3}}"
# overrides -> (data.train, data.validation) above HELPSTEER, as NVIDIA's configs of the step have it
NAMED = [
    ((), DatasetConfig("HelpSteer3", split="train"), DatasetConfig("HelpSteer3", split="validation")),
    (
        ("data.train.prompt_file=a.jsonl", "data.validation.data_path=v.jsonl"),
        DatasetConfig("a.jsonl", split="train"),
        DatasetConfig("v.jsonl", split="validation"),
    ),
    (
        ("data.default.dataset_name=PreferenceDataset", "data.train.data_path=a", "data.validation.data_path=v"),
        DatasetConfig("a", split="train", row_format="ranked"),
        DatasetConfig("v", split="validation", row_format="ranked"),
    ),
    (
        ("data.train.dataset_name=BinaryPreferenceDataset", "data.train.data_path=o/d", "data.train.chosen_key=good"),
        DatasetConfig("o/d", split="train", chosen_key="good"),
        DatasetConfig("HelpSteer3", split="validation", is_default=True),
    ),
    (
        ("data.train.dataset_name=org/name", "data.default.subset=s", "data.validation.split=test[:1%]"),
        DatasetConfig("org/name", split="train", subset="s"),
        DatasetConfig("HelpSteer3", split="test[:1%]", subset="s", is_default=True),
    ),
]


def test_data_sets_are_named_as_in_nemo_rl(tmp_path: Path):
    (config := tmp_path / "c.yaml").write_text(HELPSTEER)
    for overrides, train, validation in NAMED:
        run, warnings = load_run(config, list(overrides))
        assert (run.data.train, run.data.validation) == (train, (("default", validation),)), overrides
        assert warnings == []


@pytest.mark.parametrize("below", ["prompt_file", "data_path", "path", "dataset_name"])
@pytest.mark.parametrize("above", ["prompt_file", "data_path", "path", "dataset_name"])
def test_the_later_name_of_the_rows_wins(below: str, above: str, tmp_path: Path):
    """Whichever keys they have: neither are the rows of the file used in silence, nor is the override refused."""
    (config := tmp_path / "c.yaml").write_text(
        f"data: {{train: {{{below}: a.jsonl}}, validation: {{hard: {{{below}: a.jsonl}}}}}}"
    )
    given = [f"data.train.{above}=b.jsonl", f"data.validation.hard={{{above}: b.jsonl}}", "checkpointing.metric_name=null"]
    data = load_run(config, given)[0].data
    assert (data.train, data.validation) == (DatasetConfig("b.jsonl"), (("hard", DatasetConfig("b.jsonl")),))


def test_a_single_validation_set_is_the_default_one_beside_others(tmp_path: Path):
    """On either side: a config with one set takes others by name, and one with names takes a single set."""
    (config := tmp_path / "c.yaml").write_text("data: {validation: {prompt_file: a.jsonl, limit: 4}}")
    run, _ = load_run(config, ["data.validation.hard.path=h.jsonl"])
    both = (("default", DatasetConfig("a.jsonl", limit=4)), ("hard", DatasetConfig("h.jsonl")))
    assert tuple(sorted(run.data.validation)) == both
    config.write_text("data: {validation: {hard: {prompt_file: h.jsonl}}}")
    run, _ = load_run(config, ["data.validation={dataset_name: a.jsonl, limit: 4}"])
    assert tuple(sorted(run.data.validation)) == both


def test_rows_named_twice_in_one_file_are_refused_still(tmp_path: Path):
    (config := tmp_path / "c.yaml").write_text("data: {train: {prompt_file: a.jsonl, path: b.jsonl}}")
    with pytest.raises(UserError, match="under another name"):
        load_run(config, [])


A, B = DatasetConfig("a.jsonl", weight=2.0), DatasetConfig("b.jsonl", row_format="ranked", chosen_key="good")
LISTED = "[{prompt_file: a.jsonl, weight: 2}, {data_path: b.jsonl, dataset_name: PreferenceDataset, chosen_key: good}]"


def test_a_list_of_data_sets_is_one_set(tmp_path: Path):
    """Over a mapping of a file and under another override; each with data.default's keys; written out as it was given."""
    (config := tmp_path / "c.yaml").write_text(HELPSTEER)
    steered = replace(A, split="test", path="a.jsonl"), replace(B, split="test")
    for overrides, train in (
        ([f"data.train={LISTED}"], DatasetConfig(parts=(A, B))),
        ([f"data.train={LISTED}", "data.default.split=test"], DatasetConfig(parts=steered)),
        ([f"data.train={LISTED}", "data.train.prompt_file=c.jsonl"], DatasetConfig("c.jsonl")),
        (["data.train=[a.jsonl]"], DatasetConfig(parts=(DatasetConfig("a.jsonl"),))),
    ):
        run, warnings = load_run(config, overrides)
        assert (run.data.train, warnings) == (train, []), overrides
        (written := tmp_path / "written.yaml").write_text(dump_run(replace(run, data=replace(run.data, validation=()))))
        assert load_run(written, [])[0].data.train == train
    for override, name in ((f"data.validation={LISTED}", "default"), (f"data.validation={{hard: {LISTED}}}", "hard")):
        run, _ = load_run(None, [override, "checkpointing.metric_name=null"])
        assert run.data.validation == ((name, DatasetConfig(parts=(A, B))),)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.train=[]"], '"data.train" is an empty list: name data, or leave it null'),
        (["data.train=[3]"], '"data.train.0" is 3 where a mapping with a path is due'),
        (["data.train=[a, {weight: 2}]"], '"data.train.1" has no path: give path or dataset_name'),
        (["data.train=[{path: a, wieght: 2}]"], '"data.train.wieght" is no known key: did you mean data.train.weight?'),
        (["data.train=[{path: a, weight: 0}]"], '"data.train.0.weight" is 0.0 where more than 0 is due'),
        (["data.train=[{path: a, weight: inf}]"], '"data.train.0.weight" is inf where a finite number is due'),
        (["data.train=[{path: a, on_error: x}]"], "\"data.train.0.on_error\" is 'x' where 'fail' or 'skip' is due"),
        (["data.train=[a, b]", "data.train.limit=3"], '"data.train" is a list of data sets: give data.train as a whole'),
        (
            ["data.train=[{path: a, split_validation_size: 0.05}]"],
            '"data.train.split_validation_size" is 0.05, which holds rows out of the training set (NeMo-RL\'s DPO does not) and '
            "is not built: data.validation.split_from_train=0.05 does, by prompt",
        ),
    ],
)
def test_a_list_that_cannot_be_meant_is_one_clear_line(overrides: list[str], line: str):
    with pytest.raises(UserError) as caught:
        load_run(None, overrides)
    assert str(caught.value).removeprefix(f"{overrides[-1]}: ") == line


def test_a_share_of_the_training_set_has_no_rows_of_its_own(tmp_path: Path):
    """What is below of another set goes; what data.default says of rows is said of the training set alone."""
    share = DatasetConfig(split_from_train=0.05)
    (below := tmp_path / "c.yaml").write_text(HELPSTEER)
    (single := tmp_path / "d.yaml").write_text("data: {validation: {prompt_file: v.jsonl, limit: 3, prompt_key: q}}")
    (named := tmp_path / "e.yaml").write_text("data: {validation: {default: {path: v}, hard: {path: h, limit: 4}}}")
    for config in (None, below, single):
        run, _ = load_run(config, ["data.validation.split_from_train=0.05", "data.default.drop=[tied]"])
        assert run.data.train.drop == ("tied",)
        assert run.data.validation == (("default", share),)
        (written := tmp_path / "written.yaml").write_text(dump_run(run))
        assert load_run(written, [])[0].data == run.data
    run, _ = load_run(named, ["data.validation.default={split_from_train: 0.05, split_seed: 7}"])
    assert dict(run.data.validation) == {"default": replace(share, split_seed=7), "hard": DatasetConfig("h", limit=4)}
    run, _ = load_run(single, ["data.validation.split_from_train=0.05", "data.validation.data_path=w.jsonl"])
    assert run.data.validation == (("default", DatasetConfig("w.jsonl")),)


SHARE = "data.validation.split_from_train=0.05"
NOT_HELD_OUT = [
    (["data.train.split_from_train=0.5"], '"data.train.split_from_train" is 0.5, and only a whole validation set can be held out'),
    (["data.train=[{path: a, split_seed: 5}]"], '"data.train.0.split_seed" is 5, and only a whole validation set'),
    (["data.validation=[{path: a, split_from_train: 0.1}]"], '"data.validation.default.0.split_from_train" is 0.1, and only a whole'),
    (["data.train=[a, b]", SHARE], '"data.validation.default.split_from_train" is 0.05, and data.train is a list: a prompt of one'),
    (["data.validation.split_from_train=1"], '"data.validation.default.split_from_train" is 1.0 where less than 1 is due'),
    (["data.validation.split_from_train=0"], '"data.validation.default.split_from_train" is 0.0 where more than 0 is due'),
    (["data.validation={split_from_train: 0.1, path: v}"], '"data.validation.default.path" is v, and the set is held out'),
    (["data.train.drop=[twins]"], "\"data.train.drop\" is 'twins' where 'empty' or 'whitespace' or 'inverted' or 'tied'"),
    ([SHARE, "data.validation.limit=3"], '"data.validation.default.limit" is 3, and the set is held out of the training set'),
    (["data.validation={split_seed: 1, path: v}"], '"data.validation.default.split_seed" is 1, and split_from_train is not set'),
    (["data.validation={a: {split_from_train: 0.1}, b: {split_from_train: 0.2}}"],
        '"data.validation.b.split_from_train" is 0.2, and data.validation.a is held out as well: they would share prompts'),
    (["data.validation.split_form_train=0.1"], '"data.validation.split_form_train" is 0.1 where a mapping with a path is due: '
        "did you mean data.validation.split_from_train?"),
    ([SHARE, "data.validation.split_sede=1"], '"data.validation.split_sede" is no known key: did you mean data.validation.split_seed?'),
    (["data.default.split_from_train=0.1"], '"data.default.split_from_train" is no known key'),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "line"), NOT_HELD_OUT)
def test_a_share_that_cannot_be_held_out_is_one_clear_line(overrides: list[str], line: str):
    with pytest.raises(UserError) as caught:
        load_run(None, ["checkpointing.metric_name=null", *overrides])
    assert str(caught.value).removeprefix(f"{overrides[-1]}: ").startswith(line)


def test_the_form_of_files_names_no_place():
    run, _ = load_run(None, ["data.train.dataset_name=PreferenceDataset"])
    assert run.data.train == DatasetConfig()


def test_one_validation_file_is_called_default():
    assert load_run(None, ["data.validation.data_path=v.jsonl"])[0].data.validation == (("default", DatasetConfig("v.jsonl")),)


REFUSED = [
    ("dpo.max_num_step=3", '"dpo.max_num_step" is no known key: did you mean dpo.max_num_steps?'),
    ("dpo.lr=3", '"dpo.lr" is no known key: did you mean policy.optimizer.lr?'),
    ("foo=1", '"foo" is no known key: the sections are dpo, policy, data, checkpointing, logger, cluster'),
    ("data.train.prompt_kye=a", '"data.train.prompt_kye" is no known key: did you mean data.train.prompt_key?'),
    ("dpo.max_num_steps=ten", "\"dpo.max_num_steps\" is 'ten' where a whole number is due"),
    ("dpo.max_num_steps=1.5", '"dpo.max_num_steps" is 1.5 where a whole number is due'),
    ("dpo.max_num_steps=true", '"dpo.max_num_steps" is true where a whole number is due'),
    ("dpo.max_num_steps=-1", '"dpo.max_num_steps" is -1 where at least 0 is due'),
    ("dpo.seed=null", '"dpo.seed" is null where a whole number is due'),
    ("dpo.val_at_start=3", '"dpo.val_at_start" is 3 where true or false is due'),
    ("dpo=3", '"dpo" is 3 where a mapping is due'),
    ("policy.precision=fp8", "\"policy.precision\" is 'fp8' where 'bfloat16' or 'float32' is due"),
    ("policy.optimizer.name=sgd", '"policy.optimizer.name" is "sgd": only AdamW is built'),
    ("policy.optimizer.betas=[1,2,3]", '"policy.optimizer.betas" is [1, 2, 3] where a list of 2 is due'),
    ("policy.reward_model_cfg.enabled=true", '"policy.reward_model_cfg.enabled" is true, which trains a reward model and is not built: leave it false'),
    ("policy.scheduler=[{name: x},{name: y}]", '"policy.scheduler" has 2 schedulers and 0 milestones: a milestone belongs between each two schedulers'),
    ("dpo.seed=${nope}", "\"dpo.seed\" Interpolation key 'nope' not found"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "line"), REFUSED)
def test_refused_override_is_one_clear_line(override: str, line: str):
    with pytest.raises(UserError) as caught:
        load_run(None, [override])
    assert str(caught.value) == f"{override}: {line}"


@pytest.mark.parametrize("word", ["dpo.seed", "=3", "dpo.seed='["])
def test_malformed_override_is_a_usage_error(word: str):
    with pytest.raises(UserError) as caught:
        load_run(None, [word])
    assert caught.value.usage
    assert str(caught.value).startswith(f"{word}: ")


FILES = [
    ("dpo:\n  seed: 1\n  sed: 2\n", ':3: "dpo.sed" is no known key: did you mean dpo.seed?'),
    ("dpo:\n  seed: one\n", ":2: \"dpo.seed\" is 'one' where a whole number is due"),
    ("- 1\n", ": is no mapping of sections"),
    ("defaults: 3\n", ': "defaults" names a file or a list of files'),
    ("defaults: [none.yaml]\n", ': "defaults" names none.yaml, and there is no such file'),
    ("defaults: it.yaml\n", ": its chain of defaults comes back to itself"),
]


@pytest.mark.parametrize(("text", "line"), FILES)
def test_refused_file_is_named_with_the_line(tmp_path: Path, text: str, line: str):
    path = tmp_path / "it.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_run(path, [])
    assert str(caught.value) == f"{path}{line}"


def test_what_is_not_yaml_is_refused_with_the_line(tmp_path: Path):
    path = tmp_path / "it.yaml"
    path.write_text("dpo:\n  seed: [1\n")
    with pytest.raises(UserError, match=r"it\.yaml:3: is not YAML \("):
        load_run(path, [])


def test_missing_and_binary_files(tmp_path: Path):
    (tmp_path / "binary.yaml").write_bytes(b"dpo: \xff\n")
    for name, line in (("none.yaml", "no such config file"), ("binary.yaml", "is not UTF-8 (byte 5)")):
        with pytest.raises(UserError) as caught:
            load_run(tmp_path / name, [])
        assert str(caught.value) == f"{tmp_path / name}: {line}"


def test_two_spellings_that_disagree_are_refused():
    overrides = ["policy.megatron_cfg.tensor_model_parallel_size=1", "policy.dtensor_cfg.tensor_parallel_size=2"]
    with pytest.raises(UserError, match="is 1 and, under another name, 2: set one of them"):
        load_run(None, overrides)


def test_defaults_chain_merges_base_files_first(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("dpo: {seed: 1, val_period: 1, val_batches: 1}\n")
    (tmp_path / "b.yaml").write_text("defaults: a.yaml\ndpo: {seed: 2, val_period: 2}\n")
    (tmp_path / "c.yaml").write_text("dpo: {max_num_steps: 3}\n")
    (tmp_path / "d.yaml").write_text("defaults: [b.yaml, c.yaml]\ndpo: {seed: 4}\n")
    run, _ = load_run(tmp_path / "d.yaml", ["dpo.max_num_epochs=5"])
    assert run.dpo == DpoConfig(max_num_epochs=5, max_num_steps=3, val_period=2, val_batches=1, seed=4)


def test_environment_and_folder_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_STEPS", "7")
    (tmp_path / "a.yaml").write_text(
        "dpo: {max_num_steps: '${oc.env:MY_STEPS,1}', seed: '${oc.env:NO_SUCH_SEED,9}'}\n"
        "data: {train: {prompt_file: '${config_dir}/t.jsonl'}}\n"
    )
    run, _ = load_run(tmp_path / "a.yaml", [])
    assert (run.dpo.max_num_steps, run.dpo.seed, run.data.train.path) == (7, 9, str(tmp_path / "t.jsonl"))


def test_a_loss_may_refer_to_another_layer(tmp_path: Path):
    """Its names in TRL and here are made one in each layer, before the layers are merged and references resolved."""
    (tmp_path / "a.yaml").write_text("policy: {optimizer: {lr: 0.25}}\ndpo: {rpo_alpha: 1}\n")
    (tmp_path / "b.yaml").write_text("defaults: a.yaml\ndpo: {sft_loss_weight: '${policy.optimizer.lr}'}\n")
    run, _ = load_run(tmp_path / "b.yaml", [])
    assert run.dpo.sft_loss_weight == 0.25


@pytest.mark.parametrize("value", ["off", "'off'", "false"])
def test_off_is_a_word_where_it_is_a_choice(value: str, tmp_path: Path):
    """YAML reads off as false."""
    (tmp_path / "run.yaml").write_text(f"dpo:\n  on_divergence: {value}\n")
    for run, _ in (load_run(tmp_path / "run.yaml", []), load_run(None, [f"dpo.on_divergence={value}"])):
        assert run.dpo.on_divergence == "off"
        (tmp_path / "again.yaml").write_text(dump_run(run))
        assert load_run(tmp_path / "again.yaml", [])[0] == run
    with pytest.raises(UserError, match="is True where 'warn' or 'stop' or 'off' is due"):
        load_run(None, ["dpo.on_divergence=on"])


def test_base_lies_under_the_file(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("cluster: {gpus_per_node: 2}\n")
    base = {"cluster": {"gpus_per_node": 4, "num_nodes": 3}}
    cluster = load_run(tmp_path / "a.yaml", [], base)[0].cluster
    assert (cluster.gpus_per_node, cluster.num_nodes) == (2, 3)


@pytest.mark.parametrize("overrides", [[], ["policy.scheduler={name: linear, warmup_steps: 2}", "policy.max_grad_norm=null"]])
def test_dump_reads_back_equal(nemo_rl: Path, tmp_path: Path, overrides: list[str]):
    run, _ = load_run(nemo_rl, overrides)
    (tmp_path / "dump.yaml").write_text(dump_run(run))
    assert load_run(tmp_path / "dump.yaml", []) == (run, [])


NOT_BUILT = [
    "logger.log_dir=logs",
    "logger.gpu_monitoring={collection_interval: 5}",
    "logger.mlflow={run_name: r}",
    "policy.megatron_cfg.sequence_parallel=true",
]


@pytest.mark.parametrize("override", NOT_BUILT)
def test_settings_that_are_not_built_are_named(override: str):
    _, warnings = load_run(None, [override])
    (warning,) = warnings
    assert warning.startswith(f'{override}: "{override.partition("=")[0]}" has no meaning here: it ')


_DOTLIST = st.fixed_dictionaries(
    {},
    optional={
        "dpo.max_num_steps": st.integers(1, 10**6),
        "dpo.reference_policy_kl_penalty": st.floats(0, 10, allow_nan=False).map(lambda x: round(x, 6)),
        "dpo.val_at_start": st.booleans(),
        "policy.train_global_batch_size": st.integers(1, 4096),
        "policy.model_name": st.from_regex(r"[a-z]{1,8}/[A-Za-z][A-Za-z0-9.\-]{0,12}", fullmatch=True),
    },
)


@settings(max_examples=40, deadline=None)
@given(_DOTLIST)
def test_compile_equals_omegaconf_merge(values: dict[str, object]):
    from omegaconf import OmegaConf

    dotlist = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    base = OmegaConf.create({"dpo": {"max_num_steps": 500}, "policy": {}})
    expected = OmegaConf.merge(base, OmegaConf.from_dotlist(dotlist))
    run, _ = load_run(None, dotlist)
    for key in values:
        section, _, name = key.partition(".")
        assert getattr(getattr(run, section), name) == OmegaConf.select(expected, key)
    plain = _leaves(asdict(load_run(None, [])[0]))
    assert {key for key, value in _leaves(asdict(run)).items() if value != plain[key]} <= set(values)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


SECRETS = [
    ("api_key", "abc", "***"),
    ("WANDB_API_KEY", "abc", "***"),
    ("HF_TOKEN", "abc", "***"),
    ("--api-key", "abc", "***"),
    ("client_secret", "abc", "***"),
    ("prompt_key", "context", "context"),
    ("policy.tokenizer", "gpt2", "gpt2"),
    ("tokenizer", "gpt2", "gpt2"),
    ("max_tokens", "4096", "4096"),
    ("note", "hf_" + "abcdefghij" * 3, "***"),
    ("note", "use nvapi-" + "0123456789" * 3 + " here", "use *** here"),
    ("path", "/data/hf_checkpoints_20261101/task-with-a-very-long-name-indeed", "/data/hf_checkpoints_20261101/task-with-a-very-long-name-indeed"),
    ("url", "https://me:pass@host/x", "https://***@host/x"),
    ("path", "/hub/0123456789abcdef0123456789abcdef01234567/x", "/hub/0123456789abcdef0123456789abcdef01234567/x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "shown"), SECRETS)
def test_secrets_are_hidden_and_harmless_keys_are_not(key: str, value: str, shown: str):
    assert redact({key: value}) == {key: shown}
    assert redact_override(f"{key}={value}") == f"{key}={shown}"
