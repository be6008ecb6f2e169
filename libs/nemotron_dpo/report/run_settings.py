"""The settings of a run, from whichever of its files has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nemotron_dpo import documents
from nemotron_dpo.errors import UserError
from nemotron_dpo.run_state import read_facts


def read_settings(run: Path, job: Path | None) -> Mapping[str, Any]:
    """What the newest checkpoint says, which is whole; else the job; else the overrides of the command."""
    steps = {
        int(found[1]): path for path in run.glob("checkpoints/step_*") if (found := re.fullmatch(r"step_(\d+)", path.name))
    }
    files = [steps[number] / "config.yaml" for number in sorted(steps, reverse=True)] + ([job / "train.yaml"] if job else [])
    tree = next((tree for file in files if (tree := read_yaml(file))), {})
    facts = read_facts(run)
    if not tree and isinstance(facts.get("config"), dict):
        return facts["config"]
    return tree or _overrides(facts.get("command"))


def _overrides(command: Any) -> Mapping[str, Any]:
    tree: dict[str, Any] = {}
    for word in command if isinstance(command, list) else []:
        key, found, value = str(word).partition("=")
        if not found or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key):
            continue
        place = tree
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = _plain(value)
    return tree


def _plain(text: str) -> Any:
    try:
        value = documents.parsed_yaml(text, "an override")
        return float(text) if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", text) else value
    except (yaml.YAMLError, UserError, ValueError):
        return text


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; empty where there is none, or no such file."""
    return documents.yaml_mapping(path)
