"""`integrity.json`: the sha256 of every file of a checkpoint's iteration folder, in megatron-core's own form.

megatron-core (0.19 and later, `verify_integrity=True`) lists the files directly in the folder. We also list those of its
subfolders, which megatron-core's check accepts. Nothing here imports torch, so that tokenization can check a checkpoint's
tokenizer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file

NAME = "integrity.json"
_REMEDY = f"copy it again, or remove it from {NAME} if you changed it"

# (a file, what is wrong with it, the remedy)
FileProblem = tuple[str, str, str]


def write(folder: Path, pattern: str = "*") -> None:
    """Write the list of every file like `pattern` that now lies in `folder` and its subfolders."""
    import orjson

    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob(pattern)) if path.is_file()}
    digests = {name: _sha256(path) for name, path in files.items() if name != NAME}
    (folder / NAME).write_bytes(orjson.dumps({"algorithm": "sha256", "files": digests}, option=orjson.OPT_INDENT_2))


def listed(folder: Path) -> dict[str, str]:
    """Name of each listed file, relative to `folder` -> its sha256; {} without a list. Raises UserError where it is damaged."""
    import orjson

    path = folder / NAME
    if not has_file(path):
        return {}
    try:
        listing = orjson.loads(path.read_bytes())
        if listing["algorithm"] != "sha256":
            raise UserError(f"uses {listing['algorithm']}, which is not supported", source=path)
        files = {str(name): str(digest) for name, digest in listing["files"].items()}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is damaged ({type(error).__name__}: {error})", source=path, remedy="copy it again") from None
    outside = next((name for name in files if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name), None)
    if outside is not None:
        raise UserError(f"names the file {outside!r} outside the checkpoint", source=path)
    return files


def problem(folder: Path, name: str, digest: str) -> FileProblem | None:
    """What is wrong with the listed file `name`; None where its content has the listed digest."""
    path = folder / name
    if not path.is_file():
        return str(path), f"is missing, though {NAME} lists it", _REMEDY
    return None if _sha256(path) == digest else (str(path), f"is damaged: its sha256 is not the one in {NAME}", _REMEDY)


def check(folder: Path, name: str) -> None:
    """Raise UserError where the list of `folder` has another digest of the file `name`; it need not list it.

    For what is read before all files are looked at: damaged text may say something else that can be read.
    """
    digest = listed(folder).get(name)
    found = problem(folder, name, digest) if digest else None
    if found is not None:
        raise UserError(found[1], source=found[0], remedy=found[2])


def unlisted(folder: Path, files: dict[str, str]) -> FileProblem | None:
    """A file that was added to a subfolder after `files` were listed. Subfolders of which nothing is listed are not checked."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        below = name.partition("/")[0] + "/"
        if path.is_file() and "/" in name and name not in files and any(other.startswith(below) for other in files):
            remedy = f"remove it, or all of {below} from {NAME} if it belongs there"
            return str(path), f"is not listed in {NAME}, which lists the others of {below}", remedy
    return None


def check_subfolder(subfolder: Path) -> None:
    """Raise UserError where the files of `subfolder` differ from the list beside it; a list need not have any of them."""
    folder = subfolder.parent
    files = {name: digest for name, digest in listed(folder).items() if name.startswith(f"{subfolder.name}/")}
    problems = [problem(folder, name, digest) for name, digest in files.items()] + [unlisted(folder, files)]
    for found in problems:
        if found is not None:
            raise UserError(found[1], source=found[0], remedy=found[2])


def left_out(folder: Path, subfolder: str) -> bool:
    """Whether `folder` has a list without the files of `subfolder`. Our earlier versions did not list subfolders."""
    files = listed(folder)
    return bool(files) and (folder / subfolder).is_dir() and not any(name.startswith(f"{subfolder}/") for name in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
