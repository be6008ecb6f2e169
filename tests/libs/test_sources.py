"""Which folder a name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.published import refuse_existing
from nemotron_dpo.sources import TRACKER, resolve, resolve_pretrained, resolve_run


def checkpoint(root: Path, *iterations: int, tracked: int | None = None) -> Path:
    """A checkpoint_megatron as far as names go."""
    for iteration in iterations:
        folder = root / f"iter_{iteration:07d}"
        folder.mkdir(parents=True)
        (folder / ".metadata").write_bytes(b"")
    if tracked is not None:
        (root / TRACKER).write_text(str(tracked))
    return root


def test_a_checkpoint_root_is_its_tracked_iteration(tmp_path: Path) -> None:
    found = resolve(checkpoint(tmp_path, 3, 20, tracked=3))
    assert (found.kind, found.path.name, found.iteration) == ("megatron", "iter_0000003", 3)
    assert found.tokenizer_folder == found.path / "tokenizer"


@pytest.mark.parametrize("content", [b"", b"../iter_0000003", b"\xff\xfe3"])
def test_a_damaged_tracker_is_one_line(content: bytes, tmp_path: Path) -> None:
    root = checkpoint(tmp_path / "root", 3)
    (root / TRACKER).write_bytes(content)
    with pytest.raises(UserError, match=r"does not name an iteration|is missing or incomplete") as caught:
        resolve(root)
    assert TRACKER in str(caught.value)


def test_without_a_tracker_it_is_the_highest_iteration(tmp_path: Path) -> None:
    assert resolve(checkpoint(tmp_path, 3, 20)).path.name == "iter_0000020"


def test_an_iteration_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(checkpoint(tmp_path, 3) / "iter_0000003").iteration == 3


@pytest.mark.parametrize("source", ["run", "run/checkpoints", "run/checkpoints/step_10"])
def test_a_run_is_its_last_step_by_number(source: str, tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoint(tmp_path / "run" / "checkpoints" / f"step_{step}" / "policy", step, tracked=step)
    (tmp_path / "run" / "checkpoints" / "step_x").mkdir()
    assert resolve_run(tmp_path / source).iteration == 10
    (tmp_path / "job.yaml").write_text("step: rl/nemo_rl/dpo")
    assert resolve_run(tmp_path).iteration == 10


@pytest.mark.parametrize("source", ["run", "run/checkpoints", "run/checkpoints/step_10"])
def test_a_run_is_no_policy_but_its_last_step_is_named(source: str, tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoint(tmp_path / "run" / "checkpoints" / f"step_{step}" / "policy", step, tracked=step)
    with pytest.raises(UserError, match=r"is neither .*: it holds some: name .*/run/checkpoints/step_10/policy$"):
        resolve(tmp_path / source)


def test_adapters_of_peft_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds adapters of peft and no model: merge them"):
        resolve(tmp_path)


def test_a_step_can_be_named(tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoint(tmp_path / f"step_{step}" / "policy", step, tracked=step)
    assert resolve_run(tmp_path / "step_9").iteration == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./none", "no such model folder"),
        ("a/b/c", "no such model folder"),
        ("{tmp}", "is neither an HF folder"),
        ("{tmp}/file", "is a file where a model folder is due"),
    ],
)
def test_what_is_no_model_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        resolve(name.format(tmp=tmp_path))


def test_output_folders_must_be_new_or_empty(tmp_path: Path) -> None:
    refuse_existing(tmp_path)
    refuse_existing(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(tmp_path)


def test_the_weights_digest_is_of_content_not_of_place(tmp_path: Path) -> None:
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (resolve(tmp_path / name).files_digest() for name in "abc")
    assert a == b != c


def test_the_digest_of_a_checkpoint_covers_what_it_says_of_the_model(tmp_path: Path) -> None:
    said = {
        "a": "{model: {rotary_base: 1.0e4}, checkpoint: {load: /here}}",
        "moved": "{checkpoint: {load: /there},\n\n model: {rotary_base: 1.0e4}}",
        "other": "{model: {rotary_base: 5.0e5}}",
        "broken": "{model: [",
    }
    digests = {}
    for name, text in said.items():
        folder = checkpoint(tmp_path / name, 3) / "iter_0000003"
        (folder / "__0_0.distcp").write_bytes(b"1")
        (folder / "run_config.yaml").write_text(text)
        digests[name] = resolve(folder).files_digest()
    assert digests["a"] == digests["moved"]
    assert len(set(digests.values())) == 3


def test_the_digest_of_megatron_lm_weights_covers_the_model_that_is_named_for_them(tmp_path: Path) -> None:
    root = checkpoint(tmp_path / "lm", 3)
    digests = set()
    for vocab in (96, 128):
        (tmp_path / str(vocab)).mkdir()
        (tmp_path / str(vocab) / "config.json").write_text(f'{{"vocab_size": {vocab}}}')
        digests.add(resolve_pretrained(root, "megatron_lm", tmp_path / str(vocab)).files_digest())
    assert len(digests) == 2
