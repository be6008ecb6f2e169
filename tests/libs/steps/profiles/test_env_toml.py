"""Templates of env.toml filled in, comments kept; the profiles they hold load as profiles."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps.catalogue.manifest import configs_root
from nemotron_dpo.steps.profiles.env_file import load_profile
from nemotron_dpo.steps.profiles.env_toml import checked_settings, with_setting, write_env_toml

TEMPLATES = sorted((configs_root() / "env" / "env_toml" / "templates").glob("*.toml"))
TEXT = '# top\n\n[a]\nhost = "x" # change\n# user = "me" # default: yours\nnodes = 1\n\n# of b\n[b]\nnodes = 2\n'

SETTINGS = [
    ('a.host="y"', 'host = "y" # change\n'),
    ('a.user="you"', 'user = "you" # default: yours\nnodes'),
    ("b.nodes=3", "[b]\nnodes = 3\n"),
    ("b.time=1", "[b]\nnodes = 2\ntime = 1\n"),
    ("a.time=1", "nodes = 1\ntime = 1\n\n# of b\n[b]\n"),
    ("c.time=1", "nodes = 2\n\n[c]\ntime = 1\n"),
]


@pytest.mark.parametrize(("setting", "piece"), SETTINGS)
def test_setting_takes_its_place(setting: str, piece: str):
    text = with_setting(TEXT, setting)
    assert piece in text
    name, _, value = setting.partition("=")
    profile, _, key = name.partition(".")
    before, after = tomllib.loads(TEXT), tomllib.loads(text)
    expected = {**before, profile: {**before.get(profile, {}), key: tomllib.loads(f"v = {value}")["v"]}}
    assert after == expected


def test_settings_are_toml():
    keys = {"s": 'a "b"', "n": 2, "f": 0.5, "t": True, "l": ["a:/a"], "m": {"A": "1"}}
    text = "".join(f"{word}\n" for word in checked_settings({"wandb": keys}))
    assert tomllib.loads(text) == {"wandb": keys}


SECRET: list[dict[str, Any]] = [{"client_secret": "x"}, {"env_vars": {"HF_TOKEN": "x"}}, {"account": "hf_" + "abcdefghij" * 3}]


@pytest.mark.parametrize("keys", SECRET)
def test_secret_is_refused(keys: dict[str, Any]):
    with pytest.raises(UserError, match="is a secret, which has no place in a file"):
        checked_settings({"p": keys})


UNFIT = [
    ({"k k": 1}, r'"sections\.p\.k k" is no name of a key: letters, digits, _ and - make one'),
    ({"env_vars": {"": 1}}, r'"sections\.p\.env_vars\." is no name of a key'),
    ({"acount": "me"}, r'"sections\.p\.acount" is no known key: did you mean account\?'),
    ({"account": None}, r'"sections\.p\.account" is null, which TOML does not have: leave it out'),
    ({"time": 36000}, r"""is a number to YAML: quote it: 'sections\.p\.time="HH:MM:SS"'"""),
]


@pytest.mark.parametrize(("keys", "line"), UNFIT)
def test_what_toml_cannot_hold_is_refused(keys: dict[str, Any], line: str):
    with pytest.raises(UserError, match=line):
        checked_settings({"p": keys})


def test_a_variable_goes_into_the_table_of_the_template(tmp_path: Path):
    template = next(path for path in TEMPLATES if path.stem == "slurm")
    settings = checked_settings({"slurm_base": {"env_vars": {"A": "1", "HF_HOME": "/x"}}, "mine": {"env_vars": {"B": "2"}}})
    write_env_toml(template, settings, tmp_path / "env.toml", force=False)
    written = tomllib.loads((tmp_path / "env.toml").read_text())
    assert written["slurm_base"]["env_vars"] == {"A": "1", "HF_HOME": "/x"}
    assert written["mine"] == {"env_vars": {"B": "2"}}


def test_profile_without_keys_is_refused():
    with pytest.raises(UserError, match=r'"sections\.p" is no mapping of keys: give sections\.p\.KEY=VALUE'):
        checked_settings({"p": 1})


def test_existing_file_is_left_alone(tmp_path: Path):
    output = tmp_path / "env.toml"
    output.write_text("mine")
    with pytest.raises(UserError, match="exists already: force=true replaces it"):
        write_env_toml(TEMPLATES[0], [], output, force=False)
    assert output.read_text() == "mine"
    write_env_toml(TEMPLATES[0], [], output, force=True)
    assert output.read_text() == TEMPLATES[0].read_text()


def test_nothing_is_written_where_the_result_is_no_toml(tmp_path: Path):
    with pytest.raises(UserError, match="would not be TOML"):
        write_env_toml(TEMPLATES[0], ["a.b=["], tmp_path / "env.toml", force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_every_profile_of_a_template_loads(template: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(template))
    names = list(tomllib.loads(template.read_text()))
    assert f"{template.stem}_rl_nemo_rl_dpo" in names
    for name in names:
        assert load_profile(name).executor == template.stem
        assert load_profile(name).env_vars["HF_HOME"]
