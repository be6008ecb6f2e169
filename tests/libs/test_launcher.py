"""What the environment says of a job, and what is forgotten of it."""

from __future__ import annotations

import os

import pytest

from nemotron_dpo import launcher
from nemotron_dpo.errors import UserError

LEFT_OVER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
TORCHRUN = {**LEFT_OVER, "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "PET_NNODES", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)


def _set(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


# (environment, does the program join jobs, (size, first, first of its node) that is left of it)
REMEMBERED = [
    ({}, True, (1, True, True)),
    (LEFT_OVER, False, (1, True, True)),
    (LEFT_OVER, True, (2, False, False)),
    ({"RANK": "1", "LOCAL_RANK": "3"}, True, (1, True, True)),
    ({"RANK": "1", "WORLD_SIZE": "1", "PET_NNODES": "2"}, True, (1, True, True)),
    (TORCHRUN, False, (2, False, False)),
    ({**TORCHRUN, "LOCAL_RANK": "0"}, True, (2, False, True)),
]


@pytest.mark.parametrize(("environment", "joins", "left"), REMEMBERED)
def test_only_a_job_that_is_joined_is_remembered(monkeypatch, environment, joins, left):
    _set(monkeypatch, environment)
    launcher.forget_other_jobs(joins_job=joins)
    assert (launcher.job_size(), launcher.is_first(), launcher.is_first_of_node()) == left
    assert left[0] > 1 or not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PET_NNODES"} & set(os.environ)


REFUSED = [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE says that this is one of 2 processes, and RANK does not say which: start it with"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 in a job of 2 processes"),
    ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two' where a number from 1 on is due: unset WORLD_SIZE"),
    ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1'"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "2 processes, and MASTER_ADDR does not say where they meet"),
    (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "99999"},
        "MASTER_PORT is 99999, and the last port is 65535: set a free port",
    ),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, "and MASTER_PORT does not say where they meet"),
]


@pytest.mark.parametrize(("environment", "message"), REFUSED)
def test_half_a_job_is_refused(monkeypatch, environment, message):
    _set(monkeypatch, environment)
    with pytest.raises(UserError) as refused:
        launcher.check_job()
    assert message in str(refused.value)
    assert refused.value.usage


def test_what_works_alone_refuses_a_job(monkeypatch):
    launcher.refuse_job()
    _set(monkeypatch, TORCHRUN)
    with pytest.raises(UserError, match="works alone and was started as 2 processes"):
        launcher.refuse_job()
