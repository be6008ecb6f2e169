"""The ssh tunnel where the other side does not answer: real ssh, and a socket that says nothing."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from nemotron_dpo.steps.executors.slurm import tunnel
from nemotron_dpo.steps.executors.slurm.settings import read_settings
from nemotron_dpo.steps.executors.slurm.tunnel import NoAnswer, open_tunnel
from nemotron_dpo.steps.profiles.profile import Profile


def test_a_host_that_accepts_and_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if (ssh := shutil.which("ssh")) is None:
        pytest.skip("no ssh here (apt-get install openssh-client)")
    monkeypatch.setattr(tunnel, "_CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F none -p {silent.getsockname()[1]} "$@"\n')
        (tmp_path / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        profile = Profile("p", "slurm", settings={"host": "127.0.0.1", "remote_job_dir": "/jobs"})
        with (
            pytest.raises(NoAnswer, match=r"^127\.0\.0\.1: cannot be reached: "),
            open_tunnel(read_settings(profile, attached=True)),
        ):
            raise AssertionError("it was reached")


def test_no_ssh_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    profile = Profile("p", "slurm", settings={"host": "login", "remote_job_dir": "/jobs"})
    with pytest.raises(tunnel.UserError, match=r"^ssh: no such program here: install an OpenSSH client$"):
        open_tunnel(read_settings(profile, attached=True)).__enter__()
