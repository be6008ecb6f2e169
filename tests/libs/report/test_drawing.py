"""Where what draws cannot run, the report says so in one line, and what can be had."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.report.drawing import svg

SPEC = {"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}


def test_a_limit_of_addresses_under_which_v8_would_end_the_process_is_said(monkeypatch: pytest.MonkeyPatch):
    for limit in (resource.RLIM_INFINITY, 1 << 40):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert svg(SPEC).startswith("<svg")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (8 << 30, 8 << 30))
    with pytest.raises(UserError, match=r"the report: cannot be drawn: ulimit -v is 8 GiB, .* 72 GiB of addresses: raise"):
        svg(SPEC)


@pytest.mark.parametrize("more", [0, 2, 4, 6])
def test_too_few_files_are_one_line(more: int):
    """Whichever of the library's files is the first that cannot be opened."""
    code = (
        "import os, resource, vl_convert; from nemotron_dpo.report.drawing import svg; "
        f"number = max(map(int, os.listdir('/proc/self/fd'))) + {more}; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (number, number)); svg({SPEC})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: the report: cannot be drawn: no files are left to open, or no threads: raise the limits" in done.stderr


def test_a_picture_that_is_wrongly_described_is_no_matter_of_limits():
    with pytest.raises(ValueError, match="conversion failed"):
        svg({**SPEC, "mark": {"type": "no mark"}})
