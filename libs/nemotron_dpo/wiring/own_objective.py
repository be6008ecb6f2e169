"""An objective of the user's own: what its code raises is its own mistake, and it must work before training begins."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from nemotron_dpo.errors import UserError

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.config.dpo import OwnObjective


def blamed(own: OwnObjective | None) -> AbstractContextManager[object]:
    """Inside it, what the code of a user's `own` objective raises is that file's mistake."""
    from nemotron_dpo.config import blamed

    return blamed(own.entry.source, its_own=True) if own else contextlib.nullcontext()


def check_own_objective(run: RunConfig) -> None:
    """Raise UserError where the user's own objective is not the same on all ranks, or does not work on two made-up pairs."""
    from nemotron_dpo.config import blamed, objective_of
    from nemotron_dpo.objective.trial import problem
    from nemotron_dpo.policy import parallel

    own = run.dpo.own_objective
    if own is None:
        return
    digests = parallel.gather(own.digest) if parallel.job_size() > 1 else [own.digest]
    if len(set(digests)) > 1:
        where = ", ".join(f"rank {rank}: {digest[:17]}" for rank, digest in enumerate(digests))
        raise UserError(f"is not the same file on all ranks ({where})", source=own.entry.source, remedy="give all the same")
    with blamed(own.entry.source):
        found = problem(objective_of(run.dpo))
    if found is not None:
        raise UserError(f"{own.entry.name} {found}", source=own.entry.source)
