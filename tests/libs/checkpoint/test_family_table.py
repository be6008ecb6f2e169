"""The tables of supported and refused models: whole, without contradictions, and those of the README."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.checkpoint.families import FAMILIES, config, known
from nemotron_dpo.checkpoint.families.wrappers import WRAPPERS
from nemotron_dpo.checkpoint.family_table import with_tables
from nemotron_dpo.errors import UserError

README = Path(__file__).resolve().parents[3] / "libs" / "nemotron_dpo" / "checkpoint" / "README.md"
# the text models, by model_type, that Megatron-Bridge, ms-swift (by their names there) and LLaMA-Factory list
ELSEWHERE = """bailing_hybrid bailing_moe bailing_moe_v2 baichuan bloom chatglm cohere dbrx deepseek deepseek_v2 deepseek_v3
deepseek_v32 deepseek_v4 dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 gemma gemma2 gemma3 gemma3_text glm glm4
glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_oss granite granitemoe granitemoehybrid hunyuan_v1_dense hy_v3 internlm2 internlm3
kimi_k2 kimi_k3 lfm2 llama llama4 mamba mimo mimo_v2_flash minicpm minicpm3 minimax minimax_m2 ministral3 mistral mixtral nemotron
nemotron-nas nemotron_h olmo2 olmoe phi phi3 phimoe qwen qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_moe qwen3_next seed_oss
skywork starcoder2 step3p5 telechat xverse youtu yuan"""


def test_the_readme_has_the_tables_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    remedy = "python -m nemotron_dpo.checkpoint.family_table libs/nemotron_dpo/checkpoint/README.md"
    assert with_tables(text) == text, remedy


def test_each_family_is_named_once() -> None:
    assert known.MODELS.keys() == FAMILIES.keys()
    assert known.AROUND.keys() == WRAPPERS.keys()
    assert not known.REASONS.keys() & (FAMILIES.keys() | WRAPPERS.keys())
    named = " ".join(known._REASONS.values()).split()
    assert len(named) == len(set(named))


def test_what_is_aligned_elsewhere_is_supported_or_refused_with_its_reason() -> None:
    for model_type in set(ELSEWHERE.split()) - FAMILIES.keys() - WRAPPERS.keys():
        with pytest.raises(UserError, match=f"model_type '{model_type}' is not supported: .* .* ") as caught:
            config.from_config({"model_type": model_type}, Path("config.json"))
        assert "llama, mistral, " not in str(caught.value), model_type
