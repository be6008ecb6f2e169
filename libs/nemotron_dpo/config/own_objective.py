"""A user's own objective, from a Python file that the command line names. It runs that file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from nemotron_dpo.config.dpo import DpoConfig, OwnObjective
from nemotron_dpo.config.objective import SFT, Part
from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.modified import modifiers
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
def blamed(file: str | Path, *, its_own: bool = False) -> Iterator[None]:
    """Whatever the code of the user's `file` raises is the user's to mend: a UserError with its line.

    With `its_own` only that, and not what other code raises meanwhile.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if its_own and _line_of(error, str(file)) is None:
            raise
        raise _blame(error, file) from None
    except SystemExit as error:
        raise _blame(error, file) from None


def _blame(error: BaseException, file: str | Path) -> UserError:
    if isinstance(error, SyntaxError):
        return UserError(f"is no Python: {error.msg}", source=file, line=error.lineno)
    return UserError(_told(error), source=file, line=_line_of(error, str(file)))


def _checked(made: Any, name: str, path: str) -> Entry:
    """The entry of `made`. Raises UserError unless it is the dataclass of an objective whose settings the config has."""
    params = getattr(made, "__dataclass_params__", None)
    if not (isinstance(made, type) and params is not None and params.frozen):
        raise UserError(f"{name} is no objective: it must be {_IS_ONE}", source=path)
    missing = [part for part in ("needs", "terms", "losses") if not hasattr(made, part)]
    if missing:
        raise UserError(f"{name} has no {' and no '.join(missing)}: it must be {_IS_ONE}", source=path)
    needs = inspect.getattr_static(made, "needs")
    if not isinstance(needs, Needs | property):
        raise UserError(f"{name}.needs is no Needs(...) of nemotron_dpo.objective.protocol", source=path)
    missing = [part for part in ("state", "with_state", "after") if not hasattr(made, part)]
    if isinstance(needs, Needs) and needs.state and missing:
        raise UserError(f"{name} needs a state and has no {' and no '.join(missing)}: see Stateful", source=path)
    if name == SFT:  # its weight, and whether it averages, have keys of their own
        raise UserError(f"{name} is the name of an objective of ours", source=path, remedy="call it otherwise")
    entry = Entry(name, cast(Callable[..., Objective], made), formula="", source=path, use="", modifiers=_modifiers(made, path))
    _check_fields(entry)
    return entry


def _modifiers(made: type, path: str) -> tuple[str, ...]:
    given = getattr(made, "modifiers", ON_RATIOS)
    unknown = [given] if isinstance(given, str) else [one for one in given if one not in modifiers()]
    if unknown:
        message = f"{made.__name__}.modifiers has {unknown[0]!r}: it must be a tuple of {', '.join(modifiers())}"
        raise UserError(message, source=path)
    return tuple(given)


def _check_fields(entry: Entry) -> None:
    """Raise UserError for a field without a value, and for one to which a key gives a value that means another thing."""
    keys = {item.name: item for item in dataclasses.fields(DpoConfig)}
    for key, item in Part(entry).settings.items():
        if key not in keys and item.default is dataclasses.MISSING:
            remedy = "give it a default in the file, or call it as a key below dpo is called"
            raise UserError(
                f"{entry.name} has a field {item.name}, which no key of a config sets", source=entry.source, remedy=remedy
            )
        if key in keys and "is_setting" not in keys[key].metadata and item.name != "beta":
            message = f"{entry.name} has a field {item.name}, and dpo.{key} is no setting of an objective"
            raise UserError(message, source=entry.source, remedy="call it otherwise")


def _told(error: BaseException) -> str:
    return f"does not run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _line_of(error: BaseException, file: str) -> int | None:
    """The last line of `file` that `error` came through."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == file else []
        trace = trace.tb_next
    return lines[-1] if lines else None
