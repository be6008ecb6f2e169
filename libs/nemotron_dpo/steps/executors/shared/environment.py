"""The variables that a job gets from us, besides those of its cluster.

Any of them may be a secret, whatever its name, so their values are written nowhere else.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nemotron_dpo.config import redact
from nemotron_dpo.config.redact import HIDDEN
from nemotron_dpo.errors import UserError
from nemotron_dpo.kernels import choice
from nemotron_dpo.steps.profiles.profile import Profile

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_environment(profile: Profile) -> dict[str, str]:
    """HF_TOKEN of the user's login, WANDB_* of env.toml's [wandb] and the environment, then the profile's env_vars, which win.

    Raises UserError for what cannot be a variable, and for kernels that do not exist.
    """
    environment = {"HF_TOKEN": token} if (token := _hub_token()) else {}
    key = os.environ.get("WANDB_API_KEY")
    environment |= {"WANDB_API_KEY": key} if key else {}
    environment |= local_environment(profile)
    for name, value in environment.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise UserError(f"profile {profile.name}: {name!r} cannot be an environment variable", source=profile.source)
    choice.asked_for(environment)
    return environment


def local_environment(profile: Profile) -> dict[str, str]:
    """What the stages get on this machine besides its own environment: [wandb] of env.toml, then the profile's env_vars."""
    return {f"WANDB_{key.upper()}": value for key, value in profile.wandb.items()} | profile.env_vars


def shell_text(environment: Mapping[str, str]) -> str:
    """A shell's words that export `environment`, a variable a line."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


def shown(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` as it may be printed, secrets hidden."""
    return {name: redact(value, name) for name, value in environment.items()}


def without_values(profile: Profile) -> Profile:
    """`profile` as the record of a run may hold it: the names of its variables without their values."""
    hidden = dict.fromkeys(profile.env_vars, HIDDEN)
    return replace(profile, env_vars=hidden, settings={**profile.settings, **({"env_vars": hidden} if hidden else {})})


def _hub_token() -> str | None:
    """The token of the user's own login to the Hugging Face Hub."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = Path(os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token"))
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None
