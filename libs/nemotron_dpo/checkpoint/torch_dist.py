"""megatron-core's dist_checkpointing, for checkpoints from untrusted sources and for all of NVIDIA's tools.

Saving adds `common.pt`, which older tools need. Loading first checks everything that would be unpickled, and that the files
still hold what was written. A caller writes integrity.json itself, after its last file.
"""

from __future__ import annotations

import inspect
import io
import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.api import CheckpointException

from nemotron_dpo import machine_errors
from nemotron_dpo.checkpoint import integrity, untrusted
from nemotron_dpo.errors import UserError
from nemotron_dpo.policy.patches import overwrite

_FAILURES = (CheckpointException, CheckpointingException, RuntimeError, OSError)
_DAMAGE = (*_FAILURES, EOFError, ValueError, KeyError, TypeError, AssertionError, AttributeError)


def save(state: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """Write the sharded state dict `state` into the existing, empty `folder`; every rank calls it.

    `content` is the metadata that `sharded_state_dict(metadata=...)` was given. Raises UserError where the folder
    cannot be written.
    """
    _write_in_this_process()
    try:
        dist_checkpointing.save(state, str(folder), content_metadata=content)
        if dist.get_rank() == 0 and not (folder / "common.pt").exists():  # the only one that older versions read
            _, common = untrusted.check(folder)
            write_tensors(common, folder / "common.pt")
    except _FAILURES as error:
        found = machine_errors.behind(error) or _unwritable(folder)
        what = found.message if found else _reason(error)
        raise UserError(f"cannot be written ({what})", remedy=found.remedy if found else "is the disk full?") from None


def write_tensors(value: Any, path: Path) -> None:
    """torch.save `value`. Raises OSError where it cannot be written; of torch's own writer nobody hears why."""
    content = io.BytesIO()
    torch.save(value, content)
    path.write_bytes(content.getbuffer())


def _unwritable(folder: Path) -> UserError | None:
    """Why nothing more can be written into `folder`, where that is so: torch's writer has not said why it failed."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(1 << 20))
        probe.unlink()
    except OSError as error:
        return machine_errors.as_user_error(error)
    return None


def load(wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of the sharded state dict `wanted`, from `folder`. Every rank calls it.

    Raises UserError where the checkpoint is damaged, incomplete, of another model, or holds objects that could run code.
    """
    metadata, common = untrusted.check(folder, wanted)
    integrity.verify(folder, metadata)
    try:
        state = dist_checkpointing.load(wanted, str(folder), **_given(common))
    except _DAMAGE as error:
        what = f"cannot be loaded ({_reason(error)})"
        raise UserError(what, source=folder, remedy="is it of another model?") from None
    assert isinstance(state, dict)
    return state


def _write_in_this_process() -> None:
    """Let megatron-core write by threads and return the results in memory: this process waits for them anyway.

    It would fork processes to write, and one that is killed, as where memory runs out, would be waited for without end. And it
    would start a server process for results, which takes seconds; it outlives a killed run and keeps its pipes open.
    """
    overwrite(f"{_WRITER}:_results_queue", queue.Queue())
    if hasattr(filesystem_async.FileSystemWriterAsync, "write_preloaded_data_multiproc"):  # later ones write by threads
        overwrite(f"{_WRITER}:FileSystemWriterAsync.write_preloaded_data_multiproc", staticmethod(_write_by_threads))


def _write_by_threads(
    transforms: list[Any], use_msc: bool, rank: int, buckets: list[Any], results: queue.Queue[dict[int, Any] | Exception]
) -> None:
    """In the place of megatron-core's own: write each of `buckets` to its file, and put what was written into `results`."""
    written, counted = queue.Queue(), queue.Queue()
    kept = {"results_queue": written, "count_queue": counted, "use_fsync": True, **({"use_msc": True} if use_msc else {})}

    def write(number: int) -> None:
        counted.put(number)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(transforms, number, buckets[number], **kept)

    with ThreadPoolExecutor(len(buckets)) as pool:
        list(pool.map(write, range(len(buckets))))
    ends = dict(written.get_nowait() for _ in buckets)
    failed = next((end for end in ends.values() if isinstance(end, Exception)), None)
    found = failed and machine_errors.behind(failed)
    results.put(RuntimeError(found.message) if found else failed or ends)


_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"


def _given(common: dict[str, Any]) -> dict[str, Any]:
    """Arguments that give the common state to megatron-core's load. Older ones read common.pt, which 0.19 does not write."""
    if "common_strategy" not in inspect.signature(dist_checkpointing.load).parameters:  # from 0.19 on
        return {}
    from megatron.core.dist_checkpointing.strategies import common as strategies

    if not hasattr(strategies, "TorchCommonLoadStrategy"):  # 0.17 and 0.18, whose argument takes None alone
        overwrite("megatron.core.dist_checkpointing.serialization:load_common", lambda checkpoint_dir: dict(common))
        return {}
    strategy = strategies.TorchCommonLoadStrategy()
    strategy.load_common = lambda checkpoint_dir: dict(common)
    return {"common_strategy": strategy}


def _reason(error: BaseException) -> str:
    """The error as one line. Other ranks and processes attach tracebacks, of which the last line is the cause."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    line = lines[-1 if "Traceback" in str(error) else 0].removeprefix("RuntimeError: ").removeprefix("Worker failure: ")
    return "a write failed, and torch does not say why" if line.startswith(_OF_TORCHS_WRITER) else line


_OF_TORCHS_WRITER = ("basic_ios::clear", "[enforce fail at inline_container.cc")
