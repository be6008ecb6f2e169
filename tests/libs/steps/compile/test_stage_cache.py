"""The cache of outputs: taken back whole, or not at all."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from nemotron_dpo import locks
from nemotron_dpo.steps.compile import stage_cache as cache
from nemotron_dpo.training.lock import only_run


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _file(name: str, text: str = "rows") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _folder(name: str) -> Path:
    (Path(name) / "deep").mkdir(parents=True)
    (Path(name) / "deep" / "weights.distcp").write_bytes(b"w" * (1 << 20))
    (Path(name) / "deep" / "integrity.json").write_text("{}")
    (Path(name) / "metrics.jsonl").write_text("1\n")
    return Path(name)


def test_file_outlives_the_job_that_made_it():
    made, target = _file("job1/out.arrow"), Path("job2/out.arrow")
    cache.record("key", "stage", [made])
    shutil.rmtree("job1")
    target.parent.mkdir()
    entry = cache.find("key", [target])
    assert entry is not None
    cache.bring(entry, "stage", [target])
    assert target.read_text() == "rows"


def test_folder_is_taken_from_the_newest_job_and_shares_only_its_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "_share_blocks", lambda source, target: False)  # as ext4 has it
    cache.record("key", "stage", [_folder("job1")])
    for name in ("job2", "job3"):
        entry = cache.find("key", [Path(name)])
        assert entry is not None
        cache.bring(entry, "stage", [Path(name)])
    assert entry.places == (Path("job2"),)
    assert Path("job3/deep/weights.distcp").samefile("job1/deep/weights.distcp")
    with Path("job3/metrics.jsonl").open("a") as file:
        file.write("2\n")
    assert Path("job1/metrics.jsonl").read_text() == "1\n"


def test_weights_without_digests_are_each_jobs_own(monkeypatch: pytest.MonkeyPatch):
    """Nothing would tell that an exported model, or a checkpoint that is still written, was changed through another job."""
    monkeypatch.setattr(cache, "_share_blocks", lambda source, target: False)
    names = ("hf/model.safetensors", "iter_1/__0_0.distcp", "rows.arrow")
    for name in names:
        _file(f"job1/{name}", "weights")
    _file("integrity.json", "{}")  # of a folder around all jobs: it lists none of them
    cache.record("key", "stage", [Path("job1")])
    entry = cache.find("key", [Path("job2")])
    assert entry is not None
    cache.bring(entry, "stage", [Path("job2")])
    for name in names:
        with Path("job2", name).open("r+") as file:
            file.write("CHANGED")
        assert Path("job1", name).read_text() == "weights", name


def _removed() -> None:
    shutil.rmtree("job1")


def _changed() -> None:
    with Path("job1/metrics.jsonl").open("a") as file:
        file.write("2\n")


def _added() -> None:
    Path("job1/more").write_text("x")


def _in_the_way() -> None:
    Path("job2").mkdir()


def _damaged() -> None:
    (cache.CACHE / "key.json").write_text("{")


@pytest.mark.parametrize("change", [_removed, _changed, _added, _in_the_way, _damaged])
def test_what_is_not_as_it_was_left_is_not_taken(change):
    cache.record("key", "stage", [_folder("job1")])
    assert cache.find("key", [Path("job2")]) is not None
    change()
    assert cache.find("key", [Path("job2")]) is None


def test_output_that_is_still_in_its_place_stays():
    cache.record("key", "stage", [_folder("named")])
    entry = cache.find("key", [Path("named")])
    assert entry is not None
    cache.bring(entry, "stage", [Path("named")])
    assert cache.by_hand(entry, [Path("named")]) == []


def test_what_a_user_edits_in_place_is_the_users_alone():
    """In the job that made it, in one that took it over, and by the commands of a dry run: mode and content are theirs."""
    made = _file("job1/out.arrow")
    made.chmod(0o640)
    cache.record("key", "stage", [made])
    assert made.stat().st_mode & 0o777 == 0o640
    for name in ("job2", "job3"):
        target = _file(f"{name}/out.arrow", "old")
        entry = cache.find("key", [target])
        assert entry is not None
        if name == "job2":
            cache.bring(entry, "stage", [target])
        for command in cache.by_hand(entry, [target]) if name == "job3" else []:
            subprocess.run(command, check=True)
        assert (target.read_text(), target.stat().st_mode & 0o200) == ("rows", 0o200)
        with target.open("r+") as file:
            file.write("mine")
        assert entry.places[0].read_text() == made.read_text() == "rows"
    with made.open("r+") as file:
        file.write("mine")
    entry = cache.find("key", [made])
    assert entry is not None
    assert entry.places[0].read_text() == "rows"


def test_a_full_disk_leaves_nothing_half_kept(monkeypatch: pytest.MonkeyPatch):
    def full(source: Path, target: Path) -> None:
        target.write_text("ro")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_share_blocks", lambda source, target: False)
    monkeypatch.setattr(cache.shutil, "copyfile", full)
    made = _file("job1/out.arrow")
    with pytest.raises(OSError, match="No space left"):
        cache.record("key", "stage", [made])
    assert list(cache.CACHE.iterdir()) == []
    assert (made.read_text(), cache.find("key", [made])) == ("rows", None)


def test_by_hand_does_the_same():
    made = [_file("job1/out.arrow"), _folder("job1/run")]
    cache.record("key", "stage", made)
    targets = [Path("job2/out.arrow"), Path("job2/run")]
    Path("job2").mkdir()
    entry = cache.find("key", targets)
    assert entry is not None
    for command in cache.by_hand(entry, targets):
        subprocess.run(command, check=True)
    assert targets[0].read_text() == "rows"
    assert (targets[1] / "metrics.jsonl").read_text() == "1\n"


def test_unknown_key():
    assert cache.find("none", []) is None


def test_interrupted_work_is_found_where_it_was_noted():
    folder = _folder(str(cache.JOBS / "job1" / "run"))
    cache.note_start("key", folder)
    with only_run(folder, print):  # as dpo-train does, of another nemotron-steps
        assert cache.interrupted("key") is None
    assert cache.interrupted("key") == folder
    (folder / locks.OF_FOLDER).touch()  # as a killed one leaves it
    assert cache.interrupted("key") == folder
    cache.record("key", "stage", [folder])
    assert cache.interrupted("key") is None


# An empty note, one cut short, one that names what no job made: copying these took a whole working folder along.
@pytest.mark.parametrize(
    "note", ["", ".", ".nemotron", str(cache.JOBS), str(cache.JOBS / "job1"), "..", "/", "job1\0x", "gone"]
)
def test_only_a_folder_of_a_job_is_gone_on_with(note: str):
    _folder(str(cache.JOBS / "job1" / "run"))
    cache.CACHE.mkdir(parents=True)
    (cache.CACHE / "key.started").write_text(note)
    assert cache.interrupted("key") is None
