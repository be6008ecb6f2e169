"""A user's own objective, from a Python file that the command line names. It runs that file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from nemotron_dpo.config.dpo import DpoConfig, OwnObjective
from nemotron_dpo.config.objective import Part
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.protocol import Needs, Objective
from nemotron_dpo.objective.registry import ON_RATIOS, Entry

OPTION = "--objective"
_IS_ONE = "a frozen dataclass with needs, terms and losses, as those in objective/losses"


def load_objective(text: str) -> OwnObjective:
    """The objective that `text`, FILE.py:NAME, says. Raises UserError where it says none, or what is there is none."""
    path, colon, name = text.rpartition(":")
    if not (colon and path and name.isidentifier()):
        raise UserError("is no FILE.py:NAME", source=f"{OPTION} {text}", usage=True)
    file = Path(path).expanduser()
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", source=path) from None
    module = _executed(file, source)
    if not hasattr(module, name):
        own = [known for known, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise UserError(f"has no {name}", source=path, remedy=f"it has {', '.join(own)}" if own else None)
    entry = _checked(getattr(module, name), name, path)
    return OwnObjective(entry, f"sha256:{hashlib.sha256(source).hexdigest()}")


def _executed(file: Path, source: bytes) -> Any:
    """The module that `source`, the content of `file`, makes. It is what was digested, whatever happens to the file."""
    name = f"objective_of_{file.stem}"
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))  # type: ignore[arg-type] - a spec without a loader is one
    module.__file__ = str(file)
    sys.modules[name] = module  # where dataclasses look for it
    with blamed(file):
        exec(compile(source, str(file), "exec"), vars(module))
    return module


@contextlib.contextmanager
def blamed(file: str | Path) -> Iterator[None]:
    """Whatever the code of the user's `file` raises is the user's to mend: a UserError with its line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"is no Python: {error.msg}", source=file, line=error.lineno) from None
    except (Exception, SystemExit) as error:
        raise UserError(_told(error), source=file, line=_line_of(error, str(file))) from None


def _checked(made: Any, name: str, path: str) -> Entry:
    """The entry of `made`. Raises UserError unless it is the dataclass of an objective whose settings the config has."""
    if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
        raise UserError(f"{name} is no objective: it must be {_IS_ONE}", source=path)
    missing = [part for part in ("needs", "terms", "losses") if not hasattr(made, part)]
    if missing:
        raise UserError(f"{name} has no {' and no '.join(missing)}: it must be {_IS_ONE}", source=path)
    if not isinstance(vars(made).get("needs"), Needs | property):
        raise UserError(f"{name}.needs is no Needs(...) of nemotron_dpo.objective.protocol", source=path)
    modifiers = tuple(getattr(made, "modifiers", ON_RATIOS))
    entry = Entry(name, cast(Callable[..., Objective], made), formula="", source=path, use="", modifiers=modifiers)
    known = {item.name for item in dataclasses.fields(DpoConfig)}
    settings = Part(entry).settings.items()
    without = [item.name for key, item in settings if key not in known and item.default is dataclasses.MISSING]
    if without:
        remedy = "give it a default in the file, or call it as a key below dpo is called"
        raise UserError(f"{name} has a field {without[0]}, which no key of a config sets", source=path, remedy=remedy)
    return entry


def _told(error: BaseException) -> str:
    return f"does not run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _line_of(error: BaseException, file: str) -> int | None:
    """The last line of `file` that `error` came through."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == file else []
        trace = trace.tb_next
    return lines[-1] if lines else None
