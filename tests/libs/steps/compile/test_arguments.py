"""What follows STEP: overrides, tokens that pass through, and slips of the keyboard, which are refused."""

from __future__ import annotations

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.compile.arguments import Arguments, sort_arguments

SECTIONS, OPTIONS = {"cluster", "dpo", "check_pointing"}, ["--force", "--config", "--dry-run", "--run"]
NOTHING = "names no section of the config and is ignored"
SORTED = [
    ([], (), ()),
    (["dpo.seed=1", "a.b=c=d"], ("dpo.seed=1", "a.b=c=d"), ()),
    (["--cluster={gpus_per_node: 2}"], ("cluster={gpus_per_node: 2}",), ()),
    (["--cluster", "{gpus_per_node: 2}", "dpo.seed=1"], ("cluster={gpus_per_node: 2}", "dpo.seed=1"), ()),
    (["--check-pointing", "null"], ("check_pointing=null",), ()),
    (["--lr=3", "--fast", "dpo.seed=1"], ("dpo.seed=1",), (f"--lr=3: {NOTHING}", f"--fast: {NOTHING}")),
    (["--mode", "word", "dpo.seed=1"], ("dpo.seed=1",), (f"--mode word: {NOTHING}",)),
    (["--api-key=word"], (), (f"--api-key=***: {NOTHING}",)),
]
SLIPS = [
    (["dpo.max_num_steps", "2"], "dpo.max_num_steps: is no KEY.PATH=VALUE: did you mean dpo.max_num_steps=2?"),
    (["dpo.max_num_steps"], "dpo.max_num_steps: is no KEY.PATH=VALUE: write dpo.max_num_steps=VALUE"),
    (["dpo.seed=1", "2"], "2: is no KEY.PATH=VALUE"),
    (["dpo.seed", "=", "1"], "dpo.seed: is no KEY.PATH=VALUE: write dpo.seed=VALUE"),
    (["word"], "word: is no KEY.PATH=VALUE"),
    (["logger.wandb.api_key", "word"], "logger.wandb.api_key: is no KEY.PATH=VALUE: did you mean logger.wandb.api_key=***?"),
    (["--dpo.seed", "2"], "--dpo.seed: is a key of the config behind dashes: write dpo.seed=2"),
    (["--dpo.seed=2"], "--dpo.seed=2: is a key of the config behind dashes: write dpo.seed=2"),
    (["--dpo.seed"], "--dpo.seed: is a key of the config behind dashes: write dpo.seed=VALUE"),
    (["--forc"], "--forc: is no option: did you mean --force?"),
    (["--confg", "tiny"], "--confg: is no option: did you mean --config?"),
    (["--dryrun"], "--dryrun: is no option: did you mean --dry-run?"),
    (["--cluster", "dpo.seed=1"], "--cluster: has no value: give --cluster=VALUE, or cluster.KEY=VALUE"),
]


def test_sorting():
    for tokens, overrides, remarks in SORTED:
        assert sort_arguments(tokens, SECTIONS, OPTIONS) == Arguments(overrides, remarks)


def test_slips_are_refused_with_the_form_that_was_meant():
    for tokens, line in SLIPS:
        with pytest.raises(UserError) as refused:
            sort_arguments(tokens, SECTIONS, OPTIONS)
        assert (str(refused.value), refused.value.usage) == (line, True)
