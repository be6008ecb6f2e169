"""The copy of a tokenizer's files: no file from outside its folder is among them, none is left out in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_dpo.checkpoint import tokenizer_files
from nemotron_dpo.errors import UserError

TEMPLATES = "additional_chat_templates"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer, beside one that is a stranger's business: no link may lead there."""
    for folder in ("model", "outside"):
        (tmp_path / folder).mkdir()
    (tmp_path / "outside" / "x.jinja").write_text("secret")
    (tmp_path / "model" / "own.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("tokenizer.json", "../outside/x.jinja", "is a link out of its folder: put the file itself there, if it belongs to"),
        ("chat_template.jinja", "../outside/x.jinja", "is a link out of its folder"),
        (TEMPLATES, "../outside", "is a link out of its folder"),
        (f"{TEMPLATES}/x.jinja", "../../outside/x.jinja", "is a link out of its folder"),
        ("vocab.json", "gone", "is a link that leads nowhere"),
        ("vocab.json", "vocab.json", "is a link that leads nowhere"),
        ("vocab.json", "/dev/null", "is a device where a file is due"),
        (TEMPLATES, "own.json", "is a file where a folder is due"),
    ],
)
def test_a_link_that_cannot_be_copied_is_named(name: str, target: str, message: str, model: Path, tmp_path: Path) -> None:
    """A stranger's tokenizer.json -> ~/.ssh/id would be handed on with the export."""
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(target)
    with pytest.raises(UserError) as caught:
        tokenizer_files.copy(model, tmp_path / "out")
    assert str(caught.value).startswith(f"{model / name}: {message}")
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    os.mkfifo(model / "merges.txt")
    with pytest.raises(UserError, match=r"merges\.txt: is a named pipe where a file is due"):
        tokenizer_files.copy(model, tmp_path / "out")


def test_links_within_a_folder_and_within_the_hub_s_cache_are_copied(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").symlink_to(model / "own.json")
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    for folder in (snapshot / TEMPLATES, tmp_path / "hub" / "blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "hub" / "blobs" / "1").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    (snapshot / TEMPLATES / "x.jinja").symlink_to("../../../blobs/1")
    (tmp_path / "link").symlink_to(snapshot)
    for number, (source, names) in enumerate(
        [
            (model, ["tokenizer.json"]),
            *((path, ["tokenizer.json", f"{TEMPLATES}/x.jinja"]) for path in (snapshot, tmp_path / "link")),
        ]
    ):
        copy = tmp_path / str(number)
        tokenizer_files.copy(source, copy)
        assert {name: (copy / name).read_text() for name in names} == dict.fromkeys(names, "{}")
        assert not any((copy / name).is_symlink() for name in names)
