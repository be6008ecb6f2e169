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
