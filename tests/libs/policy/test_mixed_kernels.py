"""Processes of one job that compute by different kernels."""

from __future__ import annotations

from nemotron_dpo.policy.parallel import mixed


def test_each_kind_is_counted_and_named_with_its_first_rank() -> None:
    expected = "processes compute by different kernels: 3 by c 1 (from rank 0 on), 1 by torch (from rank 2 on)"
    assert mixed(["c 1", "c 1", "torch", "c 1"]) == expected
