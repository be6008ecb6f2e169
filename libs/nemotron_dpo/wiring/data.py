"""The pairs of a run: what they must be, and what makes a run on them the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_dpo.errors import UserError

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.data import DataRules
    from nemotron_dpo.training.resume import Identity, ResumeState


def data_rules(run: RunConfig, policy: ModelSource) -> DataRules:
    """What pairs must be for a run that starts from `policy`."""
    from nemotron_dpo.config import objective_of
    from nemotron_dpo.training.data import DataRules

    needs = objective_of(run.dpo).needs
    return DataRules(
        policy,
        scored=needs.reference,
        max_length=run.policy.max_total_sequence_length,
        own_reference=reference_is_policy(run),
        own_tokenizer=run.policy.tokenizer.name is None,
        row_rewards=needs.row_rewards,
        ordered_rewards=needs.ordered_rewards,
    )


@dataclass(frozen=True)
class OpenPairs:
    """The pairs to train on, those to validate on by the name of their set, and the files of all by what they are for."""

    train: Pairs
    sets: Mapping[str, Pairs]
    files: Mapping[str, Path]

    @cached_property
    def trained_on(self) -> Mapping[str, int]:
        """By validation set, how many of its pairs are trained on as well."""
        return {name: pairs.pair_ids.num_found_in(self.train.pair_ids) for name, pairs in self.sets.items()}


def open_pairs(
    run: RunConfig,
    policy: ModelSource,
    source: str,
    held_out: Mapping[str, Path],
    run_dir: Path,
    say: Callable[[str], None],
    *,
    is_first: bool,
) -> OpenPairs:
    """The streams of a run; `source` is a path or "-".

    What comes through a pipe is kept in the run folder, and where a run is resumed must not replace what it began with.
    """
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.streams import spool

    rules = data_rules(run, policy)
    kept = run_dir / ("input.arrow" if is_first else "input.again.arrow")
    path = parallel.agreed(lambda: spool(source, kept))
    try:
        data = rules.open(path, say)
    finally:
        if source == "-" and not is_first:
            path.unlink()
    files = {"train": run_dir / "input.arrow" if source == "-" else path}
    files |= {f"validation-{name}": file for name, file in held_out.items()}
    return OpenPairs(data, {name: rules.open(file, say) for name, file in held_out.items()}, files)


def identity(run: RunConfig, policy: ModelSource, data: Pairs, sets: Mapping[str, Pairs]) -> Identity:
    """What makes a run that starts from `policy` this one; digests are of the first rank alone, which compares them."""
    from nemotron_dpo.checkpoint.policy import read_architecture
    from nemotron_dpo.config import identity, objective_of
    from nemotron_dpo.policy.job_kernels import kernels_of_job
    from nemotron_dpo.policy.parallel import rank
    from nemotron_dpo.training.data import weights_digest
    from nemotron_dpo.training.resume import Identity, digest

    with_rewards = objective_of(run.dpo).needs.row_rewards

    def of(pairs: Pairs) -> str:
        return digest(pairs, with_rewards=with_rewards) if rank() == 0 else ""

    routers = read_architecture(policy).routers
    fixed, free = identity(run, has_routers=bool(routers), has_biases=any(router.expert_bias for router in routers))
    validation = {name: of(pairs) for name, pairs in sets.items()}
    return Identity(of(data), weights_digest(policy), fixed, free, validation, kernels_of_job())


def check_goes_on(earlier: Path | None, num_steps: int, run_dir: Path) -> None:
    """Raise UserError where a run of no steps would go on from the step folder `earlier`."""
    if earlier and not num_steps:
        message = "has steps of a run, and with dpo.max_num_steps=0 nothing goes on from them"
        raise UserError(message, source=run_dir, remedy="name another folder")


def resumed(earlier: Path, policy: ModelSource, identity: Identity, last: int, say: Callable[[str], None]) -> ResumeState:
    """The state of the step folder `earlier`, which must be of the run `identity` from `policy`; `last` is its last step."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.training.data import named_as
    from nemotron_dpo.training.resume import ResumeState, check_identity

    state = parallel.agreed(lambda: ResumeState.read(earlier))
    given = replace(identity, policy=named_as(state.identity.policy, policy))
    changes = parallel.agreed(lambda: check_identity(state.identity, given, earlier) if parallel.rank() == 0 else [])
    for change in changes:
        say(f"warning: {change}")
    goes_on = f"resuming after step {state.step} of {last}" if state.step < last else f"all {last} steps are done already"
    say(f"{earlier}: {goes_on}")
    return state


def reference_is_policy(run: RunConfig) -> bool:
    """Whether the initial policy itself must have scored the pairs, so that step 1 must read what the objective says."""
    from nemotron_dpo.config import objective_of

    return objective_of(run.dpo).needs.reference and not run.dpo.allow_reference_mismatch
