"""Paths as people write them: `~` is a home folder, caches lie in one, and no output may overwrite an input."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from nemotron_dpo.errors import UserError

# the files that are read in the folder of a policy or a tokenizer
_OF_MODELS = (
    "*config.json", "*config.yaml", "tokenizer*", "vocab.*", "merges.txt", "*tokens*.json", "chat_template*",
    "*.safetensors", "*.safetensors.index.json", "*.distcp", ".metadata", "common.pt", "latest*",
)  # fmt: skip


def expand_home(path: str) -> str:
    """`path` with its leading ~ or ~user replaced by the home folder. Shells do not replace it in --option=~/x or in quotes.

    Raises UserError where there is no such user, or no home folder is known.
    """
    if not path.startswith("~") or os.path.lexists(path):
        return path
    expanded = os.path.expanduser(path)
    if expanded != path:
        return expanded
    user = path.split("/", 1)[0]
    what = "the home folder is not known: HOME is not set" if user == "~" else f"there is no user {user[1:]}"
    raise UserError(what, source=path, remedy=f"./{path} would be a file here")


def cache_home(environ: Mapping[str, str]) -> Path:
    """The folder of the user's caches. The XDG specification has a relative XDG_CACHE_HOME ignored.

    Raises RuntimeError where there is none and no home folder is known.
    """
    given = environ.get("XDG_CACHE_HOME", "")
    return Path(given) if os.path.isabs(given) else Path.home() / ".cache"


def refuse_overwriting(outputs: Mapping[str, str | None], inputs: Iterable[str | Path | None]) -> None:
    """Raise UserError (usage) where an output would overwrite an input or another output.

    `outputs` maps options to files; `inputs` are files and folders of models. "-" is the standard stream, None stands for an
    option that was not given. Files are compared and not their names: a link to an input counts as the input.
    """
    written: dict[str, tuple[str, object]] = {}
    read = {identity: str(path) for path in inputs if path for identity in _inputs(str(path))}
    for option, path in outputs.items():
        identity = _identity(path, 1) if path else None
        if path is None or identity is None:
            continue
        if identity in read:
            what = f"{option} would be written over what is read: {read[identity]}"
            raise UserError(what, source=_shown(path), remedy="name another file", usage=True)
        for other, (_, theirs) in written.items():
            if theirs == identity:
                raise UserError(f"is named by {other} and by {option}", source=_shown(path), usage=True)
        written[option] = (path, identity)


def _inputs(path: str) -> Iterable[object]:
    folder = Path(path)
    if path != "-" and folder.is_dir():
        files = [file for file in folder.iterdir() if any(fnmatch(file.name, pattern) for pattern in _OF_MODELS)]
    else:
        files = [path]
    return filter(None, (_identity(str(file), 0) for file in files))


def _identity(path: str, descriptor: int) -> object:
    """What all names of one regular file share, whether it exists yet or not; None for a terminal, a pipe or /dev/null."""
    try:
        state = os.fstat(descriptor) if path == "-" else os.stat(path)
    except OSError:
        return None if path == "-" else os.path.realpath(path)
    return (state.st_dev, state.st_ino) if stat.S_ISREG(state.st_mode) else None


def _shown(path: str) -> str:
    return "<stdout>" if path == "-" else path
