"""Names, settings and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nemotron_dpo.objective import registry
from nemotron_dpo.objective.settings import SettingError


def test_names_and_aliases() -> None:
    for name, own in (("sigmoid", "dpo"), ("sigmoid_norm", "dpo_norm"), ("aot", "aot_paired"), ("aot_pair", "aot_paired")):
        assert registry.find(name) is registry.entries()[own]
    assert set(registry.entries()) == {
        "alphapo", "aot_paired", "aot_unpaired", "apo_down", "apo_zero", "bco", "bco_pair", "beta_dpo", "cal_dpo", "chi_po", "cpo",
        "discopop", "dpo", "dpo_norm", "dpop", "exo_pair", "hinge", "ipo", "nca_pair", "odpo", "orpo", "robust", "rpo_bwd_kl",
        "rpo_fwd_kl", "rpo_sq", "sft", "simpo", "sppo_hard",
    }  # fmt: skip
    with pytest.raises(KeyError):
        registry.find("kto")


def test_an_entry_tells_what_people_ask() -> None:
    for entry in registry.entries().values():
        for text in (entry.formula, entry.source, entry.use):
            assert text
            assert text.isascii()
        assert not {"reward_mean", "batch_margin"} & set(entry.settings)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("robust", {"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing is 0.5: must be less than 0.5"),
        ("dpo", {"beta": 0.1, "label_smoothing": -0.1}, "label_smoothing is -0.1: must be at least 0"),
        ("exo_pair", {"beta": 0.1, "label_smoothing": 0.0}, "label_smoothing is 0.0: must be more than 0"),
        ("ipo", {"beta": 0.0}, "beta is 0.0: must be more than 0"),
        ("dpo", {"beta": float("nan")}, "beta is nan: must be finite"),
        ("discopop", {"beta": 0.1, "discopop_tau": 0.0}, "discopop_tau is 0.0: must be more than 0"),
        ("odpo", {"beta": 0.1, "odpo_gap": "square"}, "odpo_gap is 'square': there are log, identity"),
        (
            "hinge",
            {"beta": 0.1, "label_smoothing": 0.1},
            "label_smoothing means nothing to hinge, whose settings are beta, average",
        ),
        ("bco", {"beta": 0.1, "reward_mean": 1.0}, "reward_mean means nothing to bco, whose settings are beta"),
        (
            "aot",
            {"beta": 0.1, "average": True},
            "average means nothing to aot_paired, whose settings are beta, label_smoothing",
        ),
    ],
)
def test_a_setting_without_meaning_is_refused_by_name(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{re.escape(message)}$") as refused:
        registry.make(name, **values)
    assert refused.value.setting == message.split()[0]


def test_the_ends_of_ranges_are_in_them() -> None:
    registry.make("dpo", beta=0.0, label_smoothing=0.0)
    registry.make("robust", beta=0.1, label_smoothing=0.0)
    registry.make("alphapo", beta=0.1, alphapo_alpha=-1.0)
