"""Write our config of a YAML file of TRL, Axolotl or LLaMA-Factory, and say what came of each key.

python -m nemotron_dpo.steps.from_trl THEIRS.yaml -o OURS.yaml [--processes N] [--num-pairs N] [--ignore KEY]...

A key that would change the result and has no counterpart is an error that names it; --ignore KEY says that it is to count for
nothing. A file that exists is left alone unless --force is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from nemotron_dpo.config import load_run
from nemotron_dpo.config.theirs import Choices, Converted, as_yaml, convert, read_theirs
from nemotron_dpo.errors import UserError
from nemotron_dpo.machine_errors import as_user_error
from nemotron_dpo.paths import refuse_overwriting
from nemotron_dpo.published import replacing


def main() -> NoReturn:
    """Entry point."""
    parser = argparse.ArgumentParser("from-trl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("-o", dest="output", required=True, type=Path)
    parser.add_argument("--processes", type=int, help="Processes that train.")
    parser.add_argument("--num-pairs", type=int, help="Pairs in the training set, where a key is a part of an epoch or a run.")
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY", help="Count a key of theirs for nothing.")
    parser.add_argument("--train-data", help="Rows to train on, in place of theirs.")
    parser.add_argument("--validation-data", help="Rows to validate on, in place of theirs.")
    parser.add_argument("--program", choices=["trl", "axolotl", "llama_factory"], help="Whose config it is; else it tells.")
    parser.add_argument("--force", action="store_true", help="Replace a file that exists.")
    asked = vars(parser.parse_args())
    theirs, output, force = (asked.pop(name) for name in ("theirs", "output", "force"))
    try:
        for line in write_ours(theirs, output, Choices(**{**asked, "ignore": tuple(asked["ignore"])}), force=force):
            print(f"from-trl: {line}", file=sys.stderr)
    except UserError as error:
        sys.exit(f"from-trl: error: {error}")
    except OSError as error:
        sys.exit(f"from-trl: error: {as_user_error(error)}")
    sys.exit(0)


def write_ours(theirs: Path, output: Path, choices: Choices, *, force: bool) -> list[str]:
    """Convert the file `theirs` into `output`, once our loader has read it; the lines to say about it.

    Raises UserError where a key has no counterpart and would change the result, and writes nothing then.
    """
    if output.exists() and not force:
        raise UserError("exists already", source=output, remedy="force=true replaces it, output_path=FILE writes another")
    refuse_overwriting({"-o": str(output)}, [theirs])
    config = read_theirs(theirs)
    made = convert(config.tree, choices)
    if made.refusals:
        raise config.refusal(made.refusals)
    try:
        with replacing(output) as temporary:
            temporary.write_text(as_yaml(made, str(theirs)), encoding="utf-8")
            warnings = _loaded(temporary, made, theirs)
    except FileNotFoundError:
        raise UserError("no such folder", source=output.parent) from None
    said = [f"warning: {line.replace(str(temporary), str(output))}" for line in warnings]
    return [*_remarks(made), *said, f"{theirs} -> {output}"]


def _loaded(written: Path, made: Converted, theirs: Path) -> list[str]:
    """What our loader remarks on the config. Raises UserError about theirs where it refuses it."""
    try:
        return load_run(written, [])[1]
    except UserError as error:
        key = f"{error.field}."
        why = next((item.why for item in made.written if key.startswith(f"{item.key}.") or item.key.startswith(key)), None)
        what = f"{why} comes to {error.field} here, which {error.message}" if why else f"{error.field} {error.message}"
        raise UserError(what, source=theirs, remedy=error.remedy) from None


def _remarks(made: Converted) -> list[str]:
    lines = [f"warning: {key} is no key of theirs that is known here, and has no effect" for key in made.unknown]
    lines += [f"warning: {key}: {text}" for key, text in made.differs.items()]
    lines += [f"{key} is left out, as you say" for key in made.ignored]
    if made.idle:
        one = len(made.idle) == 1
        many = f"{len(made.idle)} key{'s' * (not one)} {'has' if one else 'have'}"
        lines.append(f"{many} no counterpart here ({', '.join(made.idle)}); the file says why")
    return lines


if __name__ == "__main__":
    main()
