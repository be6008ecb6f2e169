"""A step is resumed from as it was saved, in one piece."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.objective.losses.dpo import Dpo
from nemotron_dpo.training.carried import Carried, goes_on
from nemotron_dpo.training.record import Totals
from nemotron_dpo.training.resume import Identity, ResumeState, check_identity
from support.objective_runs import Shifted


def saved(run: Path, step: int) -> Path:
    """A step folder, with a line that tells the step in each of its small files."""
    folder = run / f"step_{step}"
    lists = (f"policy/iter_{step:07d}/integrity.json", "optimizer/integrity.json")
    for name in (*lists, "training_info.json", "config.yaml", "policy/latest_train_state.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"of step {step}")
    (folder / "policy" / "latest_checkpointed_iteration.txt").write_text(str(step))
    totals = Totals(step, 123.0, 0.1 + 0.2, {"train:loss": 1 / step}, state={"mean": 1 / 3e-7})
    ResumeState(folder, step, totals, Identity("data", "policy", {"a": [1, 2]}, {"b": None}, {"v": "x"})).write()
    return folder


def edited(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        tree = orjson.loads((folder / name).read_bytes())
        change(tree)
        (folder / name).write_bytes(orjson.dumps(tree))

    return edit


def swapped(name: str) -> Callable[[Path], object]:
    """`name` is taken from step 4 instead."""

    def swap(folder: Path) -> None:
        other = folder.parent / "step_4"
        (shutil.rmtree if (folder / name).is_dir() else Path.unlink)(folder / name)
        (shutil.copytree if (other / name).is_dir() else shutil.copyfile)(other / name, folder / name)

    return swap


DIGEST = "resume.json: was changed since it was saved: its digest differs"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "resume.json of another step": (swapped("resume.json"), "resume.json: is of step 4"),
    "optimizer of another step": (swapped("optimizer"), "optimizer/integrity.json: is not what was saved with step 2"),
    "policy of another step": (swapped("policy"), "policy/iter_0000002/integrity.json: is missing"),
    "training_info of another step": (swapped("training_info.json"), "training_info.json: is not what was saved with step 2"),
    "config of another step": (swapped("config.yaml"), "config.yaml: is not what was saved with step 2"),
    "no config": (lambda folder: (folder / "config.yaml").unlink(), "config.yaml: is missing"),
    "the train state of another step": (
        swapped("policy/latest_train_state.pt"),
        "policy/latest_train_state.pt: is not what was saved with step 2",
    ),
    "a second iteration": (
        lambda folder: shutil.copytree(folder.parent / "step_4/policy/iter_0000004", folder / "policy/iter_0000004"),
        "policy/iter_0000004/integrity.json: is not what was saved with step 2",
    ),
    "the tracker": (
        lambda folder: (folder / "policy/latest_checkpointed_iteration.txt").write_text("3"),
        "policy/latest_checkpointed_iteration.txt: is not what was saved with step 2",
    ),
    "no optimizer": (lambda folder: shutil.rmtree(folder / "optimizer"), "optimizer/integrity.json: is missing"),
    "a bit": (
        lambda folder: (folder / "resume.json").write_bytes((folder / "resume.json").read_bytes().replace(b"123.0", b"122.0")),
        DIGEST,
    ),
    "its step": (edited("resume.json", lambda tree: tree.update(step=3)), DIGEST),
    "its files": (edited("resume.json", lambda tree: tree["files"].clear()), DIGEST),
    "no digest": (edited("resume.json", lambda tree: tree.pop("digest")), "resume.json: is damaged"),
    "an earlier format": (
        edited("resume.json", lambda tree: tree.update(format=1)),
        "resume.json: has format 1; this program reads 2 to 5: resume it with the version that saved it",
    ),
    "no object": (lambda folder: (folder / "resume.json").write_text("[]"), "resume.json: is damaged"),
    "cut": (
        lambda folder: (folder / "resume.json").write_bytes((folder / "resume.json").read_bytes()[:99]),
        "resume.json: is damaged",
    ),
}


@pytest.mark.parametrize(("damage", "words"), CASES.values(), ids=CASES)
def test_a_step_that_is_not_of_one_piece_is_refused(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, 2), saved(tmp_path, 4)
    damage(folder)
    with pytest.raises(UserError) as caught:
        ResumeState.read(folder)
    assert str(caught.value).startswith(f"{folder}/{words}")
    if "format" not in words:
        assert str(caught.value).endswith(": without step_2 the run goes on from the checkpoint before it")


def test_a_step_is_read_as_it_was_saved_also_from_a_copy_but_under_no_other_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    shutil.copytree(folder, tmp_path / "copy" / "step_2")
    first, second = ResumeState.read(folder), ResumeState.read(tmp_path / "copy" / "step_2")
    totals = Totals(2, 123.0, 0.1 + 0.2, {"train:loss": 0.5}, state={"mean": 1 / 3e-7})
    assert first.totals == second.totals == totals
    assert first.identity == Identity("data", "policy", {"a": [1, 2]}, {"b": None}, {"v": "x"})
    assert first.identity.kernels == ""  # as in steps that were saved before it was recorded
    folder.rename(tmp_path / "step_7")
    with pytest.raises(UserError, match="is of step 2"):
        ResumeState.read(tmp_path / "step_7")


def test_other_kernels_are_said_and_no_reason_to_refuse() -> None:
    saved_by = [Identity("data", "policy", kernels=kernels) for kernels in ("c 1", "torch", "")]
    line = "kernels were torch, are c 1: from here on numbers are rounded otherwise"
    for before, expected in zip(saved_by, ([], [line], []), strict=True):
        assert check_identity(before, saved_by[0], Path("step_2")) == expected


def test_a_step_of_format_2_is_read_and_has_no_state(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    tree = orjson.loads((folder / "resume.json").read_bytes())
    tree["format"] = 2
    del tree["digest"], tree["totals"]["state"]
    tree["digest"] = hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()
    (folder / "resume.json").write_bytes(orjson.dumps(tree))
    state = ResumeState.read(folder)
    assert (state.step, state.totals.state) == (2, {})


def test_a_step_of_format_4_is_read_whatever_it_does_not_list(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2)
    tree = orjson.loads((folder / "resume.json").read_bytes())
    tree["format"] = 4
    del tree["digest"], tree["files"]["config.yaml"], tree["files"]["policy/latest_train_state.pt"]
    tree["digest"] = hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()
    (folder / "resume.json").write_bytes(orjson.dumps(tree))
    assert ResumeState.read(folder).step == 2


def test_a_state_of_another_objective_is_refused() -> None:
    """Each objective goes on with its own numbers alone, and one without a state with none."""
    assert goes_on(Shifted(), Totals(state={"mean": 0.25}), Path("step_2")) == Carried(Shifted(0.25))
    assert goes_on(Dpo(0.1), Totals(reward_noise=0.5), Path("step_2")) == Carried(Dpo(0.1), 0.5)
    refusals = [
        (Shifted(), {}, "step_2: has none for the state of the objective, which is mean: "),
        (Shifted(), {"mean": 1.0, "other": 2.0}, "step_2: has mean, other for the state of the objective, which is mean: "),
        (Dpo(0.1), {"mean": 1.0}, "step_2: has mean for the state of the objective, which is none: "),
    ]
    for objective, state, words in refusals:
        with pytest.raises(UserError) as caught:
            goes_on(objective, Totals(state=state), Path("step_2"))
        assert str(caught.value).startswith(words)


def test_values_of_another_kind_are_damage_even_where_the_digest_is_theirs(tmp_path: Path) -> None:
    """As after an edit by hand with the digest mended, or of a version that wrote otherwise."""
    from nemotron_dpo.training.resume import _digest

    changes = [
        lambda tree: tree.update(totals=[]),
        lambda tree: tree.update(totals={"steps": "two"}),
        lambda tree: tree.update(totals={"latest": 3}),
        lambda tree: tree.update(identity={"data": 1, "policy": "p"}),
        lambda tree: tree.update(identity={"data": "d", "policy": "p", "fixed": [1]}),
        lambda tree: tree.update(identity=None),
        lambda tree: tree.pop("files"),
        lambda tree: tree.update(files=3),
        lambda tree: tree.update(step=None),
        lambda tree: tree.update(step="2"),
        lambda tree: tree.update(format=[4]),
    ]
    folder = saved(tmp_path, 2)
    path = folder / "resume.json"
    original = path.read_bytes()
    for change in changes:
        tree = orjson.loads(original)
        del tree["digest"]
        change(tree)
        path.write_bytes(orjson.dumps({**tree, "digest": _digest(tree)}))
        with pytest.raises(UserError, match=r"resume\.json"):
            ResumeState.read(folder)
    path.write_bytes(original)
    assert ResumeState.read(folder).step == 2
