"""What a shell may offer to complete: steps, configs of a step, profiles, stages, and keys of a config. Never fails."""

from __future__ import annotations

from nemotron_dpo.config import known_keys
from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue import manifest
from nemotron_dpo.steps.catalogue import planners as kinds
from nemotron_dpo.steps.compile import profile


def steps() -> list[tuple[str, str]]:
    """(id, name) of every step, and the short form of its id too."""
    found = manifest.discover(manifest.configs_root())
    short = [(step.id.rpartition("/")[2], step.name) for step in found]
    return [(step.id, step.name) for step in found] + short


def configs(step: str) -> list[str]:
    """Names of the configs of `step`."""
    try:
        return list(manifest.find_step(step, manifest.discover(manifest.configs_root())).configs)
    except UserError:
        return []


def profiles() -> list[tuple[str, str]]:
    """(name, executor) of every profile of the env.toml that would be read."""
    try:
        return profile.profile_names()
    except UserError:
        return []


def stages(step: str) -> list[str]:
    """Programs that `step` may run."""
    programs = {
        "rl/nemo_rl/dpo": ["preference-tokenize", "ref-logprobs", "dpo-train", "ckpt-export"],
        "eval/preference_score": ["preference-tokenize", "ref-logprobs", "margins"],
    }
    try:
        return programs.get(manifest.find_step(step, manifest.discover(manifest.configs_root())).id, [])
    except UserError:
        return []


def keys(step: str) -> list[str]:
    """The keys of the config of `step`, ready for a value."""
    try:
        found = manifest.find_step(step, manifest.discover(manifest.configs_root()))
        return [f"{key}=" for key in known_keys(kinds.kind_of(found).config)]
    except UserError:
        return []
