"""Config: what is read, what is refused and in which words, what warns; a merge equals OmegaConf's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
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
