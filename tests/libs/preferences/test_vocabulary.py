"""The tokens of a policy's own tokenizer, by hand: ids may have holes, and added tokens count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_dpo.preferences.tokenizer_folder import open_folder
from nemotron_dpo.preferences.vocabulary import num_tokens

ADDED = {
    "id": 9,
    "content": "<end>",
    "special": True,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}


def write(folder: Path, added: list[dict], last: int = 2) -> Path:
    folder.mkdir()
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": last}, "unk_token": "a"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": words}))
    return folder


@pytest.mark.parametrize(("added", "last", "expected"), [([], 2, 3), ([], 6, 7), ([ADDED], 2, 4)])
def test_it_is_the_largest_id_and_one_more(added: list[dict], last: int, expected: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", added, last)
    assert num_tokens(folder, open_folder(str(folder)).digests["tokenizer"]) == expected


def test_another_tokenizer_says_nothing(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", []), write(tmp_path / "other", [ADDED])
    assert num_tokens(one, open_folder(str(other)).digests["tokenizer"]) is None
    assert num_tokens(one, None) is None
    assert num_tokens(tmp_path / "none", "sha256:0") is None
