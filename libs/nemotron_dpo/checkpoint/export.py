"""Convert a policy between formats: load it whole in one process, write it in the other form, publish by rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemotron_dpo.checkpoint import hf, megatron
from nemotron_dpo.checkpoint.policy import DTYPES, open_policy, tokenizer_folder
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import ModelSource


def export(source: ModelSource, output: Path, form: str, precision: str | None) -> None:
    """Write `source` as `form` ("megatron" or "hf") into the new folder `output`; process groups must exist."""
    model, shape = open_policy(source, precision)
    with published_folder(output) as folder:
        if form == "megatron":
            megatron.save(model, shape, folder, source.iteration, tokenizer_folder(source))
        else:
            hf.save(model, shape, folder, DTYPES[shape.dtype], tokenizer_folder(source))


@contextlib.contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the name `target` when the block ends well and disappears when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, UserError) and error.source is None:
            error.source = str(target)
        raise
