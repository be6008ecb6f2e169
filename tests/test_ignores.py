"""Every rule that is switched off, on a line or in pyproject.toml, has its reason beside it."""

from __future__ import annotations

import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("bin", "libs", "pipelines", "tests") for path in (ROOT / folder).rglob("*.py"))
SWITCH = re.compile(r"#\s*(?:type:\s*ignore|pyright:|noqa|ruff:|mypy:|pylint:|pragma:)")
WITH_REASON = re.compile(r"# (?:(?:type|pyright): ignore\[[\w, -]+\]|noqa: [A-Z]+\d+(?:, [A-Z]+\d+)*) - \w.*")

OF_A_FILE = re.compile(r"# pyright: report\w+=false(?:, report\w+=false)*")


def unexplained(source: str) -> list[int]:
    """Lines with a comment that switches a rule off and does not say which and why."""
    if not SWITCH.search(source):
        return []
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    return [line for line, text in comments.items() if SWITCH.search(text) and not _is_explained(line, comments)]


def _is_explained(line: int, comments: dict[int, str]) -> bool:
    if OF_A_FILE.fullmatch(comments[line]):  # pyright takes no words there, so the comment above has them
        return line - 1 in comments and not SWITCH.search(comments[line - 1])
    return bool(WITH_REASON.fullmatch(comments[line]))


@pytest.mark.parametrize(
    ("comment", "is_explained"),
    [
        ("# type: ignore[union-attr] - a mapping gives a dict", True),
        ("# noqa: SIM118, E731 - it is no dict", True),
        ("# type: ignore[union-attr]", False),
        ("# type: ignore - a mapping gives a dict", False),  # of every kind
        ("# noqa", False),
        ("# pyright: basic", False),
        ("# pyright: reportMissingImports=false", False),
        ("\n# Triton is not installed\n# pyright: reportMissingImports=false", True),
        ("# why, and then  # noqa: E731", False),
        ("# a comment on noise", True),
    ],
)
def test_an_ignore_without_its_code_or_reason_is_seen(comment: str, is_explained: bool) -> None:
    assert bool(unexplained(f"x = '# noqa'\ny = 1  {comment}\n")) != is_explained


def test_ignores_in_code_have_reasons() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in unexplained(path.read_text(encoding="utf-8"))]
    assert not found, "give the code and the reason, as in `# noqa: E731 - why`"


def test_ignores_in_pyproject_have_reasons() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tools = tomllib.loads(text)["tool"]
    switched_off = [*tools["pytest"]["ini_options"]["filterwarnings"], *tools["ruff"]["lint"]["per-file-ignores"]]
    for rule in switched_off:
        (line,) = (line for line in text.splitlines() if f'"{rule}"' in line)
        assert re.search(r"# \w.*", line), rule
    assert not [key for key in tools["ruff"]["lint"] if "ignore" in key and key != "per-file-ignores"]
    assert {key for key in tools["pyright"] if key.startswith("report")} == set()
