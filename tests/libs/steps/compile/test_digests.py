"""Digests by content: what counts, what does not, and what is remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import orjson
import pytest

from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.compile.digests import Digests, Unknown
from nemotron_dpo.steps.tiny_policy import write_policy

DATA = configs_root() / "rl" / "nemo_rl" / "dpo" / "data" / "validation.jsonl"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "hf"
    write_policy([DATA], folder)
    os.utime(folder / "model.safetensors", (1, 1))  # it has settled
    return folder


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def _large(path: Path, byte: bytes = b"x") -> Path:
    """A file large enough to be remembered, and old enough to have settled."""
    path.write_bytes(byte * (1 << 20))
    os.utime(path, (1, 1))
    return path


def test_file_is_sha256_of_its_bytes(tmp_path: Path):
    small, large = tmp_path / "small", _large(tmp_path / "large")
    small.write_bytes(b"abc")
    digests = Digests(tmp_path / "memo.json")
    assert digests.file(small) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests.file(large) == hashlib.sha256(b"x" * (1 << 20)).hexdigest()


def test_large_file_is_read_once(tmp_path: Path):
    large, memo = _large(tmp_path / "large"), tmp_path / "memo.json"
    digests = Digests(memo)
    first = digests.file(large)
    digests.save()
    assert Digests(memo, peek=True).file(large) == first
    noted = orjson.loads(memo.read_bytes())
    memo.write_bytes(orjson.dumps(dict.fromkeys(noted, "remembered")))
    assert Digests(memo).file(large) == "remembered"


def _same_size(path: Path) -> None:
    path.write_bytes(b"y" * (1 << 20))


def _replaced(path: Path) -> None:
    other = _large(path.with_name("other"), b"y")
    os.replace(other, path)  # size and time are the same, the inode is not


@pytest.mark.parametrize("change", [_same_size, _replaced])
def test_changed_file_is_read_again(tmp_path: Path, change):
    large, memo = _large(tmp_path / "large"), tmp_path / "memo.json"
    digests = Digests(memo)
    digests.file(large)
    digests.save()
    change(large)
    with pytest.raises(Unknown):
        Digests(memo, peek=True).file(large)
    assert Digests(memo).file(large) == hashlib.sha256(b"y" * (1 << 20)).hexdigest()


def test_file_that_may_still_change_is_not_remembered(tmp_path: Path):
    fresh, memo = tmp_path / "fresh", tmp_path / "memo.json"
    fresh.write_bytes(b"x" * (1 << 20))
    digests = Digests(memo)
    digests.file(fresh)
    digests.save()
    assert not memo.exists()


def test_damaged_memo_is_no_memo(tmp_path: Path):
    memo = tmp_path / "memo.json"
    memo.write_text("{")
    assert Digests(memo).file(_large(tmp_path / "large"))


def test_rows_count_by_content_and_order_and_by_the_name_that_their_pairs_get(tmp_path: Path):
    """Where they lie does not count."""
    digests = Digests(tmp_path / "memo.json")
    for folder, texts in (("x", "12"), ("y", "12"), ("z", "21")):
        (tmp_path / folder).mkdir()
        for name, text in zip("ab", texts, strict=True):
            (tmp_path / folder / f"{name}.jsonl").write_text(text)
    assert digests.data(f"{tmp_path}/x/*.jsonl") == digests.data(f"{tmp_path}/y/*.jsonl")
    assert digests.data(f"{tmp_path}/x/*.jsonl") != digests.data(f"{tmp_path}/z/*.jsonl")
    (tmp_path / "x/b.jsonl").rename(tmp_path / "x/c.jsonl")
    assert digests.data(f"{tmp_path}/x/*.jsonl") != digests.data(f"{tmp_path}/y/*.jsonl")


def test_data_counts_by_the_split_that_is_read(tmp_path: Path):
    digests = Digests(tmp_path / "memo.json")
    for name in ("a/train.jsonl", "a/test.jsonl", "b/a/train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(Path(name).name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b/a")
    assert digests.data(a, "train") == digests.data(b, "train[:1]") == digests.data(b)
    assert digests.data(a, "train") != digests.data(a, "test")


def test_a_dry_run_asks_no_hub_for_data(tmp_path: Path):
    with pytest.raises(Unknown):
        Digests(tmp_path / "memo.json", peek=True).data("HelpSteer3", "train")


def test_policy_counts_by_content(tmp_path: Path, policy: Path):
    digests = Digests(tmp_path / "memo.json")
    same, other = _copy(policy, tmp_path / "same"), _copy(policy, tmp_path / "other")
    (same / "README.md").write_text("words")
    (other / "tokenizer_config.json").write_text("{}")
    assert digests.policy(str(policy)) == digests.policy(str(same))
    assert digests.policy(str(policy)) != digests.policy(str(other))
    assert digests.tokenizer(str(policy)) == digests.tokenizer(str(same))
    weights = bytearray((same / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (same / "model.safetensors").write_bytes(weights)
    assert digests.policy(str(policy)) != digests.policy(str(same))
    assert digests.tokenizer(str(policy)) == digests.tokenizer(str(same))


def test_template_that_prints_the_day_counts_with_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datetime

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2026, 1, 2)

    digests = Digests(tmp_path / "memo.json")
    plain, dated = "{{ messages }}", "{{ strftime_now('%d') }}"
    before = digests.template(plain), digests.template(dated)
    monkeypatch.setattr("nemotron_dpo.steps.compile.digests.datetime.date", Tomorrow)
    after = digests.template(plain), digests.template(dated)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_peeking_asks_no_hub(tmp_path: Path):
    with pytest.raises(Unknown):
        Digests(tmp_path / "memo.json", peek=True).policy("org/model")


def test_model_of_the_hub_is_found_where_it_was(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch):
    from nemotron_dpo import sources

    monkeypatch.setattr(sources, "_download", lambda name: policy)
    digests = Digests(tmp_path / "memo.json")
    fetched = digests.policy("org/model")
    digests.save()
    monkeypatch.setattr(sources, "_download", lambda name: pytest.fail("asked the hub"))
    assert Digests(tmp_path / "memo.json", peek=True).policy("org/model") == fetched == digests.policy(str(policy))
