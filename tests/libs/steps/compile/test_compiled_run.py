"""What a profile decides of a run before it has a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.steps.compile.compiled_run import Request, compile_run
from nemotron_dpo.steps.profiles.profile import Profile

SET = ["policy.model_name=/m", "data.train.prompt_file=/p", "checkpointing.checkpoint_dir=/nemo_run/dpo", "cluster.num_nodes=1"]


@pytest.mark.parametrize(
    ("executor", "settings", "is_mounted"),
    [
        ("local", {}, False),
        ("slurm", {}, False),
        ("slurm", {"mounts": ["/lustre:/lustre", "/lustre/nemo_run:/out", "/a/nemo_runs:/nemo_runs"]}, False),
        ("slurm", {"mounts": ["/lustre:/lustre", "/lustre/out:/nemo_run"]}, True),
        ("slurm", {"lustre_mount": "/lustre/out:/nemo_run/:rw"}, True),
        ("lepton", {"mounts": [{"path": "/", "mount_path": "/mnt/shared", "from": "node-nfs:shared"}]}, False),
        ("lepton", {"mounts": [{"path": "/", "mount_path": "/nemo_run", "from": "node-nfs:shared"}]}, True),
        ("dgxcloud", {"pvcs": [{"path": "/nemo_run", "claimName": "claim"}]}, True),
    ],
)
def test_nemo_run_is_the_job_folder_where_nothing_is_mounted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, settings: dict[str, Any], is_mounted: bool
):
    """A container would lose what is written to a folder of its own there."""
    monkeypatch.chdir(tmp_path)
    request = Request("rl/nemo_rl/dpo", ["nemotron-steps"], SET)
    compiled = compile_run(request, Profile("mine", executor, {}, settings), lambda line: None)
    folder = "/nemo_run/dpo" if is_mounted else f"{compiled.plan.job}/dpo"
    assert compiled.config.checkpointing.checkpoint_dir == folder
    assert compiled.plan.stages[-1].argv[1] == folder
