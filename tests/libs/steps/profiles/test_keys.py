"""The tables of keys: one an executor, and everything that is known of a key comes from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dpo.errors import UserError
from nemotron_dpo.steps import completion
from nemotron_dpo.steps.executors.executor import executor_of
from nemotron_dpo.steps.profiles.key_list import key_list
from nemotron_dpo.steps.profiles.keys import EXECUTORS, key_tables, known_key, nearest_key
from nemotron_dpo.steps.profiles.profile import CheckedProfile, Profile

FOLDER = Path(__file__).resolve().parents[4] / "libs" / "nemotron_dpo" / "steps" / "executors"


def test_every_folder_with_keys_is_an_executor():
    folders = {path.parent.name for path in FOLDER.glob("*/executor.py")}
    assert folders == set(EXECUTORS) == set(key_tables())
    for name in EXECUTORS:
        executor = executor_of(Profile("p", name))
        assert callable(executor.print_plan)
        assert callable(executor.execute)


def test_what_a_table_says_is_known_everywhere():
    offered = dict(word for word in completion.keys("dpo") if isinstance(word, tuple))
    for name, table in key_tables().items():
        for key, known in table.items():
            assert known_key(key) is not None
            assert nearest_key(key) == f"did you mean {key}?"
            assert known.meaning == known.meaning.strip() != ""
            profile = Profile("p", name, settings={"container_image": "x", key: 1})  # a container is what mounts are of
            assert (key in profile.idle_keys()) == known.is_idle
            assert key in ("executor", "extends") or f"run.env.{key}=" in offered


def test_each_key_refuses_what_is_of_no_kind():
    """None of them takes a number and a list of numbers both: every kind is checked."""
    for name, table in key_tables().items():
        for key in table:
            refused = 0
            for value in (-1, [1, object()]):
                try:
                    CheckedProfile(Profile("p", name, settings={key: value}))
                except UserError:
                    refused += 1
            assert refused, (name, key)


def test_a_local_profile_is_checked_like_any_other():
    with pytest.raises(UserError, match=r'"gpu_memory_gb" profile p: is \'much\' where a number of 1 or more is due'):
        CheckedProfile(Profile("p", "local", settings={"gpu_memory_gb": "much"}))


def test_a_variable_has_a_name_and_one_value():
    """Wherever a profile leads; what a variable holds may be a secret and is not told."""
    for executor in EXECUTORS:
        for name, value, told in (
            ("C=D", 2, '"env_vars.C=D" profile p: is no name of a variable'),
            ("A B", "x", '"env_vars.A B" profile p: is no name of a variable'),
            ("1A", "x", '"env_vars.1A" profile p: is no name of a variable'),
            ("", "x", '"env_vars." profile p: is no name of a variable'),
            ("A", {"b": "hidden"}, '"env_vars.A" profile p: is a table where one value is due'),
            ("A", ["hidden"], '"env_vars.A" profile p: is a list where one value is due'),
            ("A", "hidden\0x", '"env_vars.A" profile p: has a zero byte'),
        ):
            with pytest.raises(UserError) as refused:
                CheckedProfile(Profile("p", executor, settings={"env_vars": {"GOOD": "1", name: value}}))
            assert str(refused.value).startswith(told), executor
            assert "hidden" not in str(refused.value)
        good = {"A": "two\nlines", "_b2": 3, "C": 0.5, "D": True, "E": None, "F": ""}
        CheckedProfile(Profile("p", executor, settings={"env_vars": good}))
    given = Profile("p", "local", settings={"env_vars": {"A B": 1}}, origins={"env_vars.A B": "own.yaml:3"})
    with pytest.raises(UserError, match=r'^own\.yaml:3: "run\.env\.env_vars\.A B" is no name of a variable'):
        CheckedProfile(given)


def test_the_list_of_keys_is_the_tables():
    assert (FOLDER.parent / "profiles" / "README.md").read_text().endswith(f"\n\n{key_list()}\n")
