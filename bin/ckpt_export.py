#!/usr/bin/env python3
"""Write a policy as a checkpoint_megatron or as a Hugging Face folder.

\b
    ckpt-export HF_DIR -o checkpoint_megatron --to megatron      import
    ckpt-export run -o aligned --to megatron                     the aligned checkpoint of a run
    ckpt-export run -o aligned-hf --to hf                        a folder transformers loads

SOURCE is a Hugging Face id or folder, a Megatron checkpoint (root or iter_*), or a run folder of dpo-train: its last
step, unless you name one (run/checkpoints/step_N). The output folder appears whole or not at all; it must not exist yet.
Weights keep their precision unless --precision says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

from nemotron_dpo import cli

PROGRAM = "ckpt-export"


@click.command(help=__doc__)
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option("--to", "form", required=True, type=click.Choice(["megatron", "hf"]), help="Format to write.")
@click.option("--precision", type=click.Choice(["bfloat16", "float32"]), help="Precision of the written weights.")
def command(source: str, output: Path, form: str, precision: str | None) -> None:
    from nemotron_dpo.sources import refuse_existing, resolve_run

    refuse_existing(output)
    found = resolve_run(source)
    from nemotron_dpo.checkpoint.export import export
    from nemotron_dpo.policy import parallel

    parallel.initialize()
    try:
        export(found, output, form, precision)
    finally:
        parallel.shut_down()
    cli.say(PROGRAM, f"{found.path} -> {output} ({form})")


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
