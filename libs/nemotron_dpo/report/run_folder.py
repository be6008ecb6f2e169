"""What a run left: its folder, the job around it, its settings and how it stands. Nothing here is ever written."""

from __future__ import annotations

import errno
import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.report.run_settings import read_settings, read_yaml
from nemotron_dpo.run_state import read_facts, state_of

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """A run. `job` is the folder of nemotron-steps around it, where there is one; `record` is its job.yaml.

    settings: the configuration as a tree; empty where nothing says it. facts: run.json; empty in runs of earlier versions.
    """

    folder: Path
    name: str
    job: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`running`, `done`, `stopped`, `failed`, `killed`, or `unknown` where no run.json says it."""
        return state_of(self.facts)

    def setting(self, path: str, default: Any = None) -> Any:
        """The value of the setting `path`, such as `policy.optimizer.lr`."""
        value: Any = self.settings
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @property
    def beta(self) -> float | None:
        """The KL penalty, where it is known."""
        value = self.setting("dpo.reference_policy_kl_penalty")
        return float(value) if isinstance(value, int | float) else None

    @property
    def command(self) -> Sequence[str]:
        """How dpo-train was called; empty where that is not known."""
        command = self.facts.get("command", [])
        return [str(word) for word in command] if isinstance(command, list) else []

    def trained_on(self, name: str) -> tuple[int, int]:
        """How many pairs of a validation set are trained on as well, of how many; none of none where nothing says it."""
        sets = self.facts.get("validation")
        one = sets.get(name) if isinstance(sets, Mapping) else None
        counts = [one.get(key) for key in ("trained_on", "pairs")] if isinstance(one, Mapping) else []
        known = [count for count in counts if type(count) is int and count >= 0]
        return (known[0], known[1]) if len(known) == 2 else (0, 0)

    def streams(self) -> dict[str, Path]:
        """The streams of pairs that the run read, by split, as far as they still lie where it read them."""
        words, found = list(self.command), dict[str, Path]()
        base = Path(str(self.facts.get("folder", ".")))
        for word, following in itertools.pairwise([*words, ""]):
            name, is_named, path = following.partition("=")
            if word == "--validation" and following:
                found[f"validation-{name if is_named else 'default'}"] = base / (path if is_named else following)
        inputs = [word for word in words[1:] if word.endswith(".arrow") and "=" not in word]
        if inputs and base / inputs[0] not in found.values():
            found["train"] = base / inputs[0]
        if (self.folder / "input.arrow").is_file():
            found["train"] = self.folder / "input.arrow"
        beside = sorted((self.job or self.folder).glob("*.arrow")) if self.job else []
        for path in beside:
            if (stem := path.name.partition(".")[0]) == "train" or stem.startswith("validation-"):
                scored = path.with_name(f"{stem}.scored.arrow")
                found[stem] = scored if scored.is_file() else path
        return {split: path for split, path in found.items() if _lies(path)}


def _lies(path: Path) -> bool:
    """Whether the file is there; run.json of a stranger may name one that no system can have."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def open_run(given: str | Path) -> RunFolder:
    """The run that `given` names: a run folder, its metrics.jsonl, or the folder of a job.

    Raises UserError, in a line, for anything else.
    """
    folder = Path(given)
    if not folder.exists():
        raise UserError("no such folder", source=given)
    if folder.name == METRICS and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError("is a file where a run folder is due", source=given)
    is_job = not (folder / METRICS).is_file() and (folder / "job.yaml").is_file()
    run = folder / "run" if is_job else folder
    if not (run / METRICS).is_file():
        if is_job:
            raise UserError("is a job that has not trained: there is no run/metrics.jsonl in it", source=given)
        remedy = "give the --run-dir of dpo-train, or the folder of a job"
        raise UserError(f"is no run: there is no {METRICS} in it", source=given, remedy=remedy)
    job = run.resolve().parent if (run.resolve().parent / "job.yaml").is_file() else None
    place = job or run.resolve()
    name = place.name if job else f"{place.parent.name}/{place.name}".lstrip("/")
    return RunFolder(run, name, job, read_settings(run, job), read_facts(run), read_yaml(job / "job.yaml") if job else {})


def typed(words: Sequence[str]) -> str:
    """`words` as a command that a shell takes."""
    return shlex.join([Path(words[0]).name, *words[1:]]) if words else ""
