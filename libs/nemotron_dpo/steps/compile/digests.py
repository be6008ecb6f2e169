"""Content digests of what stages read: rows, tokenizers, policies. The digest of a large file is remembered on disk.

A remembered digest is used as long as the path, size, modification time and inode of the file are the same. It only saves
reading the file again.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import orjson

from nemotron_dpo import sources
from nemotron_dpo.preferences.data_sources import all_files, is_of_hub, resolve_data, source_names
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from nemotron_dpo.published import replacing

_REMEMBERED_BYTES = 1 << 20
# A file that changed this recently could change again with the same time stamp, so its digest is not remembered.
_SETTLED_SECONDS = 2
_POLICY_SUFFIXES = (".safetensors", ".distcp", ".pt", ".json", ".yaml", ".metadata", ".jinja", ".model")
_DATED = "strftime_now"


class Unknown(Exception):
    """The digest is not remembered, and to compute it would take a long read or the network, which a dry run must not use."""


class Digests:
    """sha256 digests by content, remembered in the file `memo`.

    With `peek`, for a dry run, methods raise Unknown for a large file, or data or a model of the hub, that is not remembered.
    """

    def __init__(self, memo: Path, *, peek: bool = False) -> None:
        self._memo_file = memo
        self._peek = peek
        self._memo: dict[str, str] = _read_memo(memo)
        self._changed = False

    def file(self, path: Path) -> str:
        """The digest of the bytes of one file."""
        state = path.stat()
        if state.st_size < _REMEMBERED_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        name = f"{os.path.realpath(path)}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}"
        if name in self._memo:
            return self._memo[name]
        if self._peek:
            raise Unknown(str(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - state.st_mtime > _SETTLED_SECONDS:
            self._memo[name] = digest
            self._changed = True
        return digest

    def data(self, name: str, split: str | None = None, subset: str | None = None) -> str:
        """The digest of the row files that are read for the data `name`, in order, and of the names of their pairs' sources."""
        files = self._data_files(name, split, subset)
        names = {name} if is_of_hub(name) else source_names(resolve_data([name], split, subset)).values()
        return _joined([*(self.file(Path(file)) for file in files), *names])

    def tokenizer(self, id_or_dir: str) -> str:
        """The digest of the tokenizer's files and its chat template, and of today's date if the template prints it."""
        folder = open_folder(self._folder(id_or_dir))
        return _joined([*folder.digests.values(), *_day(folder.template)])

    def template(self, text: str) -> str:
        """The digest of a chat template, and of today's date if the template prints it."""
        return _joined([hashlib.sha256(text.encode()).hexdigest(), *_day(text)])

    def policy(self, id_or_dir: str) -> str:
        """The digest of the weights, architecture and tokenizer of a policy; in a run folder, of its last checkpoint.

        Of adapters it is that of what their folder holds.
        """
        source = sources.resolve_adapters(self._folder(id_or_dir), None)
        folders = dict.fromkeys((source.path, source.tokenizer_folder))
        files = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if _counts(path))
        return _joined(f"{path.name}\0{self.file(path)}" for path in files)

    def save(self) -> None:
        """Write new digests to the memo file, merged with what other processes wrote there, and publish it by rename."""
        if not self._changed:
            return
        self._memo_file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._memo_file) as temporary:
            temporary.write_bytes(orjson.dumps({**_read_memo(self._memo_file), **self._memo}, option=orjson.OPT_INDENT_2))
        self._changed = False

    def _data_files(self, name: str, split: str | None, subset: str | None) -> list[str]:
        """The row files of the data. A data set of the hub is resolved there, or with `peek` to its last known files."""
        if not is_of_hub(name):
            return all_files(resolve_data([name], split, subset))
        noted = f"data\0{name}\0{split}\0{subset}"
        if not self._peek:
            self._memo[noted] = "\0".join(all_files(resolve_data([name], split, subset)))
            self._changed = True
        files = self._memo.get(noted, "").split("\0")
        if not all(Path(file).is_file() for file in files):
            raise Unknown(name)
        return files

    def _folder(self, id_or_dir: str) -> str:
        """The folder of a model. A Hugging Face id is resolved on the hub, or with `peek` to the folder it last resolved to."""
        if Path(id_or_dir).expanduser().is_dir():
            return id_or_dir
        name = f"model\0{id_or_dir}"
        if not self._peek:
            self._memo[name] = str(sources.resolve(id_or_dir).path)
            self._changed = True
        if not Path(self._memo.get(name, "")).is_dir() or name not in self._memo:
            raise Unknown(id_or_dir)
        return self._memo[name]


def _counts(path: Path) -> bool:
    return path.is_file() and (path.suffix in _POLICY_SUFFIXES or path.name == ".metadata")


def _day(template: str | None) -> list[str]:
    return [datetime.date.today().isoformat()] if template and _DATED in template else []


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_memo(path: Path) -> dict[str, str]:
    try:
        memo = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return memo if isinstance(memo, dict) else {}
