"""The groups of a process share gloo's device: one port and one thread for all, and each group still has its own members."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from support.programs import execute_job

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from nemotron_dpo.policy import parallel
out, tensor = sys.argv[1:]
said = []
for _ in range(1 if int(tensor) > 1 else 2):
    parallel.initialize(parallel.Layout(tensor=int(tensor)))
    from megatron.core import parallel_state
    groups = [dist.group.WORLD, parallel_state.get_tensor_model_parallel_group(), parallel_state.get_data_parallel_group()]
    options = [group._get_backend(torch.device("cpu")).options for group in groups]
    sums = []
    for group in groups:
        ranks = torch.tensor([10.0 ** dist.get_rank()])
        dist.all_reduce(ranks, group=group)
        sums.append([dist.get_process_group_ranks(group), ranks.item()])
    devices = [device for each in options for device in each._devices]
    said.append({"sums": sums, "groups": len(groups), "devices": len({id(device) for device in devices}),
                 "minutes": sorted({each._timeout.total_seconds() / 60 for each in options}),
                 "threads": sorted({each._threads for each in options})})
    del options, devices, groups
    parallel.shut_down()
Path(f"{out}.{parallel.rank()}").write_text(json.dumps(said))
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [1, 2])
def test_groups_share_one_device(processes: int, tmp_path: Path) -> None:
    script = tmp_path / "groups.py"
    script.write_text(SCRIPT)
    done = execute_job(processes, [sys.executable, str(script), str(tmp_path / "said"), str(processes)])
    assert done.returncode == 0, done.stderr.decode()
    for rank in range(processes):
        for said in json.loads(Path(f"{tmp_path}/said.{rank}").read_text()):  # a process alone joins again after it has left
            assert (said["groups"], said["devices"], said["minutes"], said["threads"]) == (3, 1, [30], [2])
            assert all(total == sum(10**member for member in members) for members, total in said["sums"])
