"""What stands on a command line: paths, files with names, and options that do not go together."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from nemotron_dpo import paths
from nemotron_dpo.errors import UserError


class _UserPath(click.ParamType):
    """A file, a folder, "-", or the id of a model. A leading ~ becomes the home folder."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return paths.expand_home(value)


PATH = _UserPath()


def named_files(option: str, values: Sequence[str]) -> dict[str, Path]:
    """The files that the `values` of an option give, by name: [NAME=]FILE, where the one without a name is `default`.

    A path that exists is one, even with a "=" in it. Raises UserError (usage).
    """
    files: dict[str, Path] = {}
    for value in values:
        name, found, path = value.partition("=")
        if Path(paths.expand_home(value)).exists() or not found:
            name, path = "default", value
        place = f"{option} {value}"
        if not (path and re.fullmatch(r"[\w.-]+", name)):
            remedy = "NAME has letters, digits, . _ -"
            raise UserError("is neither a file nor NAME=FILE", source=place, remedy=remedy, usage=True)
        if name in files:
            message = f"the set {name} is {files[name]} already"
            raise UserError(message, source=place, remedy="give each a NAME=FILE of its own", usage=True)
        files[name] = Path(paths.expand_home(path))
    return files


def refuse_given(names: Collection[str], why: str) -> None:
    """Raise UsageError where one of the parameters `names` of the command that runs stands on the command line."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} {why}")
