"""The order of the test files: `just test` gives whole files to its workers, and what comes last should be short."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# the longest first; those of Slurm wait most of the time, beside files that compute
LONGEST = (
    "bin/test_slurm_endings.py",
    "bin/test_parallel.py",
    "bin/test_slurm.py",
    "pipelines/test_setup.py",
    "test_package.py",
    "libs/training/test_invariance.py",
    "libs/policy/test_leading_dense.py",
    "bin/test_lepton.py",
    "bin/test_dgxcloud.py",
    "libs/training/sinks/test_mlflow.py",
    "test_docs.py",
    "libs/policy/test_hybrid_layouts.py",
    "interop/test_megatron_bridge.py",
    "bin/test_routers.py",
    "libs/kernels/test_c.py",
    "libs/policy/test_family_layouts.py",
    "libs/policy/test_delta_net_layouts.py",
    "gpu/test_run.py",
    "golden/test_curves.py",
    "bin/test_nemotron_steps.py",
    "bin/test_machines.py",
    "bin/test_dpo_report.py",
    "bin/test_preference_tokenize.py",
    "bin/test_resume.py",
    "bin/test_dpo_sweep.py",
    "libs/training/guards/test_provoked.py",
    "libs/kernels/test_chosen.py",
    "libs/checkpoint/test_weights_digest.py",
    "bin/test_report_in_browser.py",
    "libs/checkpoint/test_qwen3_next_folders.py",
    "bin/test_hybrids.py",
    "test_support.py",
    "libs/checkpoint/test_families.py",
    "bin/test_dpo_train.py",
    "libs/checkpoint/test_hf_memory.py",
    "bin/test_two_hosts.py",
    "libs/preferences/test_real_tokenizers.py",
    "test_pipes.py",
    "bin/test_ref_logprobs_cache.py",
    "libs/training/sinks/test_wandb.py",
    "libs/kernels/test_gpu_layers.py",
)


def place(item: pytest.Item) -> int:
    """Of the item's file among the longest, or after them."""
    name = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
