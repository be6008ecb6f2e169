"""The README's example of an objective works as it is written."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import nemotron_dpo.objective
from nemotron_dpo.objective.inputs import LossInputs, Responses
from nemotron_dpo.objective.modified import modified


def test_the_example_of_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 - 0.5 * 1)^2, and with 2 tokens against 1 and a length_alpha of 0.1, (1 - 0.6)^2."""
    text = (Path(nemotron_dpo.objective.__path__[0]) / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # where a dataclass looks for its types
    exec(compile(example, "README.md", "exec"), vars(module))
    (entry,) = module.OBJECTIVES
    objective = entry.make(beta=0.5)
    one = torch.ones(1)
    pairs = LossInputs(Responses(-one, 2 * one, one), Responses(-one, one, 0 * one))
    assert objective.losses(pairs).loss.item() == 0.25
    assert entry.settings == ("beta", "hinge_target")
    assert objective.terms["preference"].value == 1
    (shifted,) = modified([(entry, objective)], length_alpha=0.1)
    assert shifted.losses(pairs).loss.item() == pytest.approx(0.16)
