"""The objective that settings come to, what is refused of them and how TRL's names are read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.config import DpoConfig, dump_run, identity, load_run, objective_of
from nemotron_dpo.config.idle import idle_settings
from nemotron_dpo.config.objective import MEANT, Part
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.modified import modifiers
from nemotron_dpo.objective.registry import entries, find

MPO = "dpo.preference_loss={dpo: 0.8, bco_pair: 0.2, sft: 1.0}"


def _dpo(*overrides: str) -> DpoConfig:
    return load_run(None, overrides)[0].dpo


def _error(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_run(None, overrides)
    return str(caught.value)


# overrides -> whether a reference is needed, whether responses are compared, the terms
SETTINGS = [
    ([], True, True, ["preference"]),
    (["dpo.preference_loss=null"], True, True, ["preference"]),
    (["dpo.sft_loss_weight=0.1"], True, True, ["preference", "sft"]),
    (["dpo.preference_loss_weight=1e-9"], True, True, ["preference"]),
    (["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"], False, False, ["sft"]),
    (["dpo.preference_loss=sft"], False, False, ["sft"]),
    (["dpo.preference_loss=simpo"], False, True, ["preference"]),
    (["dpo.preference_loss=simpo", "dpo.sft_loss_weight=0.1"], False, True, ["preference", "sft"]),
    (["dpo.preference_loss=orpo"], False, True, ["preference", "nll"]),
    (["dpo.preference_loss=sigmoid_norm"], True, True, ["preference"]),
    ([MPO], True, True, ["dpo", "bco_pair", "sft"]),
    (["dpo.preference_loss={dpo: 0.5}"], True, True, ["dpo"]),
    (["dpo.preference_loss={sigmoid: 0.8, bco_pair: 0.2}", "dpo.sft_loss_weight=1"], True, True, ["dpo", "bco_pair", "sft"]),
    (["dpo.preference_loss={simpo: 1, orpo: 1}"], False, True, ["simpo", "orpo", "orpo_nll"]),
    ([MPO, "dpo.preference_loss.sft=0.5"], True, True, ["dpo", "bco_pair", "sft"]),
    ([MPO, "dpo.preference_loss={ipo: 1}"], True, True, ["ipo"]),  # a later mixture replaces the one below
    ([MPO, "dpo.preference_loss=ipo"], True, True, ["preference"]),
]


def test_settings_decide_what_is_needed():
    for overrides, reference, rejected, terms in SETTINGS:
        objective = objective_of(_dpo(*overrides))
        assert (objective.needs.reference, objective.needs.rejected) == (reference, rejected), overrides
        assert list(objective.terms) == terms, overrides


def _pairs() -> Any:
    """One pair: r_c = 3, r_r = 1 over 2 and 1 tokens, l_c = -4, l_r = -9."""
    import torch

    from nemotron_dpo.objective.inputs import LossInputs, Responses

    chosen = Responses(torch.tensor([-4.0]), torch.tensor([2.0]), torch.tensor([3.0]))
    return LossInputs(chosen, Responses(torch.tensor([-9.0]), torch.tensor([1.0]), torch.tensor([1.0])))


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# overrides -> the loss of `_pairs`, beta = 0.3
LOSSES = [
    ([], _softplus(-0.6)),  # margin 2
    (["dpo.preference_average_log_probs=true"], _softplus(-0.15)),  # 3/2 - 1
    (["dpo.preference_loss_weight=2", "dpo.sft_loss_weight=0.5"], 2 * _softplus(-0.6) + 0.5 * 4),
    (["dpo.preference_loss_weight=2", "dpo.sft_loss_weight=0.5", "dpo.sft_average_log_probs=true"], 2 * _softplus(-0.6) + 1),
    (["dpo.label_smoothing=0.1"], 0.9 * _softplus(-0.6) + 0.1 * _softplus(0.6)),
    (["dpo.preference_loss=ipo"], (0.5 - 1 / 0.6) ** 2),
    (["dpo.preference_loss=ipo", "dpo.preference_average_log_probs=false"], (2 - 1 / 0.6) ** 2),
    (["dpo.preference_loss=simpo", "dpo.gamma=0.4"], _softplus(-(0.3 * (-2 + 9) - 0.4))),
    (["dpo.preference_loss=hinge", "dpo.preference_loss_weight=3"], 3 * (1 - 0.6)),
    ([MPO], 0.8 * _softplus(-0.6) + 0.2 * (_softplus(-0.9) + _softplus(0.3)) + 4),
    (
        [MPO, "dpo.label_smoothing=0.1"],
        0.8 * (0.9 * _softplus(-0.6) + 0.1 * _softplus(0.6)) + 0.2 * (_softplus(-0.9) + _softplus(0.3)) + 4,
    ),
    (["dpo.loss_type=[sigmoid, sft]", "dpo.loss_weights=[1.0, 0.5]"], _softplus(-0.6) + 0.5 * 4 / 2),
    (["dpo.loss_type=[sigmoid, hinge]"], _softplus(-0.6) + 0.4),
    (["dpo.rpo_alpha=0.5"], _softplus(-0.6) + 0.5 * 4 / 2),
    (["dpo.f_divergence_type=forward_kl"], _softplus(-0.3 * (math.exp(-1) - math.exp(-3)))),  # 1 - e^-r in place of r
    (
        ["dpo={f_divergence_type: alpha_divergence, f_alpha_divergence_coef: 0.5}"],
        _softplus(-0.3 * 2 * (math.exp(-0.5) - math.exp(-1.5))),
    ),
    (["dpo.length_alpha=0.1"], _softplus(-(0.6 + 0.1 * (2 - 1)))),
    ([MPO, "dpo.length_alpha=0"], 0.8 * _softplus(-0.6) + 0.2 * (_softplus(-0.9) + _softplus(0.3)) + 4),
]


def test_settings_reach_the_loss():
    for overrides, expected in LOSSES:
        loss = objective_of(_dpo("dpo.reference_policy_kl_penalty=0.3", *overrides)).losses(_pairs()).loss
        assert loss.tolist() == pytest.approx([expected], abs=1e-6), overrides


REFUSED = [
    # what users of others reported: TRL#1035 and #2544, Axolotl#2133 and #3565, LLaMA-Factory#8725
    (["dpo.preference_loss=ipo", "dpo.label_smoothing=0.1"], "is 0.1, which is not used by ipo: what it uses is dpo.reference_policy"),
    (["dpo.loss_type='sigmoid,bco_pair'"], "is 'sigmoid,bco_pair', no objective: several are a mapping: {NAME: WEIGHT, NAME: WEIGHT}"),
    (["dpo.loss_type=[exo_pair]", "dpo.label_smoothing=0.0"], "is 0.0: must be more than 0 with dpo.preference_loss=exo_pair"),
    (["dpo.loss_type=[sigmoid, sft]", "dpo.loss_weights=[1.0, 0.5]", "dpo.rpo_alpha=0.5"], "has sft already"),
    (["dpo.loss_type=kto_pair"], "is 'kto_pair', no objective here: TRL has it no more; bco_pair is built alike"),
    (["dpo.preference_loss=apo_zero", "dpo.f_divergence=js_divergence"], '"dpo.f_divergence" has no meaning with apo_zero: it goes with'),
    ([MPO, "dpo.f_divergence=forward_kl"], "has no meaning with bco_pair: it goes with"),
    (["dpo.f_divergence=js"], "is 'js': there are reverse_kl, forward_kl, js_divergence, alpha_divergence"),
    (["dpo.f_alpha=0.3"], '"dpo.f_alpha" belongs to f_divergence=alpha_divergence, which is reverse_kl'),
    (["dpo.ld_alpha=1.5"], '"dpo.ld_alpha" is 1.5: must be at most 1'),
    (["dpo.preference_loss=simpo", "dpo.ld_alpha=0.5"], "has no meaning with simpo: it goes with"),
    (["dpo.preference_loss=sft", "dpo.label_smoothing=0.1"], "is 0.1, which is not used by sft: what it uses is dpo.sft_average_log_probs"),
    # overrides, of which the last is named; what is said
    (["dpo.preference_loss=IPO"], "\"dpo.preference_loss\" is 'IPO', no objective: did you mean ipo? there are alphapo, "),
    (["dpo.preference_loss=simp0"], "did you mean simpo?"),
    (["dpo.preference_loss=cdpo"], "is 'cdpo', no objective here: it is dpo with dpo.label_smoothing"),
    (["dpo.preference_loss=kto-pair"], "bco_pair is built alike"),
    (["dpo.preference_loss=mine.py:Margin"], "code is never taken from a config, which may be a stranger's: give it as dpo-train --objective"),
    (["dpo.preference_loss={dpo: 1, mine.py:Margin: 1}"], "code is never taken from a config"),
    (["dpo.preference_loss=[dpo, sft]"], "is a list: map each objective to its weight: {dpo: 0.8, sft: 1.0}"),
    (["dpo.preference_loss={}"], "is an empty mapping"),
    (["dpo.preference_loss={dpo: 0}"], "gives dpo the weight 0 where more than 0 is due: leave it out"),
    (["dpo.preference_loss={dpo: -0.5, sft: 1}"], "gives dpo the weight -0.5 where more than 0 is due"),
    (["dpo.preference_loss={dpo: .nan}"], '"dpo.preference_loss.dpo" is nan where a finite number is due'),
    (["dpo.preference_loss={dpo: much}"], "\"dpo.preference_loss.dpo\" is 'much' where a number is due"),
    (["dpo.preference_loss={dpo: null}"], '"dpo.preference_loss.dpo" is null where a number is due'),
    (["dpo.preference_loss={dpo: 0.8, sigmoid: 0.2}"], "has dpo twice: dpo, sigmoid: give it one weight"),
    (["dpo.preference_loss={aot: 0.8, aot_pair: 0.2}"], "has aot_paired twice: aot, aot_pair"),
    (["dpo.preference_loss=dpo", "dpo.preference_loss.sft=0.5"], "leads into a mixture, and none is below: give all of it: dpo.preference_loss={"),
    (["dpo.preference_loss.sft=0.5"], "leads into a mixture, and none is below"),
    ([MPO, "dpo.sft_loss_weight=1"], '"dpo.sft_loss_weight" is 1, and dpo.preference_loss has sft already: leave it 0'),
    (["dpo.preference_loss=sft", "dpo.sft_loss_weight=1"], "has sft already"),
    ([MPO, "dpo.preference_loss_weight=2"], "is 2, and dpo.preference_loss has a weight for each of its objectives: leave it 1"),
    ([MPO, "dpo.preference_loss_weight=0"], "is 0, and dpo.preference_loss has a weight for each"),
    (["dpo.gt_reward_scale=2.0"], "is 2.0, which is not used by dpo: what it uses is dpo.reference_policy_kl_penalty, dpo.preference_average"),
    (["dpo.gt_reward_scale=2.0"], "dpo.gt_reward_scale is for rpo_bwd_kl, rpo_fwd_kl, rpo_sq"),
    (["dpo.preference_loss=bco_pair", "dpo.label_smoothing=0.1"], "is 0.1, which is not used by bco_pair: what it uses is dpo.reference_policy_kl_penalty"),
    (["dpo.preference_loss={bco_pair: 1, sft: 1}", "dpo.label_smoothing=0.1"], "which is not used by bco_pair and sft"),
    (["dpo.preference_loss=simpo", "dpo.preference_average_log_probs=true"], "is true, which is not used by simpo"),
    (["dpo.preference_loss=orpo", "dpo.reference_policy_kl_penalty=0.1"], "is 0.1, which is not used by orpo: what it uses is dpo.orpo_lambda"),
    (["dpo.label_smoothing=0.5"], '"dpo.label_smoothing" is 0.5: must be less than 0.5 with dpo.preference_loss=dpo'),
    (["dpo.preference_loss=exo_pair", "dpo.label_smoothing=0"], "is 0.0: must be more than 0 with dpo.preference_loss=exo_pair"),
    (["dpo.preference_loss=ipo", "dpo.reference_policy_kl_penalty=0"], "is 0.0: must be more than 0 with dpo.preference_loss=ipo"),
    (["dpo.label_smoothing=.nan"], "is nan where a finite number is due"),
    (["dpo.preference_loss=odpo", "dpo.odpo_gap=square"], "is 'square': there are log, identity with dpo.preference_loss=odpo"),
    (["dpo.own_objective=x"], '"dpo.own_objective" is no known key'),
    (["dpo.loss_weights=[1.0]"], '"dpo.loss_weights" belongs to dpo.loss_type, which is not set'),
    (["dpo.loss_type=[sigmoid, sft]", "dpo.loss_weights=[1.0]"], "is [1.0], and dpo.loss_type has 2: sigmoid, sft: give each objective its weight"),
    (["dpo.loss_type=[]"], "is an empty list"),
    (["dpo.loss_type=[sft, sft]"], "names an objective twice: sft, sft"),
    (["dpo.loss_type=[kto_pair]"], "bco_pair is built alike"),
    (["dpo={beta: 0.1, reference_policy_kl_penalty: 0.2}"], "is 0.1, and dpo.reference_policy_kl_penalty, its name here, is 0.2: set one of them"),
    (["dpo={loss_type: [ipo], preference_loss: dpo}"], "is set, and so is dpo.preference_loss, its name here: set one of them"),
    (["dpo.loss_type={dpo: 1.0}"], "is a mapping: that is dpo.preference_loss; TRL has lists"),
    (["dpo={rpo_alpha: 1.0, sft_loss_weight: 1.0}"], "is set, and so is dpo.sft_loss_weight, its name here"),
    (["dpo.rpo_alpha=1.0", "dpo.loss_type=[sigmoid, sft]"], "has sft already"),
]  # fmt: skip


def test_what_cannot_be_meant_is_one_line():
    for overrides, words in REFUSED:
        message = _error(*overrides)
        assert words in message, message
        assert message.startswith(f"{overrides[-1]}: ") or "has sft already" in words, message


def test_settings_that_ask_for_nothing_are_counted_and_said():
    for overrides, key, reason in (
        (["dpo.f_alpha_divergence_coef=0.5"], "f_alpha", "is a setting of alpha_divergence, and asks for nothing"),
        (["dpo.preference_loss=apo_zero", "dpo.f_divergence=reverse_kl"], "f_divergence", "of other objectives than apo_zero"),
        (["dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1", "dpo.ld_alpha=0.5"], "ld_alpha", "that has no weight"),
        (["dpo.gt_reward_scale=1"], "gt_reward_scale", "is a setting of other objectives than dpo, and asks for nothing"),
        (
            ["dpo.preference_loss=bco_pair", "dpo.label_smoothing=0"],
            "label_smoothing",
            "other objectives than bco_pair, and asks",
        ),
        (["dpo.preference_loss=orpo", "dpo.preference_average_log_probs=false"], "preference_average_log_probs", "than orpo"),
        (
            ["dpo.preference_loss=orpo", "dpo.sft_average_log_probs=true"],
            "sft_average_log_probs",
            "has no weight",
        ),
        (
            ["dpo.preference_loss=ipo", "dpo.preference_loss_weight=0", "dpo.sft_loss_weight=1"],
            "preference_loss",
            "has no weight",
        ),
    ):
        (warning,) = load_run(None, overrides)[1]
        assert f'"dpo.{key}" has no meaning here: it ' in warning
        assert reason in warning


REMARKS = [
    (["dpo.loss_type=aot"], "has aot, which means aot_paired, as in TRL"),
    (["dpo.preference_loss={dpo: 1, aot_pair: 1}"], "has aot_pair, which means aot_paired; TRL before 0.29 had"),
    (["dpo.preference_loss=simpo"], "is 0.05, the default, and with simpo it is usually 2 to 10"),
    (["dpo.preference_loss={dpo: 1, dpo_norm: 1}"], "is 0.05, the default, and with dpo_norm it is usually 2 to 10"),
    (["dpo.reference_policy_kl_penalty=0"], "is 0: the preference loss is ln 2 whatever the policy does, and moves nothing"),
    (["dpo.preference_loss=hinge", "dpo.reference_policy_kl_penalty=0"], "is 0: the preference loss is 1 whatever"),
    (
        ["dpo.preference_loss=simpo", "dpo.reference_policy_kl_penalty=0"],
        "is 0: it takes the difference of the two responses out",
    ),
    (
        ["dpo.preference_loss=ipo", "dpo.preference_average_log_probs=false"],
        "is false: ipo then sums log-ratios over tokens, and",
    ),
    (
        ["dpo.rpo_alpha=0.1"],
        '"dpo.rpo_alpha" is the weight of sft: a mean over the tokens of each response here, and a mean over the',
    ),
    (
        ["dpo.loss_type=[sigmoid, sft]", "dpo.sft_average_log_probs=false"],
        '"dpo.loss_type" has sft: a sum over the tokens of each',
    ),
]


def test_what_asks_for_nothing_is_not_remarked_on():
    for overrides in (
        ["dpo.rpo_alpha=0.5", "dpo.sft_loss_weight=1"],  # the later one stands in place of the other
        ["dpo.loss_type=[sigmoid, sft]", "dpo.preference_loss=dpo"],
        ["dpo.rpo_alpha=0"],
        ["dpo.preference_loss=aot_paired"],
        ["dpo.preference_loss=simpo", "dpo.beta=2"],
    ):
        assert load_run(None, overrides)[1] == []


def test_what_few_will_mean_is_remarked_on():
    for overrides, words in REMARKS:
        (warning,) = load_run(None, overrides)[1]
        assert words in warning
    assert load_run(None, ["dpo.preference_loss=ipo"])[1] == []


def test_the_last_layer_counts_whatever_it_calls_a_key(tmp_path: Path):
    """In a file below stands our name and in the one above TRL's, or the other way round."""
    (tmp_path / "ours.yaml").write_text("dpo: {preference_loss: {dpo: 0.5, sft: 0.5}, reference_policy_kl_penalty: 0.2}\n")
    (tmp_path / "trl.yaml").write_text(
        "dpo: {loss_type: [sigmoid, bco_pair], loss_weights: [0.8, 0.2], beta: 0.1, rpo_alpha: null}\n"
    )
    for file, overrides, loss, beta in (
        ("ours", ["dpo.loss_type=hinge", "dpo.beta=0.3"], "hinge", 0.3),
        ("ours", ["dpo.beta=0.3", "dpo.reference_policy_kl_penalty=0.4"], {"dpo": 0.5, "sft": 0.5}, 0.4),
        ("trl", [], {"sigmoid": 0.8, "bco_pair": 0.2}, 0.1),
        ("trl", ["dpo.loss_weights=[1, 2]"], {"sigmoid": 1.0, "bco_pair": 2.0}, 0.1),
        ("trl", ["dpo.preference_loss=dpo"], "dpo", 0.1),
        ("trl", ["dpo.preference_loss={ipo: 1}", "dpo.reference_policy_kl_penalty=0.5"], {"ipo": 1.0}, 0.5),
    ):
        dpo = load_run(tmp_path / f"{file}.yaml", overrides)[0].dpo
        assert (dpo.preference_loss, dpo.reference_policy_kl_penalty) == (loss, beta), (file, overrides)
    (tmp_path / "trl.yaml").write_text("dpo:\n  loss_type: [sigmoid]\n  beta: -1\n")
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "trl.yaml", [])
    assert str(caught.value).startswith(f'{tmp_path}/trl.yaml:3: "dpo.reference_policy_kl_penalty" is -1.0')


def test_every_setting_of_an_objective_is_a_key_and_the_other_way_round():
    across = {item.name: item for one in modifiers().values() for item in dataclasses.fields(one.make)}  # type: ignore[arg-type] - a dataclass
    keys = {key for entry in entries().values() for key in Part(entry).settings} | across.keys()
    fields = {item.name: item for item in dataclasses.fields(DpoConfig)}
    assert keys <= set(fields)
    assert {name for name, item in fields.items() if "is_setting" in item.metadata} <= keys
    for entry in entries().values():
        for key, item in {**Part(entry).settings, **across}.items():
            assert str(fields[key].type).removesuffix(" | None") == str(item.type).removesuffix(" | None"), (entry.name, key)


def test_names_of_elsewhere_lead_to_what_there_is():
    for name, remedy in MEANT.items():
        assert name not in {known for entry in entries().values() for known in (entry.name, *entry.aliases)}
        words = remedy.replace("{", "").replace(":", "").replace(",", "").split()
        named = [word for word in words if word in entries()]
        assert named, remedy
        keys = [word.removeprefix("dpo.").partition("=")[0] for word in words if word.startswith("dpo.")]
        assert set(keys) <= {item.name for item in dataclasses.fields(DpoConfig)}
    assert find("aot").name == "aot_paired"


@pytest.mark.slow
def test_identity_is_of_what_is_trained():
    """An alias and a default that is written out change nothing; everything else that the objective reads does."""

    def fixed(*overrides: str) -> dict[str, Any]:
        return identity(load_run(None, overrides)[0], has_routers=False)[0]

    before = {
        "dpo.preference_average_log_probs": False,
        "dpo.sft_average_log_probs": False,
        "dpo.reference_policy_kl_penalty": 0.05,
    }
    saying = {key: value for key, value in fixed().items() if key.startswith("dpo.") and value is not None}
    assert before.items() <= saying.items()  # all that runs said of their objective before others could be chosen
    assert set(saying) - set(before) == {"dpo.seed", "dpo.preference_loss_weight", "dpo.sft_loss_weight"}
    same = [
        (
            [],
            [
                "dpo.preference_loss=sigmoid",
                "dpo.label_smoothing=0",
                "dpo.ld_alpha=1",
                "dpo.preference_average_log_probs=false",
            ],
        ),
        (["dpo.preference_loss=ipo"], ["dpo.loss_type=ipo", "dpo.preference_average_log_probs=true"]),
        (
            [MPO],
            ["dpo.loss_type=[sigmoid, bco_pair, sft]", "dpo.loss_weights=[0.8, 0.2, 1.0]", "dpo.sft_average_log_probs=false"],
        ),
    ]
    for one, other in same:
        assert fixed(*one) == fixed(*other)
    others = [[], ["dpo.preference_loss=ipo"], [MPO], ["dpo.label_smoothing=0.1"], ["dpo.preference_loss={dpo: 1}"]]
    others += [["dpo.preference_loss=ipo", "dpo.preference_average_log_probs=false"], [MPO, "dpo.preference_loss.sft=0.5"]]
    others += [["dpo.preference_loss={bco_pair: 0.2, dpo: 0.8, sft: 1.0}"]]  # its rewards are those of bco_pair
    others += [["dpo.ld_alpha=0.5"], ["dpo.f_divergence=forward_kl"]]
    others += [["dpo.preference_loss=simpo"], ["dpo.preference_loss=simpo", "dpo.gamma=1"], ["dpo.beta=0.1"]]
    assert all(fixed(*one) != fixed(*other) for n, one in enumerate(others) for other in others[:n])


def test_settings_of_routers_are_no_part_of_a_run_without_experts():
    """Runs that were saved before there were such settings had none of them: they go on where nothing of them is asked for."""
    section = "policy.megatron_cfg."
    named = ("freeze_moe_router", "moe_router_load_balancing_type", "moe_aux_loss_coeff")
    table = [
        (False, [], [None, None, None]),
        (False, ["freeze_moe_router=true", "moe_aux_loss_coeff=0.1"], [None, None, None]),
        (True, ["moe_router_load_balancing_type=none"], [None, None, None]),
        (True, [], [None, "aux_loss", None]),
        (True, ["freeze_moe_router=true", "moe_aux_loss_coeff=0"], [True, "aux_loss", 0.0]),
    ]
    for has_routers, overrides, expected in table:
        run = load_run(None, [f"{section}{override}" for override in overrides])[0]
        fixed = identity(run, has_routers=has_routers)[0]
        assert [fixed[section + name] for name in named] == expected
        assert fixed[f"{section}moe_router_bias_update_rate"] is None


def test_how_biases_move_is_a_part_of_a_run_of_which_some_move():
    key = "policy.megatron_cfg.moe_router_bias_update_rate"
    peft = "policy.megatron_cfg.peft.enabled=true"
    for overrides, expected in (([], 1e-3), ([f"{key}=0"], None), ([f"{key}=0.01"], 0.01), ([peft], None)):
        run = load_run(None, overrides)[0]
        assert identity(run, has_routers=True, has_biases=True)[0][key] == expected
    assert idle_settings(load_run(None, [peft, f"{key}=0.01"])[0])[key].startswith("moves biases of the base")
    assert key not in idle_settings(load_run(None, [peft])[0])


def test_a_mixture_is_read_back_as_it_was(tmp_path: Path):
    for overrides in ([MPO], ["dpo.preference_loss=simpo", "dpo.gamma=1"]):
        run = load_run(None, overrides)[0]
        (tmp_path / "run.yaml").write_text(dump_run(run))
        assert load_run(tmp_path / "run.yaml", [])[0] == run
