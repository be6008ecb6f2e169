"""NeMo-RL's keys: each counts as it does there, has no meaning with a reason, or is refused with a remedy."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.config import PolicyConfig, RunConfig, dump_run, idle_keys, load_run, router_refusal, with_job_folder
from nemotron_dpo.config.foreign_keys import NO_MEANING, REFUSED
from nemotron_dpo.config.key_names import known_keys
from nemotron_dpo.config.key_table import with_table
from nemotron_dpo.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MEGATRON = "policy.megatron_cfg"
ADAM = f"{MEGATRON}.optimizer={{optimizer: adam, lr: 1e-6, clip_grad: 0.5}}"

# overrides -> the values they come to, by dotted key of ours
HONOURED: list[tuple[list[str], dict[str, Any]]] = [
    ([], {"policy.tokenizer.chat_template": None}),
    (["policy.tokenizer.chat_template=default"], {"policy.tokenizer.chat_template": None}),
    (["policy.tokenizer.chat_template=t.jinja"], {"policy.tokenizer.chat_template": "t.jinja"}),
    (
        ["policy.tokenizer.chat_template_kwargs={enable_thinking: false}"],
        {"policy.tokenizer.chat_template_kwargs": {"enable_thinking": False}},
    ),
    ([], {f"{MEGATRON}.moe_router_load_balancing_type": "aux_loss", f"{MEGATRON}.moe_aux_loss_coeff": None}),
    (["policy.hf_config_overrides={router_aux_loss_coef: 0.0}"], {f"{MEGATRON}.moe_aux_loss_coeff": 0.0}),
    (
        [f"{MEGATRON}.moe_router_load_balancing_type=seq_aux_loss", "policy.hf_config_overrides={router_aux_loss_coef: 0.01}"],
        {f"{MEGATRON}.moe_router_load_balancing_type": "seq_aux_loss", f"{MEGATRON}.moe_aux_loss_coeff": 0.01},
    ),
    (
        ["policy.automodel_cfg={expert_parallel_size: 8, activation_checkpointing: true, checkpoint: {model_save_format: x}}"],
        {f"{MEGATRON}.expert_model_parallel_size": 8, f"{MEGATRON}.activation_checkpointing": True},
    ),
    (
        [f"{MEGATRON}.distributed_data_parallel_config={{grad_reduce_in_fp32: false, use_distributed_optimizer: false}}"],
        {f"{MEGATRON}.grad_reduce_in_fp32": False, f"{MEGATRON}.use_distributed_optimizer": False},
    ),
    ([f"{MEGATRON}.enabled=true", ADAM], {"policy.optimizer.lr": 1e-6, "policy.max_grad_norm": 0.5}),
    (
        [f"{MEGATRON}.enabled=true", f"{MEGATRON}.optimizer.clip_grad=0.0", "policy.max_grad_norm=1.0"],
        {"policy.max_grad_norm": None},
    ),
    (
        [
            f"{MEGATRON}.enabled=true",
            f"{MEGATRON}.optimizer={{min_lr: 1e-8, weight_decay: 0.1}}",
            f"{MEGATRON}.scheduler={{lr_decay_style: cosine, lr_warmup_iters: 3, lr_warmup_init: 1e-9, lr_decay_iters: 32, "
            "start_weight_decay: 0.1, end_weight_decay: 0.1, weight_decay_incr_style: constant}",
        ],
        {
            "policy.scheduler.name": "cosine",
            "policy.scheduler.warmup_steps": 3,
            "policy.scheduler.warmup_init": 1e-9,
            "policy.scheduler.decay_steps": 32,
            "policy.scheduler.min_lr": 1e-8,
        },
    ),
    (
        ["policy.dtensor_cfg={expert_parallel_size: 8, activation_checkpointing: true, sequence_parallel: false}"],
        {f"{MEGATRON}.expert_model_parallel_size": 8, f"{MEGATRON}.activation_checkpointing": True},
    ),
    (
        ["policy.dtensor_cfg.lora_cfg={enabled: true, dim: 16, alpha: 8, use_triton: true, match_all_linear: true}"],
        {f"{MEGATRON}.peft.enabled": True, f"{MEGATRON}.peft.dim": 16, f"{MEGATRON}.peft.alpha": 8},
    ),
    (["data.max_input_seq_length=512", "policy.max_total_sequence_length=512"], {"policy.max_total_sequence_length": 512}),
    (["checkpointing={ft_save_period: null, ft_keep_latest_k: null}"], {"checkpointing.keep_top_k": 3}),
    (["data.default={prompt_file: null, data_path: null}", "data.train.path=a.jsonl"], {"data.train.path": "a.jsonl"}),
]


def test_keys_that_count():
    for overrides, expected in HONOURED:
        run = load_run(None, overrides)[0]
        assert {key: reduce(getattr, key.split("."), run) for key in expected} == expected, overrides


def test_nvidias_output_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    asked = "checkpointing.checkpoint_dir=${oc.env:RL_OUTPUT_DIR,./output/rl}/dpo-checkpoints"
    assert load_run(None, [asked])[0].checkpointing.checkpoint_dir == "./output/rl/dpo-checkpoints"
    monkeypatch.setenv("RL_OUTPUT_DIR", "/there")
    assert load_run(None, [asked])[0].checkpointing.checkpoint_dir == "/there/dpo-checkpoints"


def test_no_template_at_all_joins_the_contents():
    """Between BOS and EOS, as NeMo-RL puts them; a prompt has no EOS."""
    from jinja2 import Template

    template = Template(load_run(None, ["policy.tokenizer.chat_template=null"])[0].policy.tokenizer.chat_template or "")
    prompt = [{"role": "system", "content": "Be "}, {"role": "user", "content": "kind. "}]
    answered = [*prompt, {"role": "assistant", "content": "Yes."}]
    assert template.render(messages=prompt, bos_token="<s>", eos_token="</s>") == "<s>Be kind. "
    assert template.render(messages=answered, eos_token="</s>") == "Be kind. Yes.</s>"


def test_a_template_and_its_arguments_are_read_back_as_they_were(tmp_path: Path):
    for overrides in ([], ["policy.tokenizer.chat_template=null"], ["policy.tokenizer.chat_template_kwargs={a: {b: [1]}}"]):
        run = load_run(None, overrides)[0]
        (tmp_path / "run.yaml").write_text(dump_run(run))
        assert load_run(tmp_path / "run.yaml", [])[0] == run


# what a config file may say that changes nothing here
IDLE = [
    "logger.wandb",
    "logger.tensorboard",
    "logger.log_dir",
    "logger.collect_worker_metrics",
    "run.wandb",
    "checkpointing.is_async",
    f"{MEGATRON}.checkpoint.async_save",
    f"{MEGATRON}.distributed_data_parallel_config.overlap_grad_reduce",
    f"{MEGATRON}.distributed_data_parallel_config.data_parallel_sharding_strategy",
    f"{MEGATRON}.optimizer.optimizer_cpu_offload",
    f"{MEGATRON}.optimizer.use_precision_aware_optimizer",
    "dpo.gt_reward_scale",
    "dpo.label_smoothing",
    "policy.reward_model_cfg",
]
TEXT = """
logger: {num_val_samples_to_print: 0, wandb: {project: p}, tensorboard: {log_dir: t}, collect_worker_metrics: true, log_dir: logs}
run: {wandb: {project: p}}
checkpointing: {is_async: true}
policy:
  reward_model_cfg: {enabled: false}
  megatron_cfg:
    enabled: true
    checkpoint: {async_save: true}
    distributed_data_parallel_config: {overlap_grad_reduce: true, data_parallel_sharding_strategy: optim}
    optimizer: {optimizer_cpu_offload: true, use_precision_aware_optimizer: true}
dpo: {preference_loss: apo_zero, gt_reward_scale: 1.0, label_smoothing: 0}
"""


def test_keys_without_meaning_have_a_reason_and_a_place(tmp_path: Path):
    path = tmp_path / "theirs.yaml"
    path.write_text(TEXT)
    found = {key.key: key for key in idle_keys(path, [])}
    assert set(IDLE) <= set(found)
    assert load_run(path, [])[1] == []
    assert str(found["checkpointing.is_async"]).startswith(f'{path}:4: "checkpointing.is_async" has no meaning here: it is ')
    assert all(key.reason and key.line for key in found.values())
    ours = load_run(path, [])[0]
    assert ours.checkpointing == RunConfig().checkpointing
    assert ours.policy.max_grad_norm == PolicyConfig().max_grad_norm


REFUSALS = [
    (
        "dpo.objective=mine.py:Margin",
        "which runs code of a file and is not built: give it as dpo-train --objective FILE.py:NAME",
    ),
    ("policy.hf_config_overrides={rope_theta: 1e6}", "changes the model and is not built: write it into config.json"),
    ("policy.optimizer.amsgrad=true", "is true, which is another optimizer"),
    (f"{MEGATRON}.layernorm_epsilon=1e-3", "changes the model"),
    (f"{MEGATRON}.moe_router_group_topk=2", "chooses other experts"),
    ("data.max_input_seq_length=512", "is 512, and policy.max_total_sequence_length, which bounds a pair here, is 4096"),
    ("data.train.system_prompt_file=s.txt", "puts a system message before every prompt"),
    (
        "data.default.prompt_file=t.txt",
        "is 't.txt', which names a template for the first message of every prompt and is not built",
    ),
    ("policy.optimizer.momentum=0.9", '"policy.optimizer.momentum" is no known key'),
    (f"{MEGATRON}.optimizer.sgd_momentun=0.9", "is no known key"),
]


@pytest.mark.parametrize(("override", "words"), REFUSALS)
def test_what_would_change_the_result_is_refused(override: str, words: str):
    with pytest.raises(UserError) as caught:
        load_run(None, [override])
    assert str(caught.value).startswith(f"{override}: ")
    assert words in str(caught.value)


def test_a_bad_coefficient_or_kind_of_the_routers_loss_is_refused():
    for override, words in (
        ("policy.hf_config_overrides={router_aux_loss_coef: -0.01}", "is -0.01 where at least 0 is due"),
        ("policy.hf_config_overrides={router_aux_loss_coef: much}", "is 'much' where a number is due"),
        (
            f"{MEGATRON}.moe_router_load_balancing_type=[aux_loss,seq_aux_loss]",
            "is ['aux_loss', 'seq_aux_loss'] where 'none' or",
        ),
    ):
        with pytest.raises(UserError) as caught:
            load_run(None, [override])
        assert words in str(caught.value)


def test_a_section_that_would_say_nothing_of_the_training_is_refused():
    for overrides, words in (
        (
            ["policy.optimizer.lr=1e-6", f"{MEGATRON}.optimizer.lr=1e-5"],
            "would say nothing: policy.optimizer counts: set it there",
        ),
        (
            [
                f"{MEGATRON}.enabled=true",
                f"{MEGATRON}.optimizer.weight_decay=0.1",
                f"{MEGATRON}.scheduler.end_weight_decay=0.2",
            ],
            "is 0.2, and policy.megatron_cfg.optimizer.weight_decay is 0.1: set them to one value",
        ),
    ):
        with pytest.raises(UserError) as caught:
            load_run(None, overrides)
        assert words in str(caught.value)


def test_every_refused_value_is_refused_and_every_harmless_one_is_not():
    for refused in REFUSED:
        beside = ["data.validation.split=validation"]  # what makes it one set, and system_prompt_file no name of a set
        for value in refused.harmless:
            load_run(None, [*beside, f"{refused.key}={'null' if value is None else value}"])
        with pytest.raises(UserError, match=r"not built|cannot be used"):
            load_run(None, [*beside, f"{refused.key}=7"])


def test_a_set_whose_key_is_null_hides_nothing_of_another():
    sets = "data.validation={a: {path: a.jsonl, system_prompt_file: s.txt}, b: {path: b.jsonl, system_prompt_file: null}}"
    with pytest.raises(UserError, match="puts a system message before every prompt"):
        load_run(None, [sets])


def test_router_keys_that_are_refused_for_a_model_with_experts():
    kind, coeff = f"{MEGATRON}.moe_router_load_balancing_type", f"{MEGATRON}.moe_aux_loss_coeff"
    for overrides, own_coeff, words in (
        ([f"{kind}=sinkhorn"], 0.001, "is sinkhorn, and the policy has experts"),
        ([], None, "is not set, and the policy does not say its own: 0 trains without"),
        ([], 0.001, None),
        ([f"{coeff}=0"], None, None),
        ([f"{kind}=none"], None, None),
    ):
        refusal = router_refusal(load_run(None, overrides)[0], own_coeff)
        assert (refusal is None) == (words is None), overrides
        assert words is None or words in str(refusal)


def test_a_coefficient_without_its_loss_is_said():
    kind, coeff = f"{MEGATRON}.moe_router_load_balancing_type", f"{MEGATRON}.moe_aux_loss_coeff"
    for value, is_said in ((0.01, True), (0, False)):
        warnings = load_run(None, [f"{kind}=none", f"{coeff}={value}"])[1]
        assert any(coeff in str(warning) and "weighs an auxiliary loss" in str(warning) for warning in warnings) == is_said


def test_the_two_names_of_the_coefficient_must_agree():
    with pytest.raises(UserError, match=r"moe_aux_loss_coeff.*is 0.1 and, under another name, 0.01"):
        load_run(None, [f"{MEGATRON}.moe_aux_loss_coeff=0.1", "policy.hf_config_overrides={router_aux_loss_coef: 0.01}"])


def test_a_key_of_a_renamed_section_is_found_where_it_stands(tmp_path: Path):
    path = tmp_path / "theirs.yaml"
    path.write_text("policy:\n  automodel_cfg:\n    cpu_offload: true\n    tensor_parallel_size: many\n")
    found = [
        str(key)
        for key in idle_keys(path, [f"{MEGATRON}.tensor_model_parallel_size=1", "policy.automodel_cfg.tensor_parallel_size=1"])
    ]
    assert any(line.startswith(f'{path}:3: "policy.dtensor_cfg.cpu_offload" has no meaning here') for line in found)
    with pytest.raises(UserError) as caught:
        load_run(path, [])
    assert str(caught.value).startswith(f"{path}:4: ")


def test_of_two_names_of_a_section_that_of_the_later_file_wins(tmp_path: Path):
    """As where a recipe was written for a newer dpo.yaml than that which it is given."""
    for below, above in (("dtensor_cfg", "automodel_cfg"), ("automodel_cfg", "dtensor_cfg")):
        base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
        divisor = f"make_sequence_length_divisible_by: '${{policy.{below}.tensor_parallel_size}}'"
        base.write_text(f"policy: {{{below}: {{tensor_parallel_size: 2, expert_parallel_size: 4}}, {divisor}}}\n")
        child.write_text(f"defaults: base.yaml\npolicy: {{{above}: {{tensor_parallel_size: 8}}}}\n")
        run, _ = load_run(child, [])
        megatron = run.policy.megatron_cfg
        assert (megatron.tensor_model_parallel_size, megatron.expert_model_parallel_size) == (8, 4)
        child.write_text(f"policy: {{{above}: {{tensor_parallel_size: 8}}, {below}: {{tensor_parallel_size: 4}}}}\n")
        with pytest.raises(UserError, match="under another name"):
            load_run(child, [])


def test_no_key_is_both_ours_and_theirs():
    assert set(NO_MEANING) & set(known_keys()) == set()


def test_the_table_in_the_readme_is_fresh():
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert with_table(text) == text
    for key in ("`val_micro_batch_size`", "`policy.megatron_cfg.layernorm_epsilon`", "`reference_policy_kl_penalty`"):
        assert key in text


def test_nemo_run_is_the_job_folder():
    overrides = ["checkpointing.checkpoint_dir=/nemo_run/dpo", "logger.log_dir=/nemo_run", "policy.model_name=/nemo_runs/p"]
    run = with_job_folder(load_run(None, overrides)[0], Path("jobs/one"))
    found = (run.checkpointing.checkpoint_dir, run.logger.log_dir, run.policy.model_name)
    assert found == ("jobs/one/dpo", "jobs/one", "/nemo_runs/p")


def test_defaults_of_a_config_of_ones_own_are_the_shipped_ones(tmp_path: Path):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "default.yaml").write_text("dpo: {seed: 1, val_period: 3}\n")
    for number, (name, text) in enumerate(
        [("a.yaml", "defaults: default"), ("b.yaml", "defaults: default.yaml"), ("default.yaml", "defaults: [default]")], 5
    ):
        (tmp_path / name).write_text(f"{text}\ndpo: {{seed: {number}}}\n")
        dpo = load_run(tmp_path / name, [], shipped=shipped)[0].dpo
        assert (dpo.seed, dpo.val_period) == (number, 3)
    dpo = load_run(tmp_path / "a.yaml", [], shipped=shipped)[0].dpo
    assert (dpo.seed, dpo.val_period) == (5, 3)  # through the one beside it, which is nearer
    (tmp_path / "c.yaml").write_text("defaults: other\n")
    with pytest.raises(UserError, match="names other, and there is no such file"):
        load_run(tmp_path / "c.yaml", [], shipped=shipped)
