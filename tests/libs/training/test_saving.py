"""A step whose weights are not numbers is not saved, and one that is saved is on the disk before it has its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from nemotron_dpo.errors import UserError

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_not_saved(
    precision: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.training.record import TrainingInfo
    from nemotron_dpo.training.saving import Checkpoints

    model = open_policy(resolve(llama), precision)
    policy, checkpoints = TrainablePolicy(model, Optimization(lr=1e-3)), Checkpoints(tmp_path / "checkpoints", "a: 1\n")
    weight = model.get_parameter("decoder.layers.1.mlp.linear_fc2.weight")
    for value in (float("nan"), float("inf"), float("-inf")):
        with torch.no_grad():
            kept, weight[1, 2] = weight[1, 2].clone(), value
        with pytest.raises(UserError, match=r"^step 3 left weights that are not finite; it is not saved: raise dpo\."):
            checkpoints.save(3, policy, TrainingInfo(1, 1))
        assert not (tmp_path / "checkpoints").exists()
        with torch.no_grad():
            weight[1, 2] = kept
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (synced.append("renamed"), replace(*names)))
    saved, _ = checkpoints.save(3, policy, TrainingInfo(1, 1))
    before = {
        str(Path(name).relative_to(tmp_path / "checkpoints" / ".step_3.tmp")) for name in synced[: synced.index("renamed")]
    }
    assert {str(path.relative_to(saved)) for path in saved.rglob("*")} | {"."} <= before
    assert synced[-1] == str(tmp_path / "checkpoints")


def test_an_error_of_the_machine_names_the_step_or_the_file_that_is_copied_into_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemotron_dpo.checkpoint.policy import open_policy
    from nemotron_dpo.policy.trainable import Optimization, TrainablePolicy
    from nemotron_dpo.sources import resolve
    from nemotron_dpo.training import saving
    from nemotron_dpo.training.record import TrainingInfo

    policy = TrainablePolicy(open_policy(resolve(llama), "float32"), Optimization(lr=1e-3))
    steps = tmp_path / "checkpoints"
    ours, theirs = str(steps / ".step_3.tmp" / "policy" / "tokenizer.json"), str(llama / "tokenizer.json")
    for names, number, place in [
        ((), errno.EIO, steps / "step_3"),
        ((ours,), errno.EIO, steps / "step_3"),
        ((theirs,), errno.EIO, theirs),
        ((theirs, None, ours), errno.EIO, theirs),
        ((theirs, None, ours), errno.ENOSPC, steps / "step_3"),
    ]:
        error = OSError(number, os.strerror(number), *names)

        def fail(*_: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(saving.megatron, "save", fail)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            saving.Checkpoints(steps, "a: 1\n").save(3, policy, TrainingInfo(1, 1))
        assert (caught.value.filename or str(steps / "step_3")) == str(place), (names, number)
        assert list(steps.iterdir()) == []
