"""A Slurm cluster of two nodes on this machine, each a host of its own, and a login node reached by a real sshd on loopback."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.two_hosts import COUNT, SCRIPTS, two_hosts

_DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sshd")
_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host_key
AuthorizedKeysFile {root}/user_key.pub
PidFile {root}/sshd.pid
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv SLURM_CONF={conf}
"""
_SSH = """
Host login
  HostName 127.0.0.1
  Port {port}
  UserKnownHostsFile {root}/known_hosts
Host nobody
  HostName 127.0.0.1
  Port 1
"""


@dataclass(frozen=True)
class Cluster:
    """`conf` is Slurm's configuration, `key` the user's key for the host `login`, `bin` a folder whose ssh knows that host."""

    root: Path
    conf: Path
    key: Path
    bin: Path

    def slurm(self, *argv: object) -> str:
        """What one of Slurm's own commands prints."""
        env = {**os.environ, "SLURM_CONF": str(self.conf)}
        done = subprocess.run([str(word) for word in argv], env=env, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def state(self, job_id: object) -> str:
        """The state of a job in Slurm's words."""
        return self.slurm("squeue", "--noheader", "--states=all", "--jobs", job_id, "--format=%T")

    def wait_for(self, job_id: object, *states: str, seconds: float = 60) -> str:
        """Wait until the job is in one of `states`."""
        end = time.monotonic() + seconds
        while (state := self.state(job_id)) not in states and time.monotonic() < end:
            time.sleep(0.1)
        assert state in states, f"job {job_id} is {state}"
        return state


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Bring it up and end it again; skip the test where that cannot be."""
    for program in _DAEMONS:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"no `{program}`: Slurm and sshd are Debian packages (.ci/run installs them)")
    with two_hosts() as hosts, tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        root, port = Path(folder), _free_ports()
        root.chmod(0o755)  # daemons have users of their own
        slurm, conf = root / "slurm", root / "slurm" / "etc" / "slurm.conf"
        up = [SCRIPTS / "slurm_up.sh", slurm, COUNT, port, hosts.prefix, hosts.subnet]
        log = (root / "slurm_up.log").open("wb")  # daemons inherit it, so no pipe
        try:
            status = subprocess.run([str(word) for word in up], stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
            assert status == 0, (root / "slurm_up.log").read_text()
            with _sshd(root, port + 5, conf):
                yield Cluster(root, conf, root / "user_key", root / "bin")
        finally:
            log.close()
            subprocess.run([SCRIPTS / "slurm_down.sh", slurm], check=True)


@contextlib.contextmanager
def _sshd(root: Path, port: int, conf: Path) -> Iterator[None]:
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / key], check=True)
    kind, text, *_ = (root / "host_key.pub").read_text().split()
    (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {text}\n")
    (root / "sshd_config").write_text(_SSHD.format(port=port, root=root, conf=conf))
    (root / "ssh_config").write_text(_SSH.format(port=port, root=root))
    (root / "bin").mkdir()
    (root / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{root}/ssh_config" "$@"\n')
    (root / "bin" / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    process = subprocess.Popen([str(daemon), "-D", "-f", root / "sshd_config", "-E", root / "sshd.log"])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _free_ports() -> int:
    """The first of 20 ports that nobody listens on, below those that the kernel hands out."""
    while True:
        first = random.SystemRandom().randrange(12000, 20000, 20)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + 20):
                held.enter_context(socket.socket()).bind(("0.0.0.0", port))
            return first
