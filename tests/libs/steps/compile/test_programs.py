"""Programs are found wherever an installer has put them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemotron_dpo.steps.compile.programs import executable

# what lies in the folder of the Python, of the running program and on PATH -> what is called
PLACES = [
    ("python", "", "", "python/dpo-train"),  # a virtual environment that is not active
    ("python", "python", "path", "python/dpo-train"),  # and another that is
    ("", "program", "", "program/dpo-train"),  # `pip install --user`, not on PATH
    ("", "program", "path", "program/dpo-train"),
    ("", "", "path", "dpo-train"),
    ("", "", "", "dpo-train"),
]


def test_the_right_program_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, (beside_python, beside_program, on_path, expected) in enumerate(PLACES):
        root = tmp_path / str(number)
        for folder in ("python", "program", "path"):
            (root / folder).mkdir(parents=True)
        for folder in {beside_python, beside_program, on_path} - {""}:
            (root / folder / "dpo-train").touch(mode=0o755)
        monkeypatch.setattr(sys, "executable", str(root / "python" / "python3"))
        monkeypatch.setattr(sys, "argv", [str(root / "program" / "nemotron-steps")])
        monkeypatch.setenv("PATH", str(root / "path"))
        assert executable("dpo-train") == (str(root / expected) if "/" in expected else expected), number
