"""What is submitted: NeMo-Run's executor by its fields, the job's name and folder, and what of it nobody may read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.steps.executors.shared.attend import Unsure
from nemotron_dpo.steps.executors.shared.follow import NoAnswer


@dataclass(frozen=True)
class Submission:
    """`fields` of the executor; the job's own script is in `folder` on the nodes' storage. `profile` is named in errors."""

    name: str
    folder: str
    profile: str
    fields: Mapping[str, Any]
    credentials: tuple[str | None, str | None] | None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be told, whoever quotes it."""
        secret = self.credentials[1] if self.credentials else None
        return (*self.fields["env_vars"].values(), *([secret] if secret else []))

    @contextlib.contextmanager
    def unsure(self, look: str) -> Iterator[None]:
        """Without an answer in here nobody knows whether the job was queued; the command `look` would tell."""
        from requests import RequestException

        try:
            yield
        except (RequestException, NoAnswer) as error:
            reason = error.message if isinstance(error, NoAnswer) else type(error).__name__
            raise Unsure(f"no answer ({reason})", source=self.name, remedy=f"it may be queued all the same: {look}") from None
