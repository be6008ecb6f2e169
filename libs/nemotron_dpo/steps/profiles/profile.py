"""One profile: what it says of where a step runs, how many processes that means, and its keys checked against their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.profiles.keys import Key, KeyTable, key_tables, known_key, nearest_key
from nemotron_dpo.steps.profiles.kinds import COUNT, NUMBER, UnfitValue

_NOT_SET = (None, "", [], {})


@dataclass(frozen=True)
class Profile:
    """One table of env.toml, its parents merged in; `origins` maps the dotted keys that a config's run.env set to places.

    `wandb` is the table [wandb] of that file, which is no profile's alone.
    """

    name: str
    executor: str
    env_vars: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    origins: dict[str, str] = field(default_factory=dict)
    wandb: dict[str, str] = field(default_factory=dict)

    @property
    def sees_our_files(self) -> bool:
        """Whether paths of the config are those of this machine: it runs here, or on a cluster that sbatch here submits to."""
        here = self.settings.get("tunnel") in (None, "", "local") and not self.settings.get("host")
        return self.executor == "local" or (self.executor == "slurm" and here)

    @property
    def keys(self) -> KeyTable:
        """The keys that its executor has."""
        return key_tables()[self.executor]

    def cluster(self) -> dict[str, Any]:
        """What it says of the number of processes, as a config that lies under the step's own. Raises UserError."""
        given = {}
        for name, key in self.sizes().items():
            try:
                given[name] = NUMBER.read(self.settings[key])
            except UnfitValue as unfit:
                raise self.refusal(key, str(unfit)) from None
        return {"cluster": given} if given else {}

    def base(self) -> dict[str, Any]:
        """What it says of a run, as a config under the step's own: `cluster`, and the documented keys of run.wandb."""
        named = {key: self.wandb[key] for key in ("project", "entity") if key in self.wandb}
        return self.cluster() | ({"run": {"wandb": named}} if named else {})

    def sizes(self) -> dict[str, str]:
        """Key of a config's cluster section -> the key of ours that decides it; those that a config set come first."""
        found: dict[str, str] = {}
        for section in ("gpus_per_node", "num_nodes"):
            names = [name for name, key in self.keys.items() if key.sets == section and self._is_set(name, key)]
            names.sort(key=lambda name: (self.keys[name].yields, name not in self.origins))
            found |= {section: names[0]} if names else {}
        return found

    def known(self, key: str) -> Key | None:
        """What its executor knows of `key`, else what any other does."""
        return self.keys.get(key) or known_key(key)

    def idle_keys(self) -> tuple[str, ...]:
        """The keys that are set and that its executor has no use for."""
        idle = {key for key in self.settings if key not in self.keys or self.keys[key].is_idle}
        if self.executor == "slurm" and not self.settings.get("container_image"):  # the mounts are of a container
            idle |= {key for key in ("mounts", "lustre_mount") if self.settings.get(key)}
        return tuple(sorted(idle))

    def refusal(self, key: str, message: str, remedy: str | None = None) -> UserError:
        """The error about `key`, which names the place where it is set."""
        if place := self.origins.get(key):
            return UserError(message, source=place, field=f"run.env.{key}", remedy=remedy)
        return UserError(f"profile {self.name}: {message}", source=self.source, field=key, remedy=remedy)

    def _is_set(self, name: str, key: Key) -> bool:
        """Whether `name` says how many; 0 GPUs say nothing of processes."""
        value = self.settings.get(name)
        return value not in _NOT_SET and not (key.kind is COUNT and value == 0)


class CheckedProfile:
    """The values of a profile, each of the kind that its key must have. All are checked at once, before any is asked for."""

    def __init__(self, profile: Profile) -> None:
        """Raises UserError for a key that no executor has, and for a value that is not of its key's kind."""
        self._profile = profile
        self._values: Mapping[str, Any] = {key: value for key, value in profile.settings.items() if value not in _NOT_SET}
        for key in profile.settings:
            if profile.known(key) is None:
                self.refuse(key, "is no known key", nearest_key(key))
            elif key in profile.keys:
                self.get(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, checked; `default` where it is not set or empty."""
        if key not in self._values:
            return default
        try:
            return self._profile.keys[key].kind.read(self._values[key])
        except UnfitValue as unfit:
            self.refuse(key if unfit.entry is None else f"{key}.{unfit.entry}", str(unfit), unfit.remedy)

    def need(self, key: str, remedy: str) -> Any:
        """The value of `key`, which must be there."""
        value = self.get(key)
        return self.refuse(key, "is missing", remedy) if value is None else value

    def choice(self, key: str, choices: Sequence[str], default: str) -> Any:
        """One of `choices`."""
        value = self.get(key, default)
        if value not in choices:
            self.refuse(key, f"is {value!r} where {' or '.join(choices)} is due")
        return value

    def refuse(self, key: str, message: str, remedy: str | None = None) -> NoReturn:
        """Raise UserError about `key`."""
        raise self._profile.refusal(key, message, remedy)
