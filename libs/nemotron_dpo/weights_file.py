"""A safetensors file, opened; where it cannot be, the reason is the system's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dpo import machine_errors
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file

COMPLETE = "is the download complete?"


def opened(path: Path, framework: str, *, absent: str = COMPLETE) -> Any:
    """safetensors' reader of the file at `path`, whose tensors are those of `framework`.

    It is looked at first: of a file that a disk or a server does not give, safetensors (its issue 805) says that there is none.
    `absent` is the remedy where there is none indeed. Raises UserError.
    """
    from safetensors import SafetensorError, safe_open

    if not has_file(path):
        raise UserError("is missing", source=path, remedy=absent)
    try:
        path.open("rb").close()
    except OSError as error:
        raise machine_errors.as_user_error(machine_errors.at(error, path)) from None
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, RuntimeError) as error:  # the last is torch's, which maps the file once more
        raise UserError(f"cannot be read ({' '.join(str(error).split())})", source=path, remedy=COMPLETE) from None
