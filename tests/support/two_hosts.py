"""Two hosts on this machine: network namespaces with host names of their own, joined by a bridge and cut off from the rest.

They share the file system, as the nodes of a cluster share theirs. Names and addresses are drawn anew for every caller, so
that tests in parallel do not meet.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "hosts"
COUNT = 2


@dataclass(frozen=True)
class Hosts:
    """`node1` and `node2`, at `subnet`.11 and .12; this machine is `subnet`.1 to them."""

    prefix: str
    subnet: str

    def command(self, index: int, argv: Sequence[object]) -> list[str]:
        """`argv` as it is started on node`index`, counted from 1."""
        return [str(SCRIPTS / "in_host.sh"), self.prefix, str(index), *map(str, argv)]


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Bring them up and remove them again, with everything that runs there; skip the test where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"no `{program}` (apt-get install iproute2 util-linux)")
    hosts = Hosts(f"nd{random.SystemRandom().randrange(16**6):06x}", _free_subnet())
    try:
        up = subprocess.run([SCRIPTS / "hosts_up.sh", hosts.prefix, str(COUNT), hosts.subnet], capture_output=True, text=True)
        if up.returncode:
            pytest.skip(f"network namespaces are not permitted here: {up.stderr.strip().splitlines()[-1]}")
        yield hosts
    finally:
        subprocess.run([SCRIPTS / "hosts_down.sh", hosts.prefix, str(COUNT)], check=True)


def _free_subnet() -> str:
    """One of 10.64.0 to 10.127.255 that this machine has no route to."""
    routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=True).stdout
    drawn = random.SystemRandom()
    while f"{(subnet := f'10.{drawn.randrange(64, 128)}.{drawn.randrange(256)}')}." in routes:
        pass
    return subnet
