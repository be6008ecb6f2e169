"""The shipped recipes of published objectives: what they set, and that their plans compile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nemotron_dpo.config import load_run, objective_names, objective_of
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile.dpo_missing import missing_inputs
from nemotron_dpo.steps.compile.dpo_plan import compile_plan

STEP = configs_root() / "rl" / "nemo_rl" / "dpo"
# recipe -> its objectives, whether a reference is scored, (beta, pairs a step, learning rate, weight decay) as published
RECIPES: dict[str, tuple[list[str], bool, tuple[float, ...]]] = {
    "simpo": (["simpo"], False, (2.5, 128, 1e-6, 0.0)),
    "orpo": (["orpo"], False, (0.05, 32, 5e-6, 0.0)),  # it has no beta
    "ipo": (["ipo"], True, (0.01, 128, 5e-7, 0.0)),
    "mpo": (["dpo", "bco_pair", "sft"], True, (0.1, 256, 5e-6, 0.05)),
    "tulu3": (["dpo_norm"], True, (5.0, 128, 5e-7, 0.0)),
}


def _parts(name: str) -> list[Any]:
    """The objectives that the recipe trains, without the names that they have in a mixture."""
    parts = objective_of(load_run(STEP / f"{name}.yaml", [])[0].dpo).parts  # type: ignore[attr-defined] - it is a WeightedSum
    return [(weight, getattr(one, "objective", one)) for weight, one in parts]


def test_recipes_are_as_published():
    for name, (names, reference, numbers) in RECIPES.items():
        run, warnings = load_run(STEP / f"{name}.yaml", [])
        policy, objective = run.policy, objective_of(run.dpo)
        found = (
            run.dpo.reference_policy_kl_penalty,
            policy.train_global_batch_size,
            policy.optimizer.lr,
            policy.optimizer.weight_decay,
        )
        assert (objective_names(run.dpo), objective.needs.reference, found) == (names, reference, numbers), name
        assert warnings == []
        comment = (STEP / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
        assert re.search(r"arXiv \d{4}\.\d{5}|https://", comment), name
    (weight, simpo), *rest = _parts("simpo")
    assert (weight, simpo.gamma, rest) == (1.0, 2.5 * 0.55, [])
    assert _parts("orpo")[0][1].orpo_lambda == 0.1
    assert _parts("ipo")[0][1].average is True
    assert [weight for weight, _ in _parts("mpo")] == [0.8, 0.2, 1.0]
    assert _parts("mpo")[2][1].average is True


def test_plans_of_recipes_score_where_a_reference_is_needed():
    for name, (names, reference, _) in RECIPES.items():
        run = load_run(STEP / f"{name}.yaml", ["data.train.path=rows.jsonl", "policy.model_name=org/model"])[0]
        plan = compile_plan(run, Path("job"), STEP)
        programs = [stage.program for stage in plan.stages]
        assert programs == ["preference-tokenize", *(["ref-logprobs"] if reference else []), "dpo-train", "ckpt-export"], name
        said = () if reference else (f"{names[0]}: no reference is needed, so no pairs are scored",)
        assert plan.notes == said
        suffix = "scored" if reference else "pairs"
        assert f"job/train.{suffix}.arrow" in plan.stages[-2].argv


def test_rows_without_the_rewards_that_are_needed_are_found_before_any_stage(tmp_path: Path):
    """The rows of a data set are read in part: one row with a reward among them is enough for dpo-train to say the rest."""
    plain = '{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
    rated = '{"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 2, "rejected_score": 1}\n'
    ranked = '{"context": "p", "completions": [{"rank": 0, "completion": "c"%s}, {"rank": 1, "completion": "r"%s}]}\n'
    for text, objective, lacks in (
        (plain * 9, "rpo_sq", True),
        (plain * 9, "dpo", False),
        (plain + rated, "rpo_sq", False),
        (rated, "odpo", False),
        (ranked % ("", ""), "odpo", True),
        (ranked % (', "reward": 2.0', ', "reward": 1.0'), "odpo", False),
        ('{"context": "p", "response1": "c", "response2": "r", "overall_preference": -2}\n', "rpo_bwd_kl", False),
        ("no JSON\n", "rpo_sq", False),
        ("", "rpo_sq", False),
    ):
        (tmp_path / "rows.jsonl").write_text(text)
        given = [f"dpo.preference_loss={objective}", f"data.train.path={tmp_path}/rows.jsonl", "policy.model_name=org/model"]
        lines = missing_inputs(load_run(None, given)[0])
        assert len(lines) == lacks, (text, objective, lines)
        assert not lacks or f"rows.jsonl: its first rows have no rewards, which {objective} needs" in lines[0]


def test_every_config_of_the_step_is_known_here_or_elsewhere():
    """So that a recipe that is added is tested."""
    assert {path.stem for path in STEP.glob("*.yaml")} == {"default", "tiny", "smollm2", *RECIPES}
