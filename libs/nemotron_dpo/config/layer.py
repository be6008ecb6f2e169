"""One layer of a config (a YAML file, an override, a profile), and the search for the layer and line that set a value."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_dpo.config.spellings import spellings
from nemotron_dpo.documents import safe_loaders

_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")


@dataclass(frozen=True)
class ConfigLayer:
    """One source of settings: a YAML file, or one override as it was typed."""

    source: str
    text: str
    tree: Any
    is_file: bool

    @functools.cached_property
    def plain(self) -> Any:
        """`tree` as plain dicts and lists, interpolations as they stand."""
        from omegaconf import OmegaConf

        return self.tree if isinstance(self.tree, dict) else OmegaConf.to_container(self.tree)


def origin(key: str, layers: Sequence[ConfigLayer], *, exact: bool = False) -> tuple[str | None, int | None]:
    """(source, line) of the last layer that sets the dotted `key`, under whichever name.

    Unless that must be `exact`, of the nearest section above it where no layer does.
    """
    for layer in reversed(layers):
        for name in spellings(key):
            if _sets(layer.plain, name.split(".")):
                return layer.source, _line(layer.text, name.split(".")) if layer.is_file else None
    parts = key.split(".")
    for depth in range(0 if exact else len(parts) - 1, 0, -1):
        for layer in reversed(layers):
            if _sets(layer.plain, parts[:depth]):
                return layer.source, _line(layer.text, parts[:depth]) if layer.is_file else None
    return None, None


def place(layer: ConfigLayer, key: str, *, changed: bool) -> str | None:
    """Where in `layer` the dotted `key` is set; None where it neither is nor, under another name, has `changed`.

    A value that `layer` takes from the environment has its place there: the variable is named, and who asks for it.
    """
    parts = key.split(".")
    if not (changed or _sets(layer.plain, parts)):
        return None
    parts = next((named for name in spellings(key) if _sets(layer.plain, named := name.split("."))), parts)
    line = _line(layer.text, parts) if layer.is_file else None
    asked = layer.source if line is None else f"{layer.source}:{line}"
    names = ", ".join(dict.fromkeys(_variables(_value(layer.plain, parts))))
    return f"${names} ({asked})" if names else asked


def _variables(value: Any) -> Iterator[str]:
    """The environment variables that `value`, interpolations as they stand, is made of; a default counts where it is needed."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _variables(item)
    start = 0
    while isinstance(value, str) and (found := _FROM_ENVIRONMENT.search(value, start)):
        is_set = found[1] in os.environ
        yield from [found[1]] if is_set else []
        start = _closing(value, found.start()) if is_set else found.end()


def _closing(text: str, start: int) -> int:
    """The end of the interpolation that begins at `start`."""
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if text[end] == "}" and depth == 0:
            return end
    return len(text)


def _sets(node: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _value(node: Any, parts: Sequence[str]) -> Any:
    """What `parts` lead to, None where they lead nowhere."""
    for part in parts:
        node = node.get(part) if isinstance(node, dict) else None
    return node


@functools.lru_cache(maxsize=16)
def _composed(text: str) -> Any:
    """The nodes of `text`; None where only another parser reads it: that in C takes tabs that Python's refuses."""
    import yaml

    for loader in safe_loaders():
        with contextlib.suppress(yaml.YAMLError):
            return yaml.compose(text, Loader=loader)
    return None


def _line(text: str, parts: Sequence[str]) -> int | None:
    from yaml import MappingNode

    node, line = _composed(text), None
    for part in parts:
        pairs = node.value if isinstance(node, MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
