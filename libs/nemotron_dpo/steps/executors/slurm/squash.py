"""A container image on the cluster: imported once into a squash file, in a short job of its own that the real one waits for."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from nemotron_dpo.steps.executors.slurm.settings import SlurmSettings

_SUFFIX = ".sqsh"


@dataclass(frozen=True)
class Squash:
    """The squash `file` of an image; `source` is what enroot imports, None where the file was named itself."""

    file: str
    source: str | None


def squash_of(image: str, job_root: str) -> Squash:
    """Where `image` lies, or will lie, on the cluster."""
    if image.endswith(_SUFFIX):
        return Squash(image, None)
    return Squash(f"{job_root}/{re.sub(r'[^A-Za-z0-9]', '_', image)}{_SUFFIX}", enroot_source(image))


def enroot_source(image: str) -> str:
    """`image`, as docker writes it, as enroot does: docker://REGISTRY#NAME, the registry only where one is named."""
    if "://" in image:
        return image
    registry, slash, name = image.partition("/")
    is_registry = slash and ("." in registry or ":" in registry or registry == "localhost") and "#" not in image
    return f"docker://{registry}#{name}" if is_registry else f"docker://{image}"


def squash_script(squash: Squash, settings: SlurmSettings, directives: str, *, force: bool) -> str:
    """The batch script that imports the image under another name and renames it, so that no half file is ever found."""
    assert squash.source is not None
    target = shlex.quote(squash.file)
    cache = settings.build.cache_dir
    lines = [
        "#!/bin/bash",
        directives,
        "set -euo pipefail",
        *([f"export ENROOT_CACHE_PATH={shlex.quote(cache)}"] if cache else []),
        f"partial={target}.$SLURM_JOB_ID",
        "trap 'rm -f -- \"$partial\"' EXIT",
        f"rm -f -- {target}" if force else f"[[ ! -e {target} ]] || exit 0",
        f'srun --nodes=1 --ntasks=1 enroot import --output "$partial" {shlex.quote(squash.source)} </dev/null',
        f'mv -f -- "$partial" {target}',
    ]
    return "\n".join(lines) + "\n"
