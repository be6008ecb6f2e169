"""What follows STEP: overrides, tokens that pass through, tokens that come to nothing."""

from __future__ import annotations

import pytest

from nemotron_dpo.steps.arguments import Arguments, sort_arguments

CASES = [
    ([], (), ()),
    (["dpo.seed=1", "a.b=c=d"], ("dpo.seed=1", "a.b=c=d"), ()),
    (["--cluster={gpus_per_node: 2}"], ("cluster={gpus_per_node: 2}",), ()),
    (["--cluster", "{gpus_per_node: 2}", "dpo.seed=1"], ("cluster={gpus_per_node: 2}", "dpo.seed=1"), ()),
    (["--check-pointing", "null"], ("check_pointing=null",), ()),
    (["--lr=3", "word", "--fast"], (), ("--lr=3", "word", "--fast")),
    (["--cluster", "dpo.seed=1"], ("dpo.seed=1",), ("--cluster",)),
]


@pytest.mark.parametrize(("tokens", "overrides", "ignored"), CASES)
def test_sorting(tokens: list[str], overrides: tuple[str, ...], ignored: tuple[str, ...]):
    assert sort_arguments(tokens, {"cluster", "dpo", "check_pointing"}) == Arguments(overrides, ignored)
