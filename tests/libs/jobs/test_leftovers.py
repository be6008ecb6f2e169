"""What is left of a removal that did not come to its end: it is no job, it is found again, and removed by the next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.jobs.job import jobs_in
from nemotron_dpo.jobs.leftovers import clear, leftovers, take_away
from nemotron_dpo.jobs.removing import remove


def _job(root: Path, name: str = "job") -> Path:
    for file in ("job.yaml", "a/held", "a/b/free", "train.yaml", "z/free"):
        (root / name / file).parent.mkdir(parents=True, exist_ok=True)
        (root / name / file).write_text("")
    return root / name


def _hold(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """From now on a file called `name` cannot be removed."""
    unlink = os.unlink

    def held(path: Any, **options: Any) -> None:
        if os.path.basename(path) == name:
            raise error
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", held)


@pytest.mark.parametrize("name", ["a/held", "train.yaml", "job.yaml"])
def test_what_is_refused_is_named_and_the_next_removal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _job(tmp_path)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        _hold(patch, Path(name).name, PermissionError(1, "Operation not permitted"))
        (job,) = jobs_in(Path())
        with pytest.raises(UserError) as refused:
            remove(job, [])
    trash = tmp_path / ".job.removed"
    assert str(refused.value) == (
        f"{trash / name}: operation not permitted: "
        f"what is left of the job lies in {trash}; dpo-runs rm or prune goes on with it"
    )
    assert sorted(str(path.relative_to(trash)) for path in trash.rglob("*") if path.is_file()) == sorted({name, "job.yaml"})
    assert (jobs_in(tmp_path), leftovers(tmp_path)) == ([], [trash])
    clear(trash)
    assert list(tmp_path.iterdir()) == []


def test_what_is_interrupted_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _job(tmp_path)
    with monkeypatch.context() as patch:
        _hold(patch, "held", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            remove(jobs_in(tmp_path)[0], [])
    assert leftovers(tmp_path) == [tmp_path / ".job.removed"]
    _job(tmp_path)  # of the same name, as of a copy that was put back
    other = take_away(tmp_path / "job")
    assert leftovers(tmp_path) == [other, tmp_path / ".job.removed"]
    (tmp_path / ".mine.removed").mkdir()
    (tmp_path / ".mine.removed" / "notes").write_text("never a job")
    (tmp_path / ".link.removed").symlink_to(other)
    assert leftovers(tmp_path) == [other, tmp_path / ".job.removed"]
    for path in leftovers(tmp_path):
        clear(path)
    clear(other)  # another process was faster
    assert leftovers(tmp_path) == []
    assert (tmp_path / ".mine.removed" / "notes").is_file()


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    clear(take_away(_job(tmp_path, "j" * 255)))
    assert list(tmp_path.iterdir()) == []
