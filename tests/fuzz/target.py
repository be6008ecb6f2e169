"""A kind of input that strangers hand to us, and how its bytes are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
STEP = ROOT / "configs" / "rl" / "nemo_rl" / "dpo"


@dataclass(frozen=True)
class Target:
    """`sound` are inputs as they should be: bytes, or a tree that `written` makes bytes of. `read` gets these in a folder."""

    name: str
    sound: Callable[[], list[Any]]
    written: Callable[[Any], bytes]
    read: Callable[[Path, bytes], object]


def as_json(tree: Any) -> bytes:
    """JSON as Python writes it, with NaN and Infinity; one value a line where it is a list of rows."""
    return json.dumps(tree, default=str).encode(errors="surrogatepass")


def as_lines(rows: Any) -> bytes:
    """A row a line."""
    return b"\n".join(map(as_json, rows if isinstance(rows, list) else [rows])) + b"\n"


def as_yaml(tree: Any) -> bytes:
    """YAML; of what cannot be written so, JSON, which is YAML too."""
    try:
        return yaml.safe_dump(tree, sort_keys=False).encode(errors="surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return as_json(tree)


def as_words(words: Any) -> bytes:
    """One word a line, as arguments of a command."""
    return "\n".join(str(word) for word in (words if isinstance(words, list) else [words])).encode(errors="surrogatepass")


def as_is(content: Any) -> bytes:
    """Of sound inputs that are bytes."""
    return content if isinstance(content, bytes) else as_json(content)


def put(folder: Path, name: str, content: bytes) -> Path:
    """Write the file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
