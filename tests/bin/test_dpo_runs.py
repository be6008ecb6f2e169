"""dpo-runs, and nemotron-steps runs which is the same: listing, removing, and asking before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.programs import Done, check, error_line, run

PROGRAM = "dpo-runs"
TOKENIZE = ("run", "data_prep/preference_tokenize", "-c", "default")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """A folder with three jobs: one called first, one called second by a key of the config, and one that failed."""
    folder = tmp_path_factory.mktemp("jobs")
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "chosen": "good", "rejected": "bad"}) + "\n")
    given = (f"data.path={rows}", f"tokenizer={policy}")
    check("nemotron-steps", *TOKENIZE, *given, "--name", "first", cwd=folder)
    check("nemotron-steps", *TOKENIZE, *given, "run.name=second", "max_length=99", cwd=folder)
    rows.write_text("{")
    assert run("nemotron-steps", *TOKENIZE, *given, "--name=third", cwd=folder).returncode == 1
    return folder


def _names(done: Done) -> list[tuple[str, str]]:
    return [(job["name"], job["status"]) for job in json.loads(done.stdout)]


def test_jobs_have_names_and_say_how_they_stand(jobs: Path) -> None:
    everything = [("first", "done"), ("second", "done"), ("third", "failed")]
    assert _names(check(PROGRAM, "--json", cwd=jobs)) == everything
    assert _names(check("nemotron-steps", "runs", "ls", "--json", cwd=jobs)) == everything
    assert _names(check(PROGRAM, "ls", "--failed", "--json", cwd=jobs)) == everything[2:]
    assert _names(check(PROGRAM, "--sort", "name", "--reverse", "--json", cwd=jobs)) == everything[::-1]
    shown = check(PROGRAM, cwd=jobs).stdout.decode().splitlines()
    assert "failed (preference-tokenize)" in shown[3]
    assert shown[-1].startswith("3 jobs, ")
    assert all(job["id"].endswith(f"-{job['name']}") for job in json.loads(check(PROGRAM, "--json", cwd=jobs).stdout))
    shown = check("nemotron-steps", "runs", "diff", "first", "second", cwd=jobs).stdout.decode().splitlines()
    assert [line.split() for line in shown[:2]] == [["settings", "first", "second"], ["max_length", "4096", "99"]]


def test_mistakes_are_one_line(jobs: Path) -> None:
    cases = [
        (("rm", "fourth"), 2, "fourth: no such job: `nemotron-steps runs` lists them"),
        (("prune",), 2, "prune: does not say what to keep: give --keep N, --older-than AGE or both"),
        (("prune", "--older-than", "7"), 2, "--older-than 7: is no age: give a number and m, h, d or w: 90d"),
        (
            ("--jobs", "none"),
            1,
            "none: no such folder of jobs: nemotron-steps run makes it in the folder where it is started; --jobs names another",
        ),
        (
            ("--sort", "lr"),
            2,
            "--sort lr: no job has it: give one of created, id, name, step, status, size, steps, loss, accuracy, margin, or a setting such as policy.optimizer.lr",
        ),
    ]
    for arguments, status, line in cases:
        done = run(PROGRAM, *arguments, cwd=jobs)
        assert (done.returncode, error_line(done, PROGRAM)) == (status, line)
    named = run("nemotron-steps", *TOKENIZE, "--name", "no/name", cwd=jobs)
    assert (named.returncode, "--name=no/name: is no name for a job" in named.stderr.decode()) == (2, True)


def test_what_a_job_is_called_cannot_draw_on_the_terminal(tmp_path: Path) -> None:
    for folder, name in (("a", "\\e[31mred\\u009b2J\\u202e"), ("b", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "job.yaml").write_text(f'name: "{name}"\nversion: "{name}"\n')
    for arguments in (("ls",), ("ls", "--json"), ("diff", "a", "b"), ("diff", "a", "b", "--json"), ("prune", "--keep=0", "-n")):
        shown = check(PROGRAM, *arguments, "--jobs", tmp_path).stdout.decode()
        assert "red" in shown, arguments
        assert not set("\x1b\x9b\u202e") & set(shown), arguments


def test_what_a_removal_left_is_told_and_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".a.removed"
    left.mkdir()
    for folder in (left, tmp_path / "b"):
        folder.mkdir(exist_ok=True)
        (folder / "job.yaml").write_text("name: x\n")
    told = f"dpo-runs: {left} is left of a removed job, "
    for arguments in (("ls",), ("ls", "--json")):
        done = check(PROGRAM, *arguments, "--jobs", tmp_path)
        assert done.stderr.decode().startswith(told), arguments
        assert b".a.removed" not in done.stdout
    check(PROGRAM, "prune", "--keep", "1", "-n", "--jobs", tmp_path)
    assert left.is_dir()
    said = check(PROGRAM, "prune", "--keep", "1", "--jobs", tmp_path).stderr.decode().splitlines()
    assert said == ["dpo-runs: nothing to remove", f"dpo-runs: removed {left}, which was left of a removed job"]
    left.mkdir()
    check(PROGRAM, "rm", "b", "--jobs", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_name_removes_nothing_without_a_word(tmp_path: Path) -> None:
    for folder in ("20260101-a", "20260102-b", "20260103-c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "job.yaml").write_text(f"name: called-{folder[-1]}\n")
    for arguments in (("0101",), ("called", "--force"), ("20260102-b", "0101"), ("20260101",)):
        done = run(PROGRAM, "rm", *arguments, "--jobs", tmp_path)
        assert done.returncode, arguments
        assert len(list(tmp_path.iterdir())) == 3, arguments
    done = run(PROGRAM, "rm", "0101", "--jobs", tmp_path)
    assert error_line(done, PROGRAM) == "nothing is removed: there is nobody to ask: give --yes"
    assert b"20260101-a" in done.stdout
    check(PROGRAM, "rm", "0101", "--yes", "--jobs", tmp_path)
    check(PROGRAM, "rm", "called-b", str(tmp_path / "20260103-c"), "--jobs", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_pruned_without_a_word_and_what_is_removed_is_gone(jobs: Path) -> None:
    before = _names(check(PROGRAM, "--json", cwd=jobs))
    done = run(PROGRAM, "prune", "--keep", "1", cwd=jobs)
    assert (done.returncode, done.stderr.decode()) == (
        1,
        "dpo-runs: error: nothing is removed: there is nobody to ask: give --yes\n",
    )
    check(PROGRAM, "prune", "--keep", "1", "--dry-run", cwd=jobs)
    check(PROGRAM, "prune", "--older-than", "1d", "--yes", cwd=jobs)
    assert _names(check(PROGRAM, "--json", cwd=jobs)) == before
    check(PROGRAM, "rm", "first", cwd=jobs)
    assert _names(check(PROGRAM, "--json", cwd=jobs)) == before[1:]
    said = check(PROGRAM, "prune", "--keep", "1", "--yes", cwd=jobs).stderr.decode()
    gone, count = said.splitlines()
    assert gone.startswith("dpo-runs: removed ")
    assert gone.endswith("-second")
    assert count.startswith("dpo-runs: 1 job removed, ")
    assert _names(check(PROGRAM, "--json", cwd=jobs)) == before[2:]
