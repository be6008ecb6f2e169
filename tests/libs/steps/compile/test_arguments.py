"""What follows STEP: overrides, tokens that pass through, tokens that come to nothing."""

from __future__ import annotations

import pytest

from nemotron_dpo.steps.compile.arguments import Arguments, sort_arguments

NOTHING = "names no section of the config and is ignored"
CASES = [
    ([], (), ()),
    (["dpo.seed=1", "a.b=c=d"], ("dpo.seed=1", "a.b=c=d"), ()),
    (["--cluster={gpus_per_node: 2}"], ("cluster={gpus_per_node: 2}",), ()),
    (["--cluster", "{gpus_per_node: 2}", "dpo.seed=1"], ("cluster={gpus_per_node: 2}", "dpo.seed=1"), ()),
    (["--check-pointing", "null"], ("check_pointing=null",), ()),
    (["--lr=3", "word", "--fast"], (), (f"--lr=3: {NOTHING}", f"word: {NOTHING}", f"--fast: {NOTHING}")),
    (["--forc"], (), (f"--forc: {NOTHING}: did you mean --force?",)),
    (["--api-key=word"], (), (f"--api-key=***: {NOTHING}",)),
    (
        ["--cluster", "dpo.seed=1"],
        ("dpo.seed=1",),
        ("--cluster: has no value and is ignored: give --cluster=VALUE, or cluster.KEY=VALUE",),
    ),
]


@pytest.mark.parametrize(("tokens", "overrides", "remarks"), CASES)
def test_sorting(tokens: list[str], overrides: tuple[str, ...], remarks: tuple[str, ...]):
    assert sort_arguments(tokens, {"cluster", "dpo", "check_pointing"}, ["--force"]) == Arguments(overrides, remarks)
