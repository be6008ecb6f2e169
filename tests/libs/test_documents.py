"""Texts of strangers: what would end a parser, or fill the memory, is one line before anything is built of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_dpo.config.merge import resolve_layers
from nemotron_dpo.config.read_layers import read_layers
from nemotron_dpo.documents import MOST_LEVELS, check_override, check_yaml, is_too_deep, parsed_yaml, read_toml, yaml_mapping
from nemotron_dpo.errors import UserError

DEEP = f"is nested too deeply: {MOST_LEVELS} levels are the most"
N = 100_000
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = [
    ("[" * N, f"a.yaml:1: {DEEP}"),
    ("{a: " * N, f"a.yaml:1: {DEEP}"),
    ("- " * N, f"a.yaml:1: {DEEP}"),
    ("? " * N, f"a.yaml:1: {DEEP}"),
    ("\n".join(" " * n + "a:" for n in range(200)), f"a.yaml:{MOST_LEVELS + 1}: {DEEP}"),
    ("a: " + "${" * 1000, f"a.yaml:1: {DEEP}"),
    ("a: ${oc.decode:" + "[" * 1000, f"a.yaml:1: {DEEP}"),
    ("b: 1\na: " + "${oc.env:A," * 200 + "}" * 200, f"a.yaml:2: {DEEP}"),
    ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefg", "bcdefgh", strict=True)),
     "a.yaml: stands for more than a million values: do its aliases name each other?"),
    ("a: &a [*a, *a]", ""),  # an alias of itself stands for one value here; the parser refuses it
    ('a: 1\nb: "\\ud800"', "a.yaml:2: has half a character (a surrogate)"),
    ('- "\\ud800"\n- ' + "[" * N, "a.yaml:1: has half a character (a surrogate)"),  # libyaml stops there, PyYAML goes on
    ("a: 'b\x07'\nb: " + "[" * N, ""),  # both stop at what is no text
    ("#" * 16_000_001, "a.yaml: has 16 MB where 16 are the most"),
]  # fmt: skip


def test_what_is_hostile_is_one_line():
    for text, line in HOSTILE:
        try:
            check_yaml(text, "a.yaml")
            said = ""
        except UserError as error:
            said = str(error)
        assert said == line, text[:40]


def test_what_people_write_passes():
    nested = "1"
    for _ in range(MOST_LEVELS - 1):
        nested = f"[{nested}]"
    for text in (nested, "a: &a {b: 1}\nc: {<<: *a}\n", "a: ${b.${c}}", "", "no: [yaml", "a: '[[[[[[[[[[[[[[[['"):
        check_yaml(text, "a.yaml")


@pytest.mark.parametrize(
    "override",
    [".".join("a" * N) + "=1", "a" + "[0]" * N + "=1", "a=" + "[" * N, "a=" + "{b: " * N, "a=" + "${" * N],
    ids=["dots", "brackets", "list", "mapping", "interpolation"],
)
def test_overrides_end_in_one_line(override: str):
    with pytest.raises(UserError) as refused:
        check_override(override)
    assert refused.value.usage
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ["!!int abc", "!!float abc", "9" * 5000, "!!int ''", "!!bool abc"])
def test_values_that_are_none_of_their_kind(text: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    for read in (lambda: read_layers(tmp_path / "a.yaml", []), lambda: read_layers(None, [f"a={text}"])):
        with pytest.raises(UserError, match=r"is not YAML|cannot be read"):
            resolve_layers(read())


def test_toml(tmp_path: Path):
    path = tmp_path / "env.toml"
    for text in (
        "a = " + "[" * N,
        "a = " + "{a = " * N,
        ".".join("a" * N) + " = 1",
        ".".join(['"a.\\"b"', "'c'", "d "] * N) + "= 1",
        "[" + ".".join("a" * 60) + "]",
        "a = \xff",
        "a = 1e",
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=rf"^{path}: is (nested too deeply|not TOML)"):
            read_toml(path)
    dots = ".".join("a" * 60)
    path.write_text(f"[a.b]\nc = [[1]]\nd = '{dots} = 1'\n")
    assert read_toml(path) == {"a": {"b": {"c": [[1]], "d": f"{dots} = 1"}}}


def test_nobody_else_parses_the_texts_of_strangers():
    """What is not bounded first ends in a RecursionError or in all memory; adapters.py reads back what it wrote."""
    parse = re.compile(r"yaml\.(safe_)?load(_all)?\(|tomllib\.loads?\(")
    found = {
        path.relative_to(ROOT).as_posix()
        for top in ("libs", "bin")
        for path in (ROOT / top).rglob("*.py")
        if parse.search(path.read_text())
    }
    own = {"checkpoint/adapters.py", "documents.py", "steps/profiles/env_toml.py"}  # the last, our template as it fills it in
    assert found == {f"libs/nemotron_dpo/{name}" for name in own}


def test_a_file_that_is_looked_at_in_passing_has_a_mapping_or_nothing(tmp_path: Path):
    path = tmp_path / "a.yaml"
    for text, value in (
        ("a: 1\n", {"a": 1}),
        ("[" * N, {}),
        ("a: !!int b", {}),
        ("- 1", {}),
        ("a: [", {}),
        ("a: '\x00'", {}),
        (r'a: "\ud800"', {}),
    ):
        path.write_text(text)
        assert yaml_mapping(path) == value, text[:20]
    path.write_bytes(b"\xff")
    assert yaml_mapping(path) == {}
    assert yaml_mapping(tmp_path / "none.yaml") == {}


def test_depth():
    value: object = 1
    for _ in range(MOST_LEVELS - 1):
        value = [value, {"a": 2}]
    assert not is_too_deep(value)
    for _ in range(N):
        value = {"a": value}
    assert is_too_deep(value)


@settings(max_examples=300)
@given(st.text(alphabet="ab:-?[]{},&*! \n'\"#|>%@`$.1\t", max_size=60))
def test_any_text_is_refused_by_a_line_or_parsed(text: str):
    """Whatever passes is parsed without a RecursionError, or refused by the parser itself."""
    try:
        check_yaml(text, "a")
        yaml.safe_load(text)
    except (UserError, yaml.YAMLError, ValueError, TypeError):
        return


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [x, 1e-05, 0o7, yes]\n", "a: !", "a: b\n\ufeff", "a: >#", "a:\tb", "{1?: 2}", "a: [", "a: 'b\x07'"]
)
def test_whichever_parser_reads_it_the_one_in_python_would_have_read_the_same(text: str):
    def read(parse: Callable[[], object]) -> object:
        try:
            return parse()
        except yaml.YAMLError as error:
            return str(error)

    assert read(lambda: parsed_yaml(text, "a.yaml")) == read(lambda: yaml.load(text, Loader=yaml.SafeLoader))
