"""Figures of this machine for the trackers, under NeMo-RL's names: GPUs through NVML where there are any, memory and CPU.

NeMo-RL takes them from Ray, hence `ray/node.<n>...`; here they are those of the first rank's node, which is node 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import ModuleType

from nemotron_dpo.training.record import Record
from nemotron_dpo.training.tracking.tracked import MACHINE, MACHINE_STEP

_GIB = 1024.0**3


class Monitor:
    """Looks every `collection_interval` seconds, and hands `write` what it saw every `flush_interval`.

    The step of a record is seconds since `started`, a time of the wall clock, so that those of a resumed run go on.
    """

    def __init__(
        self,
        write: Callable[[Record], object],
        say: Callable[[str], object],
        *,
        started: float,
        collection_interval: float,
        flush_interval: float,
    ) -> None:
        self._write = write
        # `started` may be of a run that this one goes on with; from here on no clock that is set anew counts back
        self._age, self._begun = max(0.0, time.time() - started), time.monotonic()
        self._collection, self._flush = collection_interval, flush_interval
        self._figures = figures_of(say)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last figures and hand over what was not yet."""
        self._done.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        """Work of a thread."""
        seen, flushed = [], time.monotonic()
        while not self._done.wait(self._collection):
            seen.append(self._look())
            if time.monotonic() - flushed >= self._flush:
                self._hand_over(seen)
                seen, flushed = [], time.monotonic()
        self._hand_over([*seen, self._look()])

    def _look(self) -> Record:
        step = int(self._age + time.monotonic() - self._begun)
        return Record(step, MACHINE, {**self._figures(), MACHINE_STEP: step})

    def _hand_over(self, seen: list[Record]) -> None:
        for record in seen:
            self._write(record)


def figures_of(say: Callable[[str], object]) -> Callable[[], Mapping[str, float]]:
    """A function that looks at this machine; where GPUs cannot be seen, `say` hears why."""
    import psutil

    nvml = _nvml(say)
    psutil.cpu_percent()  # each call gives the mean since the one before

    def look() -> Mapping[str, float]:
        memory, node = psutil.virtual_memory(), f"{MACHINE}/node.0"
        host = {
            f"{node}.mem_gb": (memory.total - memory.available) / _GIB,
            f"{node}.mem_total_gb": memory.total / _GIB,
            f"{node}.cpu.util": psutil.cpu_percent(),
        }
        return host | (_gpus(nvml, node) if nvml else {})

    return look


def _nvml(say: Callable[[str], object]) -> ModuleType | None:
    """NVIDIA's library, ready; None where there is no GPU to look at."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        import pynvml  # pyright: ignore[reportMissingImports] - an optional dependency

        pynvml.nvmlInit()
    except ImportError:
        say("warning: GPUs are not monitored: pip install 'nemotron-dpo[nvml]', or set logger.monitor_gpus=false")
        return None
    except Exception as error:
        say(f"warning: GPUs are not monitored: {error}")
        return None
    return pynvml


def _gpus(nvml: ModuleType, node: str) -> dict[str, float]:
    """Per cent of the time that a kernel ran, and GiB in use, of each GPU that NVML counts."""
    seen: dict[str, float] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        try:
            seen[f"{node}.gpu.{index}.util"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            seen[f"{node}.gpu.{index}.mem_gb"] = nvml.nvmlDeviceGetMemoryInfo(handle).used / _GIB
        except nvml.NVMLError:  # a device that is divided (MIG) has no utilization of its own
            continue
    return seen
