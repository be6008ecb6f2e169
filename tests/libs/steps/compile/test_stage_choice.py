"""Which stages run: --from, --to and --force on a plan of four."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile.stage_choice import choose
from nemotron_dpo.steps.compile.stages import Plan, Stage

STAGES = tuple(Stage(name, ("true",)) for name in ("tokenize train", "tokenize test", "score train", "train"))
PLAN = Plan(Path("job"), Path("job"), None, {}, None, STAGES)

CASES = [
    ((None, None, False), "- - - -"),
    ((None, None, True), "forced forced forced forced"),
    (("score", None, False), "given given forced forced"),
    (("tokenize test", None, False), "given forced forced forced"),
    ((None, "tokenize", False), "- -"),
    ((None, "tokenize train", True), "forced"),
    (("tokenize test", "score", False), "given forced forced"),
    (("train", "train", False), "given given given forced"),
]


@pytest.mark.parametrize(("options", "expected"), CASES)
def test_choices(options: tuple[str | None, str | None, bool], expected: str):
    first, last, force = options
    shown = ["given" if c.is_given else "forced" if c.is_forced else "-" for c in choose(PLAN, first, last, force=force)]
    assert " ".join(shown) == expected


REFUSED = [
    (("tokenise", None), "--from tokenise: no such stage: did you mean tokenize?"),
    ((None, "x"), "--to x: no such stage: the stages are tokenize train, tokenize test, score train, train"),
    (("train", "score"), "--from train comes after --to score"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED)
def test_refused(options: tuple[str | None, str | None], line: str):
    with pytest.raises(UserError) as caught:
        choose(PLAN, *options, force=False)
    assert (str(caught.value), caught.value.usage) == (line, True)
