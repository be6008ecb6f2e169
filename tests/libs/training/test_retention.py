"""Which checkpoints stay: each case by the rules in the docstring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.training.retention import prune, remove_unfinished, remove_whole

LOSS = "val:validation-default_loss"


@pytest.mark.parametrize(
    ("losses", "keep", "higher", "kept"),
    [
        ({10: 0.5, 20: 0.3, 30: 0.4}, 1, False, [20, 30]),  # the best, and always the newest
        ({10: 0.5, 20: 0.3, 30: 0.4}, 2, False, [20, 30]),
        ({10: 0.5, 20: 0.3, 30: 0.4}, 1, True, [10, 30]),
        ({10: 0.4, 20: 0.4, 30: 0.9}, 1, False, [20, 30]),  # a tie goes to the newer
        ({10: 0.4, 20: None, 30: 0.9}, 2, False, [10, 30]),  # no metric is worst
        ({9: 0.1, 10: 0.2, 100: 0.3}, 2, False, [9, 10, 100]),  # steps are numbers, not text
        ({10: 0.5, 20: 0.3}, None, False, [10, 20]),
    ],
)
def test_the_best_and_the_newest_stay(
    losses: dict[int, float | None], keep: int | None, higher: bool, kept: list[int], tmp_path: Path
) -> None:
    for step, loss in losses.items():
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "training_info.json").write_bytes(orjson.dumps({} if loss is None else {LOSS: loss}))
    (tmp_path / ".step_40.tmp").mkdir()
    prune(tmp_path, keep, LOSS, higher_is_better=higher)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step_*")) == kept


def test_what_is_needed_stays_besides(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    for step in (5, 10, 20, 30):
        (tmp_path / f"step_{step}").mkdir()

    def needed(steps: Sequence[int]) -> set[int]:
        asked.append(list(steps))
        return {5, 7, 30}

    assert set(prune(tmp_path, 1, None, higher_is_better=False, needed=needed)) == {tmp_path / "step_10", tmp_path / "step_20"}
    assert asked == [[5, 10, 20, 30]]


def test_what_was_never_validated_is_told_apart(tmp_path: Path) -> None:
    for step, loss in {10: None, 20: 0.5, 30: 0.4, 40: 0.3}.items():
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "training_info.json").write_bytes(orjson.dumps({} if loss is None else {LOSS: loss}))
    removed = prune(tmp_path, 2, LOSS, higher_is_better=False)
    assert removed == {tmp_path / "step_10": False, tmp_path / "step_20": True}


FAULT_TOLERANT = [
    # save_period 10, ft_save_period 4: NeMo-RL keeps the union of the best multiples of 10, the newest k of all, and the newest
    ({4: None, 8: None, 10: 0.5, 12: None, 20: 0.3, 24: None}, 1, 2, [20, 24]),
    ({4: 0.1, 10: 0.5, 12: None, 20: 0.6, 24: None}, 1, 1, [10, 24]),  # step 4 measured better, but is there to go on from
    ({4: None, 8: None, 10: 0.5, 12: None}, 2, 3, [8, 10, 12]),
    ({4: None, 8: None, 10: 0.5, 12: None}, 2, None, [10, 12]),
    ({4: None, 8: None, 10: 0.5, 12: None, 20: 0.4, 24: None}, None, 1, [10, 20, 24]),
    ({4: None, 8: None, 10: 0.5}, None, None, [4, 8, 10]),
]


def test_steps_to_go_on_from_stay_by_age_and_the_others_by_rank(tmp_path: Path) -> None:
    for number, (losses, keep, latest, kept) in enumerate(FAULT_TOLERANT):
        root = tmp_path / f"{number}"
        for step, loss in losses.items():
            (root / f"step_{step}").mkdir(parents=True)
            (root / f"step_{step}" / "training_info.json").write_bytes(orjson.dumps({} if loss is None else {LOSS: loss}))
        prune(root, keep, LOSS, higher_is_better=False, period=10, keep_latest_k=latest)
        assert sorted(int(path.name[5:]) for path in root.glob("step_*")) == kept, number


def test_without_a_metric_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step_{step}").mkdir()
    assert prune(tmp_path, 2, None, higher_is_better=False) == {tmp_path / "step_1": True}


@pytest.mark.parametrize("content", [b"", b'{"total_steps": 2', b"[]", b'{"total_steps":2}', b'{"total_steps":"one"}', None])
def test_nothing_is_removed_where_the_best_is_unknown(content: bytes | None, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "training_info.json").write_bytes(orjson.dumps({"total_steps": step, LOSS: float(step)}))
    path = tmp_path / "step_1" / "training_info.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        UserError, match=f"{path}: is damaged or not of step_1, so the best checkpoints are unknown and none is"
    ):
        prune(tmp_path, 1, LOSS, higher_is_better=False)
    assert len(list(tmp_path.glob("step_*"))) == 3


def test_what_is_half_removed_has_no_name_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of a removal leaves what the next run removes, and never a part of a checkpoint under its name."""
    for step in (1, 2):
        (tmp_path / f"step_{step}" / "policy").mkdir(parents=True)
        (tmp_path / f"step_{step}" / "policy" / "weights").touch()

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (folder / "policy" / "weights").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 1, None, higher_is_better=False)
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_2"]
    (tmp_path / ".step_3.tmp").mkdir()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_2"]
    remove_whole(tmp_path / "step_2")
    assert not list(tmp_path.iterdir())
