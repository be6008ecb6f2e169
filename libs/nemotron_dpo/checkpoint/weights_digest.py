"""What names a policy by its content: a digest over its tensors and what is computed with them, wherever and however stored.

A Hugging Face folder, its Megatron import, a checkpoint of other shards, a copy and a renamed folder are one policy: they give
the same log-probs, and scores of one serve for all. So each parameter is digested as it is in a model of one process. Values
count and not their dtype, since a policy is computed at the precision that is asked for: float32 that holds bfloat16 values is
the same policy. Fields of a config that decide no log-prob do not count, as those of special tokens.

A digest is remembered in the user's cache by path, size, times and inode of every file it was made from, and
computed anew where one of them changed. It is that of the files (`ModelSource.files_digest`) for adapters, which are no policy
without their base.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import cache_home
from nemotron_dpo.published import replacing
from nemotron_dpo.sources import ModelSource

if TYPE_CHECKING:
    from nemotron_dpo.checkpoint.hf_weights import Rule
    from nemotron_dpo.policy.architecture import Architecture, Layer

OF_TENSORS, OF_FILES = "tensors:", "sha256:"  # how digests begin
_VERSION = 1
# fields of an Architecture that no log-prob depends on, beyond what the tensors' shapes say
_INERT = {
    "dtype": "",
    "family": "",
    "around": None,
    "max_position_embeddings": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_SETTLED_SECONDS = 2  # a file that changed this recently could change again with the same time stamp
_AT_ONCE = 4  # tensors that are in memory and being digested


def weights_digest(source: ModelSource) -> str:
    """The digest of the policy `source`. Raises UserError where its weights cannot be read or are not those of its config."""
    files = source.weight_files()
    states = [path.stat() for path in files]
    state = [[os.path.realpath(path), *_state(s)] for path, s in zip(files, states, strict=True)]
    name = hashlib.sha256(orjson.dumps([_VERSION, state])).hexdigest()
    known = _read_memo().get(name)
    if known is not None:
        return known
    if _is_adapted(source):
        return source.files_digest()
    digest = _computed(source)
    if all(time.time() - s.st_mtime > _SETTLED_SECONDS for s in states):
        _remember(name, digest)
    return digest


def is_digest_of(digest: str | None, source: ModelSource) -> bool:
    """Whether `digest` names the weights of `source`. Earlier versions digested files: theirs name the same files alone."""
    if digest is None:
        return False
    if digest.startswith(OF_FILES):
        return digest in (source.files_digest(), source.former_files_digest())
    return digest == weights_digest(source)


def _is_adapted(source: ModelSource) -> bool:
    from nemotron_dpo.checkpoint import adapters  # it imports megatron-core, which takes seconds

    return source.kind == "peft" or adapters.read(source) is not None


def _state(of: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's content. Only the time of change tells of an inode that was given up and taken again."""
    return of.st_size, of.st_mtime_ns, of.st_ino, of.st_ctime_ns


def _computed(source: ModelSource) -> str:
    from nemotron_dpo.checkpoint.policy import read_architecture

    architecture = read_architecture(source)
    whole = hashlib.sha256(f"{_VERSION}\n".encode())
    whole.update(orjson.dumps(_described(replace(architecture, **_INERT)), option=orjson.OPT_SORT_KEYS))
    for line in sorted(_digested(_parameters(source, architecture))):
        whole.update(line.encode())
    return f"{OF_TENSORS}{whole.hexdigest()}"


def _described(value: Any) -> Any:
    """A tree of dataclasses as JSON has it. Fields at their default are left out, so that a new one changes no old digest."""
    if is_dataclass(value):
        kept = {f.name: getattr(value, f.name) for f in fields(value) if f.compare and getattr(value, f.name) != _default(f)}
        return {"is": type(value).__name__, **{name: _described(item) for name, item in kept.items()}}
    return [_described(item) for item in value] if isinstance(value, list | tuple) else value


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _parameters(source: ModelSource, architecture: Architecture) -> Iterator[tuple[str, Any]]:
    """Every parameter of the whole policy by its name in a model of one process."""
    from nemotron_dpo.checkpoint.families import rules
    from nemotron_dpo.checkpoint.hf import layer_at, open_weights, places
    from nemotron_dpo.checkpoint.stored_tensors import StoredTensors

    weights = open_weights(source.path, architecture) if source.kind == "hf" else None
    stored = None if weights is not None else StoredTensors(source.path)
    for rule in rules(architecture):
        for place in places(architecture, rule):
            name = rule.megatron.format(*place)
            if weights is not None:
                parts = [weights.read(key.format(*place)) for key in rule.hf]
                yield name, _merged(rule, layer_at(architecture, place), parts, source.path)
            elif stored is not None:
                tensor = stored.read(name)
                yield name, tensor[: architecture.vocab_size] if name in _OVER_VOCABULARY else tensor


def _merged(rule: Rule, layer: Layer | None, parts: list[Any], folder: Path) -> Any:
    try:
        return rule.merge(layer, parts)
    except RuntimeError:
        shapes = " and ".join(f"{key} {tuple(part.shape)}" for key, part in zip(rule.hf, parts, strict=True))
        what = f"{shapes} cannot make {rule.megatron}"
        raise UserError(what, source=folder, remedy="does config.json belong to these weights?") from None


_OVER_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")  # Megatron-LM pads them


def _digested(parameters: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """A line a parameter. Hashing leaves the interpreter free, so several go on at once."""
    waiting: deque[Future[str]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, tensor in parameters:
            waiting.append(pool.submit(_line, name, tensor))
            if len(waiting) == _AT_ONCE:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _line(name: str, tensor: Any) -> str:
    """Name, shape and digest of the values: their upper 16 bits as float32 where the others are all zero, else all 32."""
    import torch

    bits = tensor.detach().contiguous()
    if bits.dtype != torch.bfloat16:
        whole = bits.float().view(torch.int32)
        upper = whole >> 16
        bits = upper.to(torch.int16) if torch.equal(upper << 16, whole) else whole
    raw = bits.contiguous().view(torch.uint8).numpy().data
    return f"{name} {tuple(tensor.shape)} {bits.element_size()} {hashlib.sha256(raw).hexdigest()}\n"


def _memo_file() -> Path | None:
    try:
        return cache_home(os.environ) / "nemotron-dpo" / "weights.json"
    except RuntimeError:  # no home folder
        return None


def _read_memo() -> dict[str, str]:
    path = _memo_file()
    try:
        memo = {} if path is None else json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _remember(name: str, digest: str) -> None:
    """Add to the memo, with what other processes wrote to it. Where it cannot be written, the next time computes anew."""
    path = _memo_file()
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(orjson.dumps({**_read_memo(), name: digest}, option=orjson.OPT_INDENT_2))
