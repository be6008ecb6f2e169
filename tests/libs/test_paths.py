"""Home folders in paths, and outputs that would be written over inputs."""

from __future__ import annotations

import os
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import pytest

from nemotron_dpo.config import RunConfig, load_run, steps, with_home
from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import cache_home, expand_home, refuse_overwriting
from nemotron_dpo.steps.compile import tiny_sft


def test_a_tilde_is_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    same = ["-", "", "a/~/b", "meta-llama/Llama", "./~/x", "{{ messages }}"]
    assert [expand_home(path) for path in same] == same
    assert [expand_home(path) for path in ("~", "~/x y", "~root")] == ["/home/me", "/home/me/x y", "/root"]
    with pytest.raises(UserError, match=r"~nobody-here/x: there is no user nobody-here: \./~nobody-here/x would be"):
        expand_home("~nobody-here/x")
    (tmp_path / "~backup").touch()
    assert expand_home("~backup") == "~backup"


def test_a_cache_home_that_is_relative_is_none(monkeypatch, tmp_path):
    """As the XDG base directory specification has it: such a path is invalid and to be ignored."""
    monkeypatch.setenv("HOME", "/home/me")
    for given, home in (
        ("/c", "/c"),
        ("c", "/home/me/.cache"),
        ("./c", "/home/me/.cache"),
        ("~/c", "/home/me/.cache"),
        ("", "/home/me/.cache"),
    ):
        assert cache_home({"XDG_CACHE_HOME": given}) == Path(home)
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert tiny_sft.cache_root() == Path(home) / "nemotron-dpo"
    assert cache_home({}) == Path("/home/me/.cache")


RUN = """
policy: {model_name: ~/p, tokenizer: {name: ~/t, chat_template: ~/c.jinja}}
data: {train: {prompt_file: ~/d}, val_data_paths: {a: ~/a, b: b}}
checkpointing: {checkpoint_dir: ~/k, pretrained_checkpoint: {path: ~/m}}
logger: {log_dir: ~/l}
"""


def test_every_path_of_a_config_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/h")
    (tmp_path / "c.yaml").write_text(RUN)
    loaded, _ = load_run(tmp_path / "c.yaml", [])
    assert "/h/" not in str(loaded)  # on a cluster it is the cluster's home
    run = with_home(loaded)
    assert str(asdict(run)).replace("~/", "/h/") == str(asdict(run)) == str(asdict(loaded)).replace("~/", "/h/")
    assert run.data.validation[0][1].path == "/h/a"
    assert run.policy.model_name == "/h/p"


def test_fields_that_name_files_are_marked():
    """Those that are text and no path are listed, so that a new one is thought about."""
    no_paths = {"prompt_key", "chosen_key", "rejected_key", "on_error", "metric_name", "checkpoint_must_save_by"}
    no_paths |= {"split", "subset", "source_name", "chosen_reward_key", "rejected_reward_key", "f_divergence", "odpo_gap"}
    no_paths |= {"hf_model_id", "hf_model_path", "device_map", "upstream_script"}  # of merge_lora, where they mean nothing
    no_paths |= {
        "project",
        "entity",
        "workspace",
        "name",
        "group",
        "job_type",
        "notes",
        "experiment_name",
        "run_name",
        "run_id",
    }
    every = [RunConfig, *(value for name, value in vars(steps).items() if name.endswith("Config"))]
    unmarked = {item.name for cls in every for item in _texts(cls) if not item.metadata.get("is_path")}
    assert unmarked - no_paths == set()


def _texts(cls):
    for item in fields(cls):
        default = getattr(cls(), item.name)
        if is_dataclass(default):
            yield from _texts(type(default))
        elif item.type in ("str", "str | None"):
            yield item


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows").write_text("x")
    os.link("rows", "linked")
    Path("pointer").symlink_to("rows")
    Path("model").mkdir()
    Path("model/tokenizer.json").write_text("{}")
    Path("model/pairs.arrow").write_text("{}")
    return tmp_path


# (outputs, inputs, what is said of them, if anything)
OVERWRITTEN = [
    ({"-o": "rows"}, ["rows"], "rows: -o would be written over what is read: rows: name another file"),
    ({"-o": "linked"}, ["rows"], "linked: -o would be written over what is read: rows"),
    ({"-o": "pointer"}, ["rows"], "pointer: -o would"),
    ({"-o": "./model/../rows"}, ["other", "rows"], "rows: -o would"),
    ({"-o": "x", "--stats": "rows"}, ["rows"], "rows: --stats would"),
    ({"-o": "model/tokenizer.json"}, ["model"], "what is read: model: name"),
    ({"-o": "new", "--stats": "new"}, [], "new: is named by -o and by --stats"),
    ({"-o": "rows", "--stats": "linked"}, [], "linked: is named by -o and by --stats"),
    ({"-o": "new", "--stats": "newer", "--rejects": None}, ["rows", "-", "missing", None], None),
    ({"-o": "model/pairs.arrow"}, ["model"], None),
    ({"-o": "/dev/null", "--stats": "/dev/null"}, ["/dev/null"], None),
    ({"-o": "-"}, ["rows"], None),
]


@pytest.mark.parametrize(("outputs", "inputs", "said"), OVERWRITTEN)
def test_inputs_are_not_written_over(folder, outputs, inputs, said):
    if said is None:
        refuse_overwriting(outputs, inputs)
        return
    with pytest.raises(UserError) as refused:
        refuse_overwriting(outputs, inputs)
    assert said in str(refused.value)
