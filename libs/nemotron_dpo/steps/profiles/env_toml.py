"""Write an env.toml for a cluster from a commented template, with keys of its profiles set.

python -m nemotron_dpo.steps.profiles.env_toml TEMPLATE -o env.slurm.toml [--force] [PROFILE.KEY=TOML_VALUE ...]

PROFILE may go on to a table in it, as in slurm_base.env_vars. A key takes the place of the template's line for it, be it a
comment (`# key = ...`); what the template lacks is added at the end of its table. A file that exists is left alone unless
--force is given.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import orjson

from nemotron_dpo.config import redact
from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import as_user_error
from nemotron_dpo.paths import refuse_overwriting
from nemotron_dpo.published import replacing
from nemotron_dpo.steps.profiles.env_file import NOT_PROFILES
from nemotron_dpo.steps.profiles.keys import known_key, nearest_key

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


def main() -> NoReturn:
    """Entry point."""
    parser = argparse.ArgumentParser("env-toml", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", type=Path)
    parser.add_argument("settings", nargs="*", metavar="PROFILE.KEY=TOML_VALUE")
    parser.add_argument("-o", dest="output", required=True, type=Path)
    parser.add_argument("--force", action="store_true", help="Replace a file that exists.")
    arguments = parser.parse_args()
    try:
        write_env_toml(arguments.template, arguments.settings, arguments.output, force=arguments.force)
    except UserError as error:
        sys.exit(f"env-toml: error: {error}")
    except OSError as error:
        sys.exit(f"env-toml: error: {as_user_error(error)}")
    sys.exit(0)


def write_env_toml(template: Path, settings: Sequence[str], output: Path, *, force: bool) -> None:
    """Fill in `template` and write it. Raises UserError where `output` exists and `force` is not given, or nothing fits."""
    if output.exists() and not force:
        raise UserError("exists already", source=output, remedy="force=true replaces it, output_path=FILE writes another")
    if not template.is_file():
        raise UserError("no such template", source=template)
    refuse_overwriting({"-o": str(output)}, [template])
    text = template.read_text(encoding="utf-8")
    for setting in settings:
        text = with_setting(text, setting)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"would not be TOML ({error})", source=output) from None
    try:
        with replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such folder", source=output.parent) from None


def checked_settings(sections: Mapping[str, Any]) -> list[str]:
    """`sections` as PROFILE.KEY=TOML_VALUE, one for each key of a table in a profile.

    Raises UserError for a key that no executor has, for what TOML cannot hold, and for a secret: it has no place in a file.
    """
    words = []
    for profile, keys in sections.items():
        if not isinstance(keys, dict):
            raise UserError("is no mapping of keys", field=f"sections.{profile}", remedy=f"give sections.{profile}.KEY=VALUE")
        for key in keys if profile not in NOT_PROFILES else ():
            _check_known(str(profile), str(key))
        words += _flat(str(profile), keys)
    return words


def _flat(table: str, keys: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in keys.items():
        name = f"{table}.{key}"
        if isinstance(value, dict) and value:
            words += _flat(name, value)
        else:
            _check(name, str(key), value)
            words.append(f"{name}={_toml(value)}")
    return words


def _check_known(profile: str, key: str) -> None:
    if _NAME.fullmatch(f"{profile}.{key}") and known_key(key) is None:
        raise UserError("is no known key", field=f"sections.{profile}.{key}", remedy=nearest_key(key))


def _check(name: str, key: str, value: Any) -> None:
    field = f"sections.{name}"
    if not _NAME.fullmatch(name):
        raise UserError("is no name of a key", field=field, remedy="letters, digits, _ and - make one")
    if redact(value, key) != value:
        remedy = "leave it to the environment of the one who runs"
        raise UserError("is a secret, which has no place in a file", field=field, remedy=remedy)
    if value is None:
        raise UserError("is null, which TOML does not have", field=field, remedy="leave it out")
    if (known := known_key(key)) and known.kind.is_time and not isinstance(value, str):
        raise UserError("is a number to YAML", field=field, remedy=f"""quote it: '{field}="HH:MM:SS"'""")


def with_setting(text: str, setting: str) -> str:
    """`text` with PROFILE.KEY=TOML_VALUE in it."""
    name, _, value = setting.partition("=")
    profile, _, key = name.rpartition(".")
    head = re.search(rf"^\[{re.escape(profile)}\][^\n]*\n", text, re.M)
    if head is None:
        return f"{text.rstrip()}\n\n[{profile}]\n{key} = {value}\n"
    following = re.search(r"^\[", text[head.end() :], re.M)
    end = head.end() + following.start() if following else len(text)
    table = text[head.end() : end]
    line = re.compile(rf"^(?:# ?)?{re.escape(key)} = [^\n]*?(?P<comment> +# [^\n]*)?$", re.M)
    if line.search(table):
        table = line.sub(lambda found: f"{key} = {value}{found['comment'] or ''}", table, count=1)
    elif following and "\n\n" in table:  # before the comments that introduce the next table
        cut = table.rindex("\n\n") + 1
        table = f"{table[:cut]}{key} = {value}\n{table[cut:]}"
    else:
        table = f"{table.rstrip()}\n{key} = {value}\n".lstrip("\n") + ("\n" if following else "")
    return text[: head.end()] + table + text[end:]


def _toml(value: Any) -> str:
    """`value` in TOML; JSON's strings, numbers and switches are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return orjson.dumps(value).decode()


if __name__ == "__main__":
    main()
