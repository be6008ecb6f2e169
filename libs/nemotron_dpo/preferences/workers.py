"""Apply one function to a sequence of chunks, in threads or in processes, and hand the results back in order.

Threads suffice while the tokenizer's own threads do most of the work: one thread renders while another tokenizes. Processes are
for machines where rendering in one interpreter is too slow. One thread of this process at a time sends a chunk to a worker
process and waits for the result. A worker process ends when this process does, because its pipe closes then.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from nemotron_dpo import collector
from nemotron_dpo.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_OVERLAPPING_THREADS = 2


@contextlib.contextmanager
def ordered_map(make: Callable[[Any], Callable[[T], R]], argument: Any, num_workers: int) -> Iterator[Any]:
    """A function that maps an iterable of items to their results, in order, by calling `make(argument)` on each item.

    With `num_workers` 1 the calls run in threads of this process, else in that many worker processes. For processes, `make`,
    `argument`, items and results must be picklable. To bound memory, only a few items for each worker are taken ahead of the
    results.
    """
    with contextlib.ExitStack() as stack:
        if num_workers == 1:
            calls: list[Callable[[T], R]] = [make(argument)] * _OVERLAPPING_THREADS
        else:
            calls = [stack.enter_context(_process(make, argument)) for _ in range(num_workers)]
        stack.enter_context(_rare_collection())
        idle = deque(calls)
        pool = ThreadPoolExecutor(len(calls))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)

        def work(item: T) -> R:
            call = idle.popleft()
            try:
                return call(item)
            finally:
                idle.append(call)

        yield lambda items: _in_order(pool, work, items, ahead=2 * len(calls))


@contextlib.contextmanager
def _rare_collection() -> Iterator[None]:
    """Make the cyclic garbage collector run rarely, and skip the objects that exist by now, for good.

    Rows make many objects but no cycles, so frequent collections would cost time and free nothing. To unfreeze would be to
    unfreeze what others have frozen, too: there is one such set, and to ask whether it is empty counts it.
    """
    threshold = gc.get_threshold()
    gc.freeze()
    collector.collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


def _in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def _process(make: Callable[[Any], Any], argument: Any) -> Iterator[Callable[[Any], Any]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, argument), daemon=True)
    process.start()
    there.close()
    try:
        yield lambda item: _call(here, item)
    finally:
        process.terminate()
        here.close()


def _call(connection: Connection, item: Any) -> Any:
    try:
        connection.send(item)
        result = connection.recv()
    except (EOFError, OSError):
        raise UserError("a worker process died", remedy="is there enough memory? try fewer --num-workers") from None
    if isinstance(result, BaseException):
        raise result
    return result


def _serve(connection: Connection, make: Callable[[Any], Any], argument: Any) -> None:
    """Serve items from the pipe until the parent's end closes; this is the main function of a worker process.

    A result is sent back for each item. An exception is sent back in place of the result, and the parent raises it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        try:
            call = make(argument)
        except UserError as error:
            connection.recv()
            connection.send(error)
            return
        with _rare_collection():
            while True:
                item = connection.recv()
                try:
                    connection.send(call(item))
                except Exception as error:
                    connection.send(error)
    except (EOFError, BrokenPipeError):
        return
