"""The order of the test files: `just test` gives whole files to its workers, and what comes last should be short."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# the longest first; those of Slurm wait most of the time, beside files that compute
LONGEST = (
    "bin/test_slurm_endings.py",
    "bin/test_parallel.py",
    "bin/test_resume.py",
    "bin/test_slurm.py",
    "gpu/test_run.py",
    "interop/test_megatron_bridge.py",
    "bin/test_nemotron_steps.py",
    "bin/test_dgxcloud.py",
    "bin/test_lepton.py",
    "bin/test_dpo_train.py",
    "bin/test_lora.py",
    "bin/test_machines.py",
    "pipelines/test_setup.py",
    "test_package.py",
    "libs/training/test_invariance.py",
    "golden/test_curves.py",
    "test_docs.py",
    "bin/test_ckpt_export.py",
    "libs/training/sinks/test_mlflow.py",
    "libs/policy/test_delta_net_layouts.py",
    "libs/policy/test_hybrid_layouts.py",
    "libs/policy/test_leading_dense.py",
    "bin/test_dpo_sweep.py",
)


def place(item: pytest.Item) -> int:
    """Of the item's file among the longest, or after them."""
    name = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
