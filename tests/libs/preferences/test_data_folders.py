"""Folders as `datasets` lays them out (by hand here, after its version 5.2), folders of splits, and folders of one set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.data_folders import folder_files, split_name
from nemotron_dpo.preferences.inputs import expand

SEVERAL = "DIR: holds files of several splits, which are not mixed: {}: name files, a glob or a folder, as in 'DIR/{}'"


def lay_out(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def save(folder: Path, *names: str, **state: object) -> Path:
    """What `Dataset.save_to_disk` leaves, its data files empty."""
    lay_out(folder, *names)
    entries = [{"filename": name} for name in names]
    whole = {"_data_files": entries, "_fingerprint": "fe6ad8f9be5bca2e", "_format_type": None, "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(whole, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"prompt": {"dtype": "string", "_type": "Value"}}}))
    return folder


def found(folder: Path) -> list[str]:
    return [Path(file).relative_to(folder).as_posix() for file in folder_files(folder)]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        folder_files(folder)
    return str(caught.value).replace(str(folder), "DIR")


def test_a_saved_set_is_the_files_that_its_state_names_in_their_order(tmp_path: Path) -> None:
    save(tmp_path, "data-00001-of-00002.arrow", "data-00000-of-00002.arrow")
    lay_out(tmp_path, "cache-0123456789abcdef.arrow")
    assert found(tmp_path) == ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    assert [Path(file).name for file in expand([str(tmp_path / "*.json")])] == []


def test_a_saved_dictionary_of_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split, "data-00000-of-00001.arrow")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert refusal(tmp_path) == SEVERAL.format("test, train", "train")
    assert found(tmp_path / "train") == ["data-00000-of-00001.arrow"]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert found(tmp_path) == ["test/data-00000-of-00001.arrow"]
    nested = tmp_path / "above"
    save(nested / "set" / "a", "data-00000-of-00001.arrow")
    (nested / "set" / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    assert refusal(nested).startswith("DIR/set: holds files of several splits, which are not mixed: a, b: ")


SAVED_BADLY = {
    "a file is gone": ({"_data_files": [{"filename": "gone.arrow"}]}, "DIR/gone.arrow: is not there, though state.json"),
    "no files": ({"_data_files": None}, "DIR/state.json: does not name what lies beside it"),
    "files elsewhere": ({"_data_files": [{"filename": "../x.arrow"}]}, "DIR/state.json: does not name what lies beside it"),
    "rows to pick": ({"_indices_data_files": [{"filename": "i"}]}, "DIR: was saved by an old version of datasets, as rows"),
    "parts of files": (
        {"_data_files": [{"filename": "a.arrow", "skip": 5, "take": 7}]},
        "DIR: was saved by an old version of datasets, as rows",
    ),
}  # fmt: skip


def test_a_saved_set_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    for what, (state, expected) in SAVED_BADLY.items():
        assert refusal(save(tmp_path, "a.arrow", **state)).startswith(expected), what
    (tmp_path / "state.json").write_text("{")
    assert refusal(tmp_path).startswith("DIR/state.json: is broken JSON: ")


# what it shows -> (files, those that are read, None for all that are no junk)
ONE_SET = {
    "shards": (["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"], None),
    "one split of a hub's folder": (
        ["data/train-00000-of-00001.parquet", "README.md", ".gitattributes"],
        ["data/train-00000-of-00001.parquet"],
    ),
    "training files and others": (["extra.jsonl", "train.jsonl"], None),
    "a test set alone": (["test.jsonl", "test_2.jsonl.xz"], None),
    "words within words": (["contest.jsonl", "latest.jsonl", "devout.json", "evals.ndjson", "trainer.JSONL"], None),
    "what others leave behind": (
        [
            "a.json.bz2",
            ".cache/b.jsonl",
            "_temporary/c.parquet",
            ".hidden.jsonl",
            "_metadata.parquet",
            "dataset_info.json",
            "s.txt",
        ],
        ["a.json.bz2"],
    ),
}
SPLITS = {
    "a hub's folder": (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        "test (1), train (2)", "data/train-0000*",
    ),
    "splits of one word": (
        [f"data/{split}-00000-of-00001.parquet" for split in ("test_prefs", "train_prefs", "train_sft")],
        "test_prefs (1), train_prefs (1), train_sft (1)", "data/train_prefs-00000-of-00001.parquet",
    ),
    "folders": (["dev/a.jsonl", "training/a.jsonl", "training/b.jsonl"], "validation (1), train (2)", "training/*"),
    "partitions": (["split=test/a.parquet", "split=train/a.parquet"], "test (1), train (1)", "split=train/a.parquet"),
    "folders of each": (["x/test.jsonl.gz", "x/train.jsonl.gz", "y/train.jsonl.gz"], "test (1), train (2)", "x/train.jsonl.gz"),
    "files": (["valid.json", "train.json"], "train (1), validation (1)", "train.json"),
    "a test set beside": (["a.jsonl", "b.jsonl", "eval_set.jsonl"], "no split by name (2), test (1)", "eval_set.jsonl"),
}  # fmt: skip


def test_files_of_one_set_are_read_sorted(tmp_path: Path) -> None:
    for what, (names, expected) in ONE_SET.items():
        lay_out(tmp_path / what, *names)
        assert found(tmp_path / what) == sorted(expected or names), what


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    for what, (names, held, example) in SPLITS.items():
        lay_out(tmp_path / what, *names)
        assert refusal(tmp_path / what) == SEVERAL.format(held, example), what
        named = expand([str(tmp_path / what / example)])
        assert 0 < len(named) < len(names), what
        assert len({split_name(Path(file).relative_to(tmp_path / what).as_posix()) for file in named}) == 1, what


def test_links_are_followed_once(tmp_path: Path) -> None:
    lay_out(tmp_path / "elsewhere", "b.jsonl")
    lay_out(tmp_path / "set", "a.jsonl")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
    assert found(tmp_path / "set") == ["a.jsonl", "link/b.jsonl"]


def test_a_delta_table_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, "part-0.snappy.parquet", "_delta_log/00000.json")
    assert refusal(tmp_path) == "DIR: is a Delta table, whose files may hold rows that it no longer has"
