"""The architecture of a config's policy, from small files alone: no weights are read, and nothing asks the network."""

from __future__ import annotations

import os
from pathlib import Path

from nemotron_dpo import sources
from nemotron_dpo.checkpoint import run_config
from nemotron_dpo.checkpoint.families.config import from_config, read
from nemotron_dpo.config import RunConfig
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.architecture import Architecture
from nemotron_dpo.steps import tiny_policy


def policy_architecture(run: RunConfig) -> Architecture:
    """The architecture that training starts from. Raises UserError where it is not to be had here, or not readable."""
    name, pretrained = run.policy.model_name, run.checkpointing.pretrained_checkpoint
    if pretrained.path and pretrained.format == "megatron_bridge":
        name = pretrained.path
    if name == tiny_policy.TINY_SFT:
        return from_config(tiny_policy.architecture(tiny_policy.MAX_VOCAB), Path(tiny_policy.__file__))
    folder = Path(name).expanduser()
    if not folder.is_dir() and (cached := _on_hub_before(name)):
        return read(cached)
    if not folder.is_dir():
        raise UserError("is neither a folder here nor a model in the cache of the Hugging Face hub", source=name)
    found = sources.resolve(folder)
    return read(found.path) if found.kind == "hf" else run_config.read(found.path)


def _on_hub_before(name: str) -> Path | None:
    """The folder of a model in the hub's cache, found by its layout: importing its library takes longer than a dry run may."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = os.path.expanduser(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    root = Path(hub) / f"models--{name.replace('/', '--')}"
    if not (root / "refs" / "main").is_file():
        return None
    folder = root / "snapshots" / (root / "refs" / "main").read_text(encoding="utf-8").strip()
    return folder if (folder / "config.json").is_file() else None
