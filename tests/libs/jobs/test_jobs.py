"""Jobs that were left: how they are listed, compared and removed."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemotron_dpo.errors import UserError
from nemotron_dpo.jobs import differing, listing, removing
from nemotron_dpo.jobs.job import Job, find, jobs_in
from nemotron_dpo.jobs.needs import needed_by
from nemotron_dpo.steps.compile import stage_cache

NOW = datetime.now().astimezone()
MINE = {"pid": os.getpid(), "host": socket.gethostname()}
DEAD = {"pid": 2**22 + 1, "host": socket.gethostname()}  # above the kernel's greatest


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _job(
    name: str,
    overrides: tuple[str, ...] = (),
    state: dict[str, Any] | None = None,
    losses: tuple[float, ...] = (),
    days: float = 0.0,
    **settings: Any,
) -> Path:
    """The folder of a job that is `days` old and validated after each step with these losses, and accuracy 1 - loss."""
    folder = stage_cache.JOBS / name
    (folder / "run").mkdir(parents=True)
    record = {
        "step": "rl/nemo_rl/dpo",
        "name": name.removeprefix("job-"),
        "created": (NOW - timedelta(days=days)).isoformat(),
        "folder": str(Path.cwd()),
        "config": {"path": "configs/tiny.yaml", "overrides": list(overrides)},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(record))
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    if state is not None:
        (folder / "state.json").write_text(json.dumps(state))
    rows = [
        {"step": n, "train/loss": 0.7, "train/rewards_chosen_mean": 1.0, "train/rewards_rejected_mean": 0.5} for n in (1, 2)
    ]
    held_out = "validation-default"
    rows += [{"step": n, f"{held_out}/loss": loss, f"{held_out}/accuracy": 1 - loss} for n, loss in enumerate(losses, 1)]
    if losses:
        (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _jobs() -> list[Job]:
    return jobs_in(stage_cache.JOBS)


def _ids(jobs: Any) -> list[str]:
    return [job.id for job in jobs]


def test_status() -> None:
    cases = [
        ({"status": "done"}, None, "done", False),
        ({"status": "failed", "stage": "dpo-train"}, None, "failed", False),
        ({"status": "running", **MINE}, None, "running", True),
        ({"status": "running", **DEAD}, None, "killed", False),
        ({"status": "running", "host": "elsewhere", "pid": 1}, None, "running", True),
        ({"status": "submitted"}, None, "submitted", True),
        (None, {"status": "done"}, "done", False),  # a job of an earlier version
        (None, {"status": "running", **DEAD}, "killed", False),
        (None, None, "unknown", False),
    ]
    for n, (state, run, status, alive) in enumerate(cases):
        folder = _job(f"job-{n}", state=state)
        if run is not None:
            (folder / "run" / "run.json").write_text(json.dumps(run))
        job = find(f"job-{n}", _jobs())
        assert (job.status, job.is_alive) == (status, alive), n


def test_the_table_has_what_differs_and_says_once_what_does_not() -> None:
    _job("job-a", ("policy.model_name=m", "dpo.beta=0.1", "dpo.beta=0.2"), {"status": "done"}, (0.6, 0.25, 0.5), days=2)
    _job("job-b", ("policy.model_name=m", "a.lr=1", "b.lr=2"), {"status": "failed", "stage": "dpo-train"}, days=1)
    (stage_cache.JOBS / "no-job").mkdir()
    lines = listing.listed(_jobs()).splitlines()
    assert lines[0].split() == ["JOB", "NAME", "STATUS", "SETTINGS", "VALIDATION", "SIZE"]
    assert " ".join(lines[1].split()).startswith("job-a a done dpo -c tiny beta=0.2 loss 0.2500, accuracy 0.7500 (step 2) ")
    assert " ".join(lines[2].split()).startswith("job-b b failed (dpo-train) dpo -c tiny a.lr=1 b.lr=2 - ")
    assert lines[3] == "all of them: policy.model_name=m"
    assert lines[4].startswith("2 jobs, ")
    _job("job-c", ("policy.model_name=m", "data.lr=3"), days=0)  # alone in its job, yet not b's
    assert " -c tiny data.lr=3 " in " ".join(listing.listed(_jobs()).split())
    data = listing.as_data(_jobs()[0])
    assert (data["name"], data["steps"], data["overrides"][-1]) == ("a", 2, "dpo.beta=0.2")
    assert data["validation"] == {"set": "validation", "step": 2, "loss": 0.25, "accuracy": 0.75, "margin": None}


def test_order() -> None:
    _job("job-a", losses=(0.5,), days=3, policy={"optimizer": {"lr": 1e-6}})
    _job("job-b", losses=(0.25,), days=2, policy={"optimizer": {"lr": 5e-7}})
    _job("job-c", days=1)
    for key, reverse, expected in [
        ("created", False, "a b c"),
        ("created", True, "c b a"),
        ("name", True, "c b a"),
        ("accuracy", True, "b a c"),
        ("loss", False, "b a c"),
        ("policy.optimizer.lr", False, "b a c"),
        ("policy.optimizer.lr", True, "a b c"),
    ]:
        found = listing.in_order(_jobs(), key, reverse=reverse)
        assert _ids(found) == [f"job-{name}" for name in expected.split()], key
    with pytest.raises(UserError, match="no job has it: give one of created"):
        listing.in_order(_jobs(), "policy.lr", reverse=False)


def test_a_job_is_found_by_its_folder_its_name_or_a_part_of_them() -> None:
    folder = _job("20260101-beta")
    _job("20260102-beta-2")
    jobs = _jobs()
    for given in ("20260101-beta", str(folder), f"{folder}/", str(folder.resolve()), "20260101"):
        assert find(given, jobs).id == "20260101-beta", given
    for given, why in [("beta", "is the name of several jobs"), ("none", "no such job"), ("", "no such job")]:
        with pytest.raises(UserError, match=why):
            find(given, jobs)
    with pytest.raises(UserError, match="no such folder of jobs"):
        jobs_in(Path("elsewhere"))


def test_difference() -> None:
    first = _job(
        "job-a", state={"status": "done"}, losses=(0.5,), policy={"optimizer": {"lr": 1e-6}, "seed": 1}, x="jobs/job-a"
    )
    _job("job-b", state={"status": "failed"}, policy={"optimizer": {"lr": 5e-7}, "seed": 1})
    (first / "run" / "run.json").write_text(json.dumps({"lineage": {"train": "sha256:1"}}))
    a, b = sorted(_jobs(), key=lambda job: job.id)
    found = differing.difference(a, b)
    assert found["settings"] == {"policy.optimizer.lr": ["1e-06", "5e-07"], "x": ["jobs/job-a", "-"]}
    assert found["inputs"] == {"train": ["sha256:1", "-"]}
    assert found["figures"]["status"] == ["done", "failed"]
    assert found["figures"]["best validation loss"] == ["0.5000", "-"]
    assert differing.shown(a, b).splitlines()[0].split() == ["settings", "a", "b"]
    assert differing.shown(a, a) == "job-a and job-a do not differ"


def test_what_a_job_needs_of_others() -> None:
    base = _job("job-base")
    (base / "weights").mkdir()
    _job("job-by-policy", policy={"model_name": f"{base}/run/checkpoints/step_1/policy"})
    _job("job-by-file", ("data.train.path=" + str(base / "rows.jsonl"),))
    adapted = _job("job-by-adapters")
    (adapted / "run" / "run_config.yaml").write_text(
        yaml.safe_dump({"nemotron_dpo": {"base": str(base.resolve() / "weights")}})
    )
    linked = _job("job-by-link")
    (linked / "there").symlink_to(base.resolve() / "weights")
    _job("job-other", policy={"model_name": "org/model"})
    jobs = _jobs()
    assert {job.id: _needs(job, jobs) for job in jobs} == {
        "job-base": [], "job-by-policy": ["job-base"], "job-by-file": ["job-base"], "job-by-adapters": ["job-base"],
        "job-by-link": ["job-base"], "job-other": [],
    }  # fmt: skip


def _needs(job: Job, jobs: list[Job]) -> list[str]:
    return sorted(needed_by(job, jobs))


def test_prune_leaves_what_is_new_what_runs_and_what_these_need() -> None:
    oldest = _job("job-1", days=9)
    second = _job("job-2", days=8, policy={"model_name": str(oldest / "run")})
    _job("job-3", days=7)
    _job("job-4", days=6, state={"status": "running", **MINE})
    _job("job-5", days=5, policy={"model_name": str(second / "run")})
    _job("job-6", days=1)
    for keep, age, gone, stay in [
        (2, None, ["job-3"], ["job-1", "job-2", "job-4"]),
        (1, None, ["job-1", "job-2", "job-3", "job-5"], ["job-4"]),
        (None, 7.5, [], ["job-1", "job-2"]),  # 5 is younger and needs 2, which needs 1
        (None, 4.0, ["job-1", "job-2", "job-3", "job-5"], ["job-4"]),
        (2, 4.0, ["job-3"], ["job-1", "job-2", "job-4"]),
        (None, 100.0, [], []),
        (10, None, [], []),
    ]:
        found = removing.prunable(_jobs(), keep, None if age is None else age * 86400)
        assert (_ids(found.jobs), sorted(found.kept)) == (gone, stay), (keep, age)


def test_what_another_job_needs_or_may_be_writing_is_not_removed() -> None:
    base = _job("job-1")
    _job("job-2", policy={"model_name": str(base / "run")})
    _job("job-3", state={"status": "running", **MINE})
    jobs = _jobs()
    for name, why in [("job-1", "job-2 needs it"), ("job-3", "is running: it may still be worked at")]:
        with pytest.raises(UserError, match=why):
            removing.check_removable([find(name, jobs)], jobs)
    removing.check_removable([find("job-1", jobs), find("job-2", jobs)], jobs)


def test_a_stage_stays_up_to_date_by_a_job_that_has_the_same() -> None:
    """The cache believes the newest job; when that goes, an older one with the same folder takes its place."""
    made = {name: stage_cache.JOBS / f"job-{name}" / "run" for name in ("a", "b")}
    for name, folder in made.items():
        state = {"status": "done", "made": {"dpo-train": {"key": "k", "outputs": [str(folder)]}}}
        _job(f"job-{name}", state=state, days=1 if name == "a" else 0)
        (folder / "metrics.jsonl").write_text("{}\n")
    stage_cache.record("k", "dpo-train", [made["a"]])
    stage_cache.record("k", "dpo-train", [made["b"]])
    jobs = _jobs()
    removing.remove(find("job-b", jobs), jobs)
    entry = stage_cache.find("k", [Path("x")])
    assert entry is not None
    assert entry.places == (made["a"],)
    removing.remove(find("job-a", jobs), _jobs())
    assert stage_cache.find("k", [Path("x")]) is None
    assert list(stage_cache.JOBS.iterdir()) == []


def test_jobs_are_in_the_order_of_time_whatever_clocks_call_it() -> None:
    """Where daylight saving ends, at new year, and of hosts in other zones: names are of local time, their order is not."""
    made = [
        ("20261025-025000-dpo", "2026-10-25T02:50:00+02:00"),  # summer time: 00:50 in UTC
        ("20261025-021000-dpo", "2026-10-25T02:10:00+01:00"),  # twenty minutes later, by winter time
        ("20261025-013000-dpo", "2026-10-25T01:30:00+00:00"),
        ("20261231-235959-dpo", "2026-12-31T23:59:59-05:00"),
        ("20261231-220000-dpo", "2026-12-31T22:00:00-08:00"),  # after midnight in the zone above
    ]
    for name, created in made[::-1]:
        folder = _job(name, state={"status": "done"})
        record = yaml.safe_load((folder / "job.yaml").read_text())
        (folder / "job.yaml").write_text(yaml.safe_dump({**record, "created": created}))
    assert _ids(_jobs()) == [name for name, _ in made]
    ahead = _job("29990101-000000-dpo", state={"status": "done"}, days=-365)  # by a clock that ran ahead
    removal = removing.prunable(_jobs(), keep=None, older_than=0.0)
    assert ahead.name not in _ids(removal.jobs)


def test_what_a_job_is_called_cannot_draw_on_the_terminal() -> None:
    name = "\x1b[31mred\x1b]0;pwn\x07\nforged line \x9b2J \u202e"
    first = _job("job-a", ("x=1\nforged", "y=\x9b"), {"status": "failed", "stage": "a\x1b[m"}, x="\x1b[1m\nforged")
    _job("job-b", ("x=1\nforged",), {"status": "\x9b"}, x=2)
    record = yaml.safe_load((first / "job.yaml").read_text())
    (first / "job.yaml").write_text(yaml.safe_dump({**record, "name": name}))
    a, b = sorted(_jobs(), key=lambda job: job.id)
    shown = listing.listed([a, b])
    assert [line.split()[0] for line in shown.splitlines()] == ["JOB", "job-a", "job-b", "all", "2"]
    assert r"\x1b[31mred\x1b]0;pwn\x07\nforged line \x9b2J \u202e" in shown
    assert r"all of them: x=1\nforged" in shown
    differing_ = differing.shown(a, b)
    for text in (shown, differing_):
        assert not set("\x1b\x9b\x07\u202e") & set(text)
    assert r"\x1b[1m\nforged" in differing_


def test_a_date_that_no_clock_shows_hides_no_job() -> None:
    for n, created in enumerate(("9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "x\0")):
        folder = _job(f"job-{n}")
        (folder / "job.yaml").write_text(yaml.safe_dump({"created": created}))
    _job("job-new")
    assert _ids(_jobs())[-1] == "job-new"
    assert len(listing.listed(_jobs()).splitlines()) == 6
    assert all(listing.as_data(job)["id"] for job in _jobs())
    assert _ids(removing.prunable(_jobs(), keep=1, older_than=3600.0).jobs) == []  # they are as old as their folders


def test_values_of_any_kind_have_an_order() -> None:
    values = ["1" + "0" * 400, "2", ".nan", "0x" + "f" * 5000, "2026-01-01", "2026-01-01 00:00:00", "[1, 0x" + "f" * 5000 + "]"]
    for n, value in enumerate(values):
        (_job(f"job-{n}") / "train.yaml").write_text(f"x: {value}\n")
    jobs = sorted(_jobs(), key=lambda job: job.id)
    found = _ids(listing.in_order(jobs, "x", reverse=False))
    assert [name.removeprefix("job-") for name in found[:3]] == ["1", "0", "3"]
    assert len(found) == len(values)
    assert all(differing.shown(jobs[0], other) for other in jobs)


def test_words_that_are_no_path_do_not_stop_a_removal() -> None:
    made = {"a": {"key": "a\0b", "outputs": []}, "b": {"key": "../k", "outputs": []}, "c": {"key": "k", "outputs": ["\0", "x"]}}
    made |= {"d": {"key": "k", "outputs": ["x" * 5000]}}
    other = _job("job-other", x="~nouser/x", y="a/\0b", z="a/" + "x" * 300, state={"made": made})
    record = yaml.safe_load((other / "job.yaml").read_text())
    (other / "job.yaml").write_text(yaml.safe_dump({**record, "folder": "/\0"}))
    _job("job-a", state={"made": made})
    jobs = _jobs()
    for name in ("~nouser", "~nouser/x", "x" * 5000):
        with pytest.raises(UserError, match="no such job"):
            find(name, jobs)
    job = find("job-a", jobs)
    removing.check_removable([job], jobs)
    removing.remove(job, jobs)
    assert _ids(_jobs()) == ["job-other"]


def test_a_folder_whose_name_is_no_text_is_a_job_too() -> None:
    folder = _job("job-a")
    os.rename(os.fsencode(folder), os.fsencode(folder) + b"\xff")
    assert listing.as_data(_jobs()[0])["id"] == r"job-a\xff"
