"""LoRA and activation recompute as NeMo-RL's configs spell them."""

from __future__ import annotations

import pytest

from nemotron_dpo.config import dump_run, load_run
from nemotron_dpo.config.schema import PeftConfig
from nemotron_dpo.errors import UserError

# the section of NeMo-RL's guide, and that of its dpo.yaml
PEFT = (
    "{enabled: true, target_modules: [], exclude_modules: [], dim: 16, alpha: 32, dropout: 0.0, dropout_position: pre, "
    "lora_A_init_method: xavier, lora_B_init_method: zero, a2a_experimental: false, lora_dtype: None}"
)
LORA_CFG = (
    "{enabled: true, target_modules: [], exclude_modules: [], match_all_linear: true, dim: 8, alpha: 32, dropout: 0.0, "
    "dropout_position: post, lora_A_init: xavier, use_triton: true}"
)


@pytest.mark.parametrize(
    ("override", "expected", "idle"),
    [
        (f"policy.megatron_cfg.peft={PEFT}", PeftConfig(True, dim=16), "policy.megatron_cfg.peft.a2a_experimental"),
        (
            f"policy.dtensor_cfg.lora_cfg={LORA_CFG}",
            PeftConfig(True, dim=8, dropout_position="post"),
            "policy.dtensor_cfg.lora_cfg",
        ),
        ("policy.dtensor_cfg.lora_cfg.enabled=true", PeftConfig(True, dim=8, dropout_position="post"), None),
        ("policy.dtensor_cfg={enabled: false, lora_cfg: {enabled: true}}", PeftConfig(), "policy.dtensor_cfg"),
        ("policy.megatron_cfg={enabled: false, peft: {enabled: true}}", PeftConfig(), "policy.megatron_cfg"),
    ],
)
def test_either_backends_section(override: str, expected: PeftConfig, idle: str | None) -> None:
    run, warnings = load_run(None, [override])
    assert run.policy.megatron_cfg.peft == expected
    assert (idle in " ".join(warnings)) if idle else not warnings


def test_the_written_config_reads_back_equal(tmp_path) -> None:
    run, _ = load_run(None, ["policy.megatron_cfg.peft={enabled: true, target_modules: [linear_qkv]}"])
    (tmp_path / "run.yaml").write_text(dump_run(run))
    again, warnings = load_run(tmp_path / "run.yaml", [])
    assert again == run
    assert not warnings


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("policy.megatron_cfg.peft={enabled: true, dropout: 0.1}", 'peft.dropout" is 0.1, which is not built: leave it 0.0'),
        (
            "policy.megatron_cfg.peft={enabled: true, target_modules: [linear_qkv], exclude_modules: [linear_fc1]}",
            '"policy.megatron_cfg.peft.exclude_modules" are named beside target_modules',
        ),
        ("policy.megatron_cfg.peft.lora_B_init_method=xavier", "peft.lora_B_init_method\" is 'xavier' where 'zero' is due"),
        ("policy.megatron_cfg.peft.rank=4", '"policy.megatron_cfg.peft.rank" is no known key'),
        (
            "policy.dtensor_cfg.lora_cfg={enabled: true, match_all_linear: false, target_modules: [q_proj]}",
            '"policy.dtensor_cfg.lora_cfg.target_modules" names layers of another backend',
        ),
        (
            "policy.dtensor_cfg.lora_cfg={enabled: true, match_all_linear: false}",
            '"policy.dtensor_cfg.lora_cfg.match_all_linear" is false and no layer is named',
        ),
        ("policy.megatron_cfg.recompute_modules=[attention]", "\"policy.megatron_cfg.recompute_modules\" is 'attention' where"),
    ],
)
def test_refused(override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_run(None, [override])
    assert line in str(caught.value)


RECOMPUTE = "policy.megatron_cfg={activation_checkpointing: %s, recompute_granularity: %s, recompute_%s}"


@pytest.mark.parametrize(
    ("on", "granularity", "other", "idle"),
    [
        ("true", "selective", "modules: [core_attn, mlp]", []),
        ("true", "full", "method: block", []),
        ("true", "full", "modules: [mlp]", ["recompute_modules"]),
        ("true", "selective", "num_layers: 2", ["recompute_num_layers"]),
        ("false", "selective", "modules: [mlp]", ["recompute_granularity", "recompute_modules"]),
    ],
)
def test_recompute_keys_without_effect_are_named(on: str, granularity: str, other: str, idle: list[str]) -> None:
    _, warnings = load_run(None, [RECOMPUTE % (on, granularity, other)])
    assert [name for name in PARTS if f"megatron_cfg.{name}" in " ".join(warnings)] == idle


PARTS = ["recompute_granularity", "recompute_modules", "recompute_method", "recompute_num_layers"]
