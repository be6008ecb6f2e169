"""What --sweep makes of keys and values."""

from __future__ import annotations

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.sweep.points import points, shares_scores


def test_every_combination_is_a_point_with_a_name() -> None:
    found = points(["dpo.reference_policy_kl_penalty=0.05,0.1", "policy.optimizer.lr=5e-7, 1e-6"], "s")
    assert [(point.settings, point.name) for point in found] == [
        (("dpo.reference_policy_kl_penalty=0.05", "policy.optimizer.lr=5e-7"), "s-reference_policy_kl_penalty=0.05-lr=5e-7"),
        (("dpo.reference_policy_kl_penalty=0.05", "policy.optimizer.lr=1e-6"), "s-reference_policy_kl_penalty=0.05-lr=1e-6"),
        (("dpo.reference_policy_kl_penalty=0.1", "policy.optimizer.lr=5e-7"), "s-reference_policy_kl_penalty=0.1-lr=5e-7"),
        (("dpo.reference_policy_kl_penalty=0.1", "policy.optimizer.lr=1e-6"), "s-reference_policy_kl_penalty=0.1-lr=1e-6"),
    ]


def test_a_comma_in_brackets_or_quotes_is_of_the_value() -> None:
    for text, values in [
        ("k=1", ["k=1"]),
        ("k={dpo: 0.8, sft: 1.0},ipo", ["k={dpo: 0.8, sft: 1.0}", "k=ipo"]),
        ("k=[1, 2],[3]", ["k=[1, 2]", "k=[3]"]),
        ("k='a,b',c", ["k='a,b'", "k=c"]),
        ("k=null,x=y", ["k=null", "k=x=y"]),
    ]:
        assert [point.settings[0] for point in points([text], "s")] == values, text


def test_a_name_that_no_folder_can_have_is_made_one() -> None:
    names = [point.name for point in points(["policy.model_name=org/a b,/x/y"], "s")]
    assert names == ["s-model_name=org_a_b", "s-model_name=_x_y"]
    assert [point.name for point in points([f"k={'a' * 200},b"], "s")] == ["s-1", "s-k=b"]
    secret = "run.env.env_vars.TOKEN"
    assert [point.name for point in points([f"{secret}=hidden-1,hidden-2"], "s")] == ["s-1", "s-2"]


def test_refused() -> None:
    for sweeps, why in [
        (["k"], "--sweep k: is no KEY=A,B,C"),
        (["k="], "--sweep k=: has an empty value: give KEY=A,B,C"),
        (["k=1,,2"], "--sweep k=1,,2: has an empty value: give KEY=A,B,C"),
        (["k=1,1"], "--sweep k=1,1: has a value twice: leave one out"),
        (["k=0.1,1e-1"], "--sweep k=0.1,1e-1: has a value twice: leave one out"),
        (["run.name=a,b"], "--sweep run.name=a,b: names jobs, which have the names of their points: --name begins them"),
        (["given=1,2"], "--sweep given: given is given beside the sweep, where it would count for nothing: leave it out"),
        (["k=1", "k=2"], "--sweep k: is swept twice: give its values once: KEY=A,B,C"),
        (
            ["a=" + ",".join(map(str, range(40))), "b=" + ",".join(map(str, range(30)))],
            "--sweep: has 1200 points: sweep up to 1000",
        ),
    ]:
        with pytest.raises(UserError) as caught:
            points(sweeps, "s", ["given"])
        assert (str(caught.value), caught.value.usage) == (why, True)


def test_which_keys_leave_rows_and_scores_alone() -> None:
    for keys, shared in [
        (["dpo.reference_policy_kl_penalty", "policy.optimizer.lr"], True),
        (["policy.train_global_batch_size"], True),
        (["policy.model_name"], False),
        (["dpo.max_num_steps", "data.train.path"], False),
        (["policy.max_total_sequence_length"], False),
        (["policy.megatron_cfg.tensor_model_parallel_size"], False),
        (["checkpointing.pretrained_checkpoint.path"], False),
    ]:
        assert shares_scores([f"{key}=1,2" for key in keys]) == shared, keys
