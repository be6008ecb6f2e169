"""The pairs of a run: what they must be, and what makes a run on them the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.preferences.pairs import Pairs
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.data import DataRules
    from nemotron_dpo.training.resume import Identity


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


def identity(run: RunConfig, policy: ModelSource, data: Pairs, sets: Mapping[str, Pairs]) -> Identity:
    """What makes a run that starts from `policy` this one; digests are of the first rank alone, which compares them."""
    from nemotron_dpo.checkpoint.policy import read_architecture
    from nemotron_dpo.config import identity, objective_of
    from nemotron_dpo.policy.parallel import kernels_of_job, rank
    from nemotron_dpo.training.data import weights_digest
    from nemotron_dpo.training.resume import Identity, digest

    with_rewards = objective_of(run.dpo).needs.row_rewards

    def of(pairs: Pairs) -> str:
        return digest(pairs, with_rewards=with_rewards) if rank() == 0 else ""

    routers = read_architecture(policy).routers
    fixed, free = identity(run, has_routers=bool(routers), has_biases=any(router.expert_bias for router in routers))
    validation = {name: of(pairs) for name, pairs in sets.items()}
    return Identity(of(data), weights_digest(policy), fixed, free, validation, kernels_of_job())


def reference_is_policy(run: RunConfig) -> bool:
    """Whether the initial policy itself must have scored the pairs, so that step 1 must read what the objective says."""
    from nemotron_dpo.config import objective_of

    return objective_of(run.dpo).needs.reference and not run.dpo.allow_reference_mismatch
