"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

import hypothesis
import pytest

from support import fork_server, forks, order  # and torch not yet: pytest_configure says what its threads do

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one takes longer than the 0.2 s an example has
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-faults", action="store_true", help="run the matrix of tests/faults (hours)")
    parser.addoption(
        "--faults-only",
        action="append",
        metavar="KIND:STAGE",
        help="only these cells of it; KIND, :STAGE or a start will do",
    )
    parser.addoption("--faults-results", default=".nemotron/faults.jsonl", metavar="FILE", help="where its results go")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first, and leave out what takes hours unless it is asked for."""
    items.sort(key=order.place)
    for item in items if not config.getoption("--all-faults") else ():
        if item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.skip(reason="takes hours: --all-faults"))


class _RedirectFirst(MetaPathFinder):
    """Nothing is found by it: but before megatron-core is first imported, wherever, it is made to run as in our programs.

    Imported before, it would have its fusions compiled, which is another arithmetic, and takes seconds at each.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "megatron":
            sys.meta_path.remove(self)
            from nemotron_dpo.policy.device import redirect

            redirect()


def pytest_configure() -> None:
    """Programs that the tests start shall hear Ctrl-C, even where these run in the background of a shell, which ignores it.

    And threads that wait for each other shall sleep: while they spin, another worker or process does not get the CPU. Nor do
    the tests themselves wait for the disk.
    """
    gc.disable()  # until all is imported and collected, which stays
    sys.meta_path.insert(0, _RedirectFirst())
    fork_server.wait_for_no_disk()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Look rarely for garbage, and not among what was imported and collected: it takes a tenth of a worker's time.

    And compute in one thread. Several, of every worker, wait for one another more than they compute on tensors so small.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 20)


def pytest_unconfigure() -> None:
    """Leave no process behind."""
    forks.stop()


@pytest.fixture(scope="session")
def everyones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test session have in common."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root


@pytest.fixture(scope="session")
def megatron() -> Iterator[None]:
    """megatron-core's process groups for this one process."""
    from nemotron_dpo.policy import parallel

    parallel.initialize()
    yield
    parallel.shut_down()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with tied embeddings as an HF folder."""
    from support import small

    return small.write_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an output layer of its own."""
    from support import small

    return small.write_llama(tmp_path_factory.mktemp("models") / "untied", tied=False, seed=1)
