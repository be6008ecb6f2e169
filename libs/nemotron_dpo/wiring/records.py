"""What a run leaves behind: its checkpoints, its records and the facts of run.json."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dpo.wiring.model import layout

if TYPE_CHECKING:
    from nemotron_dpo.config import RunConfig
    from nemotron_dpo.sources import ModelSource
    from nemotron_dpo.training.resume import Identity
    from nemotron_dpo.training.samples import Samples
    from nemotron_dpo.training.saving import Checkpoints
    from nemotron_dpo.training.sinks import RecordedRun
    from nemotron_dpo.wiring.data import OpenPairs


def checkpoint_dir(run: RunConfig, run_dir: Path) -> Path:
    """Where the checkpoints of a run in `run_dir` go."""
    return Path(run.checkpointing.checkpoint_dir or run_dir / "checkpoints")


@contextlib.contextmanager
def held_folders(run: RunConfig, run_dir: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Keep other runs out of the folders that this one writes; the first rank does it for all."""
    from nemotron_dpo.policy import parallel
    from nemotron_dpo.training.lock import only_run

    own = [Path(run.checkpointing.checkpoint_dir)] if run.checkpointing.checkpoint_dir else []
    folders = {folder.resolve(): folder for folder in (run_dir, *own)} if parallel.rank() == 0 else {}
    with contextlib.ExitStack() as held:
        parallel.agreed(lambda: [held.enter_context(only_run(folder, say)) for folder in folders.values()])
        yield


def checkpoints(
    run: RunConfig, run_dir: Path, policy: ModelSource, identity: Identity | None, sets: Collection[str]
) -> Checkpoints | None:
    """What is saved and kept of a run that started from `policy` and validates `sets`; None where nothing is."""
    from nemotron_dpo.config import dump_run, ranking
    from nemotron_dpo.training.saving import Checkpoints

    keep = run.checkpointing
    if not keep.enabled:
        return None
    return Checkpoints(
        folder=checkpoint_dir(run, run_dir),
        config=dump_run(run),
        identity=identity if keep.save_optimizer else None,
        tokenizer=policy.tokenizer_folder if policy.tokenizer_folder.is_dir() else None,
        keep_top_k=keep.keep_top_k,
        metric_name=ranking(run, sets),
        higher_is_better=keep.higher_is_better,
        ranked_period=keep.save_period if keep.ft_save_period or keep.ft_keep_latest_k else None,
        keep_latest_k=keep.ft_keep_latest_k,
    )


def check_trackers(run: RunConfig) -> None:
    """Raise UserError, whose field is the key, where a tracker is asked for whose library is not installed."""
    logger = asdict(run.logger)
    if any(value for key, value in logger.items() if key.endswith("_enabled")):  # the sinks' imports take a while
        from nemotron_dpo.training.sinks import check_trackers

        check_trackers(logger)


def samples(run: RunConfig, policy: ModelSource) -> Samples | None:
    """What is shown of each validation; None where nothing is. Raises UserError where `policy` has no tokenizer for it."""
    from nemotron_dpo.preferences.tokenizer_folder import open_folder
    from nemotron_dpo.training.samples import Samples

    number = run.logger.num_val_samples_to_print
    return Samples(number, open_folder(str(policy.tokenizer_folder)).load()) if number else None


def recorded(
    run: RunConfig, run_dir: Path, policy: ModelSource, pairs: OpenPairs, done: int, say: Callable[[str], object]
) -> RecordedRun:
    """What the sinks of a run on `pairs` in `run_dir` are opened for, of which `done` steps were taken before."""
    from nemotron_dpo.config import redact, run_tree
    from nemotron_dpo.config.redact import hide_secrets
    from nemotron_dpo.training.lineage import lineage
    from nemotron_dpo.training.sinks import RecordedRun

    def say_hidden(line: str) -> None:  # libraries' errors quote addresses, and these may hold a password
        say(hide_secrets(line, ""))

    made_from = lineage(policy, pairs.files)
    inputs = {name: str(path.absolute()) for name, path in pairs.files.items()}
    validation = {name: {"pairs": len(own), "trained_on": pairs.trained_on[name]} for name, own in pairs.sets.items()}
    facts = {**_facts(run), "inputs": inputs, "validation": validation}
    return RecordedRun(run_dir, done, asdict(run.logger), redact(run_tree(run)), made_from, say_hidden, facts)


def _facts(run: RunConfig) -> dict[str, Any]:
    """What run.json says of where and by what a run is computed."""
    from nemotron_dpo import versions
    from nemotron_dpo.config import redact_argv
    from nemotron_dpo.kernels.chosen import kernels
    from nemotron_dpo.policy import device, parallel

    return {
        "command": redact_argv(sys.argv),
        "versions": [f"Python {platform.python_version()}", *map(versions.called, ("nemotron-dpo", *versions.TRIED))],
        "processes": parallel.job_size(),
        "device": device.name(),
        "layout": asdict(layout(run)),
        "kernels": kernels().identity,
    }
