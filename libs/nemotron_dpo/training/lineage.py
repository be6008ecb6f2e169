"""What a run is made from, for trackers: the digests that its streams carry of everything upstream, and who it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemotron_dpo import __version__
from nemotron_dpo.sources import ModelSource
from nemotron_dpo.streams import open_reader


def lineage(policy: ModelSource, inputs: Mapping[str, Path]) -> dict[str, str]:
    """The initial `policy`, this version, and of every stream in `inputs`, by what it is for, the digests in its header."""
    found = {"policy": policy.name, "nemotron_dpo": __version__}
    for name, path in inputs.items():
        with open_reader(path, "tokenized_pairs", "scored_pairs") as reader:
            found |= {f"{name}.{what}": digest for what, digest in sorted(reader.info.digests.items())}
    return found
