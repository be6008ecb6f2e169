"""Where a job lies: in a folder of its own, whoever else starts in the same second."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Barrier

import pytest

from nemotron_dpo.steps.compile.job_record import claimed_job_folder, job_folder

NOW = datetime(2026, 1, 2, 3, 4, 5)


def test_runs_of_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    together = Barrier(8)

    def run(_: int) -> Path:
        with claimed_job_folder() as job_of:
            together.wait()
            job = job_of("data_prep/a", NOW, None)
            (job / "job.yaml").touch()
        return job

    with ThreadPoolExecutor(8) as pool:
        jobs = set(pool.map(run, range(8)))
    assert {job.name for job in jobs} == {f"20260102-030405-data_prep-a{end}" for end in ("", *(f"-{n}" for n in range(2, 9)))}
    assert all((tmp_path / job / "job.yaml").is_file() for job in jobs)
    assert job_folder("data_prep/a", NOW).name == "20260102-030405-data_prep-a-9"


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with claimed_job_folder() as job_of:
        assert job_of("a", NOW, None).is_dir()
    assert os.listdir() == []
    (tmp_path / ".nemotron").mkdir()
    with claimed_job_folder() as job_of:
        job_of("a", NOW, None)
    assert list(tmp_path.rglob("*")) == [tmp_path / ".nemotron"]


def test_a_place_for_jobs_that_leads_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".nemotron").symlink_to("nowhere")
    with claimed_job_folder() as job_of, pytest.raises(FileExistsError, match="nemotron"):
        job_of("rl/a", NOW, None)
