"""Tests for whether the process that a file names may still live: never denied of one that does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_dpo import processes

NO_PID = 2**22 + 1  # above the kernel's greatest
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")  # process ids of its own, and the host name of this machine
LIVES = "import json, sys; from nemotron_dpo import processes; print(processes.may_live(json.loads(sys.argv[1])))"


def test_who_may_live():
    mine = processes.this_one()
    machine, kernel, space, began = mine["process"].split("-")
    had = (Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19], os.readlink("/proc/self/ns/pid"))
    assert (began, f"pid:[{space}]", mine["pid"], mine["host"]) == (*had, os.getpid(), socket.gethostname())
    machine = machine or "0" * 8  # a machine without a name is never known again

    def named(*parts: str) -> dict[str, str]:
        return {"process": "-".join(parts)}

    is_known = bool(mine["process"].split("-")[0])
    for facts, may_live in (
        ({}, True),
        ({"pid": NO_PID}, False),
        ({"host": "another"}, True),
        ({"host": "another", "pid": NO_PID}, True),
        ({"pid": None}, True),
        (named(machine, kernel, space, "1") if is_known else {"pid": NO_PID}, False),  # the id went to another process since
        ({"pid": NO_PID, **named(machine, kernel, "1", began)}, True),  # a container beside this one
        ({"pid": NO_PID, **named("", "11111111", space, began)}, True),  # a machine of the same name
        ({"pid": NO_PID, **named("11111111", "11111111", space, began)}, True),
        (named(machine, "11111111", space, began), not is_known),  # this machine before its last start
        ({"process": None}, True),  # an earlier version wrote no more than the id
        ({"process": "odd", "pid": NO_PID}, False),
        ({"process": 7, "pid": NO_PID}, False),
        ({"pid": 10**30}, True),
    ):
        assert processes.may_live({**mine, **facts}) == may_live, facts


def test_a_job_is_of_the_process_that_made_it_not_of_another_containers_with_its_id():
    mine = processes.this_one()
    machine, kernel, _, began = mine["process"].split("-")
    assert processes.is_ours(mine, os.getpid())
    assert processes.is_ours({name: mine[name] for name in ("host", "pid")}, os.getpid())  # of an earlier version
    for facts in ({"pid": 1}, {"host": "another"}, {"process": f"{machine}-{kernel}-1-{began}"}):
        assert not processes.is_ours({**mine, **facts}, os.getpid()), facts


def test_a_container_with_this_machines_name_takes_no_process_out_here_for_dead():
    if subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and root")
    with subprocess.Popen(["sleep", "60"]) as sleeper:  # whose id is none in there
        facts = json.dumps({**processes.this_one(), "pid": sleeper.pid})
        done = subprocess.run([*CONTAINER, sys.executable, "-c", LIVES, facts], capture_output=True, text=True, check=True)
        sleeper.kill()
    assert done.stdout == "True\n"
