"""The data sets of a run as its config names them: NeMo-RL's keys, lists, shares of the training set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemotron_dpo.config import (
    DatasetConfig,
    dump_run,
    load_run,
)
from nemotron_dpo.errors import UserError

ALIASES = [
    ("data.train.prompt_file=a.jsonl", DatasetConfig("a.jsonl")),
    ("data.train.data_path=a.jsonl", DatasetConfig("a.jsonl")),
    ("data.train.path=a.jsonl", DatasetConfig("a.jsonl")),
]


@pytest.mark.parametrize(("override", "dataset"), ALIASES)
def test_names_of_the_data_file(override: str, dataset: DatasetConfig):
    assert load_run(None, [override])[0].data.train == dataset


HELPSTEER = "data: {train: {split: train}, validation: {split: validation}, default: {dataset_name: HelpSteer3}}"
# overrides -> (data.train, data.validation) above HELPSTEER, as NVIDIA's configs of the step have it
NAMED = [
    ((), DatasetConfig("HelpSteer3", split="train"), DatasetConfig("HelpSteer3", split="validation")),
    (
        ("data.train.prompt_file=a.jsonl", "data.validation.data_path=v.jsonl"),
        DatasetConfig("a.jsonl", split="train"),
        DatasetConfig("v.jsonl", split="validation"),
    ),
    (
        ("data.default.dataset_name=PreferenceDataset", "data.train.data_path=a", "data.validation.data_path=v"),
        DatasetConfig("a", split="train", row_format="ranked"),
        DatasetConfig("v", split="validation", row_format="ranked"),
    ),
    (
        ("data.train.dataset_name=BinaryPreferenceDataset", "data.train.data_path=o/d", "data.train.chosen_key=good"),
        DatasetConfig("o/d", split="train", chosen_key="good"),
        DatasetConfig("HelpSteer3", split="validation", is_default=True),
    ),
    (
        ("data.train.dataset_name=org/name", "data.default.subset=s", "data.validation.split=test[:1%]"),
        DatasetConfig("org/name", split="train", subset="s"),
        DatasetConfig("HelpSteer3", split="test[:1%]", subset="s", is_default=True),
    ),
]


def test_data_sets_are_named_as_in_nemo_rl(tmp_path: Path):
    (config := tmp_path / "c.yaml").write_text(HELPSTEER)
    for overrides, train, validation in NAMED:
        run, warnings = load_run(config, list(overrides))
        assert (run.data.train, run.data.validation) == (train, (("default", validation),)), overrides
        assert warnings == []


@pytest.mark.parametrize("below", ["prompt_file", "data_path", "path", "dataset_name"])
@pytest.mark.parametrize("above", ["prompt_file", "data_path", "path", "dataset_name"])
def test_the_later_name_of_the_rows_wins(below: str, above: str, tmp_path: Path):
    """Whichever keys they have: neither are the rows of the file used in silence, nor is the override refused."""
    (config := tmp_path / "c.yaml").write_text(
        f"data: {{train: {{{below}: a.jsonl}}, validation: {{hard: {{{below}: a.jsonl}}}}}}"
    )
    given = [f"data.train.{above}=b.jsonl", f"data.validation.hard={{{above}: b.jsonl}}", "checkpointing.metric_name=null"]
    data = load_run(config, given)[0].data
    assert (data.train, data.validation) == (DatasetConfig("b.jsonl"), (("hard", DatasetConfig("b.jsonl")),))


def test_a_single_validation_set_is_the_default_one_beside_others(tmp_path: Path):
    """On either side: a config with one set takes others by name, and one with names takes a single set."""
    (config := tmp_path / "c.yaml").write_text("data: {validation: {prompt_file: a.jsonl, limit: 4}}")
    run, _ = load_run(config, ["data.validation.hard.path=h.jsonl"])
    both = (("default", DatasetConfig("a.jsonl", limit=4)), ("hard", DatasetConfig("h.jsonl")))
    assert tuple(sorted(run.data.validation)) == both
    config.write_text("data: {validation: {hard: {prompt_file: h.jsonl}}}")
    run, _ = load_run(config, ["data.validation={dataset_name: a.jsonl, limit: 4}"])
    assert tuple(sorted(run.data.validation)) == both


def test_rows_named_twice_in_one_file_are_refused_still(tmp_path: Path):
    (config := tmp_path / "c.yaml").write_text("data: {train: {prompt_file: a.jsonl, path: b.jsonl}}")
    with pytest.raises(UserError, match="under another name"):
        load_run(config, [])


A, B = DatasetConfig("a.jsonl", weight=2.0), DatasetConfig("b.jsonl", row_format="ranked", chosen_key="good")
LISTED = "[{prompt_file: a.jsonl, weight: 2}, {data_path: b.jsonl, dataset_name: PreferenceDataset, chosen_key: good}]"


def test_a_list_of_data_sets_is_one_set(tmp_path: Path):
    """Over a mapping of a file and under another override; each with data.default's keys; written out as it was given."""
    (config := tmp_path / "c.yaml").write_text(HELPSTEER)
    steered = replace(A, split="test", path="a.jsonl"), replace(B, split="test")
    for overrides, train in (
        ([f"data.train={LISTED}"], DatasetConfig(parts=(A, B))),
        ([f"data.train={LISTED}", "data.default.split=test"], DatasetConfig(parts=steered)),
        ([f"data.train={LISTED}", "data.train.prompt_file=c.jsonl"], DatasetConfig("c.jsonl")),
        (["data.train=[a.jsonl]"], DatasetConfig(parts=(DatasetConfig("a.jsonl"),))),
    ):
        run, warnings = load_run(config, overrides)
        assert (run.data.train, warnings) == (train, []), overrides
        (written := tmp_path / "written.yaml").write_text(dump_run(replace(run, data=replace(run.data, validation=()))))
        assert load_run(written, [])[0].data.train == train
    for override, name in ((f"data.validation={LISTED}", "default"), (f"data.validation={{hard: {LISTED}}}", "hard")):
        run, _ = load_run(None, [override, "checkpointing.metric_name=null"])
        assert run.data.validation == ((name, DatasetConfig(parts=(A, B))),)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.train=[]"], '"data.train" is an empty list: name data, or leave it null'),
        (
            ["data.train=a.jsonl"],
            "\"data.train\" is 'a.jsonl' where a mapping is due: name a file by data.train.prompt_file=a.jsonl",
        ),
        (
            ["data.validation.hard=a.jsonl"],
            "\"data.validation.hard\" is 'a.jsonl' where a mapping with a path is due: "
            "name a file by data.validation.hard.prompt_file=a.jsonl",
        ),
        (["data.train=[3]"], '"data.train.0" is 3 where a mapping with a path is due'),
        (["data.train=[a, {weight: 2}]"], '"data.train.1" has no path: give path or dataset_name'),
        (["data.train=[{path: a, wieght: 2}]"], '"data.train.wieght" is no known key: did you mean data.train.weight?'),
        (["data.train=[{path: a, weight: 0}]"], '"data.train.0.weight" is 0.0 where more than 0 is due'),
        (["data.train=[{path: a, weight: inf}]"], '"data.train.0.weight" is inf where a finite number is due'),
        (["data.train=[{path: a, on_error: x}]"], "\"data.train.0.on_error\" is 'x' where 'fail' or 'skip' is due"),
        (["data.train=[a, b]", "data.train.limit=3"], '"data.train" is a list of data sets: give data.train as a whole'),
        (
            ["data.train=[{path: a, split_validation_size: 0.05}]"],
            '"data.train.split_validation_size" is 0.05, which holds rows out of the training set (NeMo-RL\'s DPO does not) and '
            "is not built: data.validation.split_from_train=0.05 does, by prompt",
        ),
    ],
)
def test_a_list_that_cannot_be_meant_is_one_clear_line(overrides: list[str], line: str):
    with pytest.raises(UserError) as caught:
        load_run(None, overrides)
    assert str(caught.value).removeprefix(f"{overrides[-1]}: ") == line


def test_a_share_of_the_training_set_has_no_rows_of_its_own(tmp_path: Path):
    """What is below of another set goes; what data.default says of rows is said of the training set alone."""
    share = DatasetConfig(split_from_train=0.05)
    (below := tmp_path / "c.yaml").write_text(HELPSTEER)
    (single := tmp_path / "d.yaml").write_text("data: {validation: {prompt_file: v.jsonl, limit: 3, prompt_key: q}}")
    (named := tmp_path / "e.yaml").write_text("data: {validation: {default: {path: v}, hard: {path: h, limit: 4}}}")
    for config in (None, below, single):
        run, _ = load_run(config, ["data.validation.split_from_train=0.05", "data.default.drop=[tied]"])
        assert run.data.train.drop == ("tied",)
        assert run.data.validation == (("default", share),)
        (written := tmp_path / "written.yaml").write_text(dump_run(run))
        assert load_run(written, [])[0].data == run.data
    run, _ = load_run(named, ["data.validation.default={split_from_train: 0.05, split_seed: 7}"])
    assert dict(run.data.validation) == {"default": replace(share, split_seed=7), "hard": DatasetConfig("h", limit=4)}
    run, _ = load_run(single, ["data.validation.split_from_train=0.05", "data.validation.data_path=w.jsonl"])
    assert run.data.validation == (("default", DatasetConfig("w.jsonl")),)


SHARE = "data.validation.split_from_train=0.05"
NOT_HELD_OUT = [
    (["data.train.split_from_train=0.5"], '"data.train.split_from_train" is 0.5, and only a whole validation set can be held out'),
    (["data.train=[{path: a, split_seed: 5}]"], '"data.train.0.split_seed" is 5, and only a whole validation set'),
    (["data.validation=[{path: a, split_from_train: 0.1}]"], '"data.validation.default.0.split_from_train" is 0.1, and only a whole'),
    (["data.train=[a, b]", SHARE], '"data.validation.default.split_from_train" is 0.05, and data.train is a list: a prompt of one'),
    (["data.validation.split_from_train=1"], '"data.validation.default.split_from_train" is 1.0 where less than 1 is due'),
    (["data.validation.split_from_train=0"], '"data.validation.default.split_from_train" is 0.0 where more than 0 is due'),
    (["data.validation={split_from_train: 0.1, path: v}"], '"data.validation.default.path" is v, and the set is held out'),
    (["data.train.drop=[twins]"], "\"data.train.drop\" is 'twins' where 'empty' or 'whitespace' or 'inverted' or 'tied'"),
    ([SHARE, "data.validation.limit=3"], '"data.validation.default.limit" is 3, and the set is held out of the training set'),
    (["data.validation={split_seed: 1, path: v}"], '"data.validation.default.split_seed" is 1, and split_from_train is not set'),
    (["data.validation={a: {split_from_train: 0.1}, b: {split_from_train: 0.2}}"],
        '"data.validation.b.split_from_train" is 0.2, and data.validation.a is held out as well: they would share prompts'),
    (["data.validation.split_form_train=0.1"], '"data.validation.split_form_train" is 0.1 where a mapping with a path is due: '
        "did you mean data.validation.split_from_train?"),
    ([SHARE, "data.validation.split_sede=1"], '"data.validation.split_sede" is no known key: did you mean data.validation.split_seed?'),
    (["data.default.split_from_train=0.1"], '"data.default.split_from_train" is no known key'),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "line"), NOT_HELD_OUT)
def test_a_share_that_cannot_be_held_out_is_one_clear_line(overrides: list[str], line: str):
    with pytest.raises(UserError) as caught:
        load_run(None, ["checkpointing.metric_name=null", *overrides])
    assert str(caught.value).removeprefix(f"{overrides[-1]}: ").startswith(line)


def test_the_form_of_files_names_no_place():
    run, _ = load_run(None, ["data.train.dataset_name=PreferenceDataset"])
    assert run.data.train == DatasetConfig()


def test_one_validation_file_is_called_default():
    assert load_run(None, ["data.validation.data_path=v.jsonl"])[0].data.validation == (("default", DatasetConfig("v.jsonl")),)
