"""Convert a policy between formats: load it whole in one process, write it in the other format, publish it by rename."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nemotron_dpo.checkpoint import adapters, hf, megatron, peft_folder, probe, tokenizer_files
from nemotron_dpo.checkpoint.families import wrapper_of
from nemotron_dpo.checkpoint.policy import DTYPES, open_policy, read_architecture, rest_folder, tokenizer_folder
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.allocator import return_freed_memory
from nemotron_dpo.policy.precision import set_precision
from nemotron_dpo.published import published_folder
from nemotron_dpo.sources import ModelSource, resolve


def export(
    source: ModelSource,
    output: Path,
    form: str,
    precision: str | None,
    verify: int = 0,
    add: Callable[[Path], object] = lambda folder: None,
) -> float | None:
    """Write `source` as `form` ("megatron", "hf" or, adapters alone, "peft") into the new folder `output`.

    `add` puts what else belongs to it into the folder before it takes its name. Process groups must exist. With `verify` > 0
    the source and the written policy score that many random pairs; returned is the largest difference of a token's log-prob.
    Raises UserError where it is too large. After any error `output` does not exist.
    """
    return_freed_memory()
    if source.base and source.kind != "peft" and adapters.read(source) is None:
        raise UserError("holds a whole policy, which has no base", source=source.path, remedy="leave --base out")
    if form == "peft":
        return _export_adapters(source, output, precision, add)
    model = open_policy(source, precision)
    rows = probe.rows(verify, model.architecture)
    before_R = probe.score(model, rows) if verify else None
    stored = read_architecture(source)
    if precision is None and stored.dtype == "float16":  # computed with in float32, which holds it exactly
        set_precision(model, torch.float16, states_in_float32=stored.states_in_float32)
        model.architecture = replace(model.architecture, dtype="float16")
    rest = None if wrapper_of(stored) is None else rest_folder(source)
    with published_folder(output) as folder:
        if form == "megatron":
            megatron.save(model, folder, source.iteration, tokenizer_folder(source), rest)
        else:
            hf.save(model, folder, getattr(torch, model.architecture.dtype), tokenizer_folder(source), rest=rest)
        add(folder)
        if before_R is None:
            return None
        del model  # two policies need not fit
        return probe.compare(before_R, probe.score(open_policy(resolve(folder), None), rows))


def _export_adapters(source: ModelSource, output: Path, precision: str | None, add: Callable[[Path], object]) -> None:
    if source.kind == "peft":
        raise UserError("is a peft folder already", source=source.path, remedy="--to hf merges it")
    if adapters.read(source) is None:
        raise UserError("holds no adapters", source=source.path, remedy="--to hf writes a whole policy")
    model = open_policy(source, precision, merged=False)
    with published_folder(output) as folder:
        peft_folder.save(model, folder, DTYPES[model.architecture.dtype])
        tokenizer_files.copy(tokenizer_folder(source), folder)
        add(folder)
