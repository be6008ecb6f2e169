"""What stands under a name in a folder that strangers may have made: a file, a folder, or what is neither."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import NOT_THERE

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def has_file(path: Path) -> bool:
    """Whether a file stands at `path`; False where nothing does.

    Raises UserError where something else does, or a link that leads nowhere: passed over, another file would count instead.
    """
    return _has(path, stat.S_IFREG)


def has_folder(path: Path) -> bool:
    """As `has_file`, of a folder."""
    return _has(path, stat.S_IFDIR)


def refuse_link_outside(path: Path, folder: Path) -> None:
    """Raise UserError where `path` of a model's `folder` leads out of it: a copy would hand on what lies there.

    Where a folder between them is the link, that one is named. Links of the Hugging Face cache, from a snapshot to the blobs
    beside all snapshots, are what they should be.
    """
    home = folder.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    names = path.relative_to(folder).parts
    for part in (folder.joinpath(*names[: number + 1]) for number in range(len(names))):
        if not any(part.resolve().is_relative_to(place) for place in allowed):
            remedy = f"put the {'folder' if part.is_dir() else 'file'} itself there, if it belongs to the model"
            raise UserError("is a link out of its folder", source=part, remedy=remedy)


def _has(path: Path, due: int) -> bool:
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if not isinstance(error, NOT_THERE) and error.errno != errno.ELOOP:
            raise
        if path.is_symlink():
            remedy = f"put {_KINDS[due]} there, or remove the link"
            raise UserError("is a link that leads nowhere", source=path, remedy=remedy) from None
        return False
    if kind != due:
        raise UserError(f"is {_KINDS.get(kind, 'something else')} where {_KINDS[due]} is due", source=path)
    return True
