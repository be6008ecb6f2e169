"""YAML, TOML and JSON of strangers: how large and how deeply nested they may be is looked at before anything is built of them.

Parsers that call themselves once a level end in a RecursionError or, in C, with the process; a few lines of YAML whose aliases
name each other stand for more values than any memory holds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_dpo import machine_errors, plain_files
from nemotron_dpo.errors import UserError
from nemotron_dpo.plain_files import MOST_BYTES

MOST_LEVELS = 50  # the deepest configs of this field have about ten
_MOST_VALUES = 1_000_000  # aliases counted as often as they stand for something
_INTERPOLATIONS = 10  # levels of ${...} in a value
_QUOTED = r"""(?:"[^"\n]*"|'[^'\n]*')"""
_KEY_PART = rf"(?:(?<![\w-])[\w-]+|{_QUOTED})\s*"
_LINK = re.compile(rf"({_KEY_PART}\.\s*)|{_QUOTED}")  # one level of a TOML key of several, or a value that may look like it
_LAST = re.compile(rf"{_KEY_PART}[=\]]")
_SURROGATES = re.compile("[\ud800-\udfff]")  # no file can hold them
_READ_ALIKE = re.compile(r"[^\t!|>?\ufeff]*")  # what PyYAML's parser in C reads of these, that in Python reads as well
_OPENING = re.compile(r"\$\{|[{\[(]|[}\])]")


def read_yaml(path: Path) -> Any:
    """What the YAML file `path` holds. Raises OSError, yaml.YAMLError, UnicodeDecodeError, and UserError beyond all bounds."""
    return parsed_yaml(path.read_text(encoding="utf-8"), path)


def parsed_yaml(text: str, source: object, loader: Any = None) -> Any:
    """What `text` of `source` says, by PyYAML's safe loader or by `loader`, one of its kind.

    Raises yaml.YAMLError, and UserError beyond all bounds.
    """
    import yaml

    check_yaml(text, source)
    with fitting_tags():
        if loader is None and _READ_ALIKE.fullmatch(text):
            with contextlib.suppress(yaml.YAMLError):  # the one in Python says it in its words
                return yaml.load(text, Loader=safe_loaders()[0])
        return yaml.load(text, Loader=loader or yaml.SafeLoader)


def safe_loaders() -> tuple[Any, Any]:
    """PyYAML's safe loaders, the quickest first: that in C, where PyYAML was built with it, and that in Python.

    They do not read the same: that in C takes tabs which that in Python refuses, and refuses other texts.
    """
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader


def yaml_mapping(path: Path, loader: Any = None) -> Mapping[str, Any]:
    """The mapping in a YAML file that is looked at in passing; empty where there is none, no YAML, or no plain file.

    Raises OSError where the machine cannot read it: what stands there is not known then.
    """
    import yaml

    try:
        plain_files.refuse_others(path)
        tree = parsed_yaml(path.read_text(encoding="utf-8"), path, loader)
    except (*machine_errors.NOT_THERE, yaml.YAMLError, UnicodeDecodeError, UserError):
        return {}
    return tree if isinstance(tree, dict) else {}


@contextlib.contextmanager
def fitting_tags() -> Iterator[None]:
    """In the block a value that does not fit its tag, as in `!!int abc`, is a YAMLError, as all that is wrong with a text."""
    import yaml

    try:
        yield
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        if type(error).__module__.startswith("omegaconf"):  # its own errors are of these kinds, too, and say what they mean
            raise
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from error


def check_yaml(text: str, source: object) -> None:
    """Raise UserError where `text` is too large, nested too deeply, or stands for too many values. It need not be YAML."""
    import yaml

    _check_size(len(text), source)
    for loader in safe_loaders():
        try:
            _check_events(yaml.parse(text, Loader=loader), source, has_escapes="\\" in text)
            return
        except yaml.YAMLError:
            continue  # of what the one in C refuses the other may read all; what both refuse, whoever parses it says


def _check_events(events: Iterator[Any], source: object, *, has_escapes: bool) -> None:
    values = _Values()
    for event in events:
        values.take(event)
        text, line = getattr(event, "value", None) or "", event.start_mark.line + 1
        if values.depth > MOST_LEVELS or _interpolations(text) > _INTERPOLATIONS:
            raise too_deep(source, line)
        if has_escapes and _SURROGATES.search(text):
            raise UserError("has half a character (a surrogate)", source=source, line=line)
        if values.count > _MOST_VALUES:
            raise UserError("stands for more than a million values", source=source, remedy="do its aliases name each other?")


def check_override(text: str) -> None:
    """As `check_yaml`, of KEY.PATH=VALUE. Raises UserError (usage)."""
    key, _, value = text.partition("=")
    if key.count(".") >= MOST_LEVELS or key.count("[") >= MOST_LEVELS:
        raise UserError(f"has more than {MOST_LEVELS} levels", source=f"{key[:40]}...", usage=True)
    try:
        check_yaml(value, f"{key}=...")
    except UserError as error:
        raise UserError(error.message, source=error.source, remedy=error.remedy, usage=True) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of `path`. Raises UserError where it is no TOML, not UTF-8, too large or too deep."""
    import tomllib

    content = path.read_bytes()
    _check_size(len(content), path)
    try:
        text = content.decode()
        if _has_long_key(text):
            raise too_deep(path)
        tables = tomllib.loads(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f"is not TOML ({error})", source=path) from None
    except RecursionError:
        raise too_deep(path) from None
    if is_too_deep(tables):
        raise too_deep(path)
    return tables


def _has_long_key(text: str) -> bool:
    """Whether TOML names more than MOST_LEVELS levels in one key, of which its parser makes copies of copies.

    In time that grows as the text does. (Possessive quantifiers would say it in one expression, wrongly before Python 3.11.5.)
    """
    levels, end = 0, -1
    text = text.replace("\\\\", "").replace('\\"', "")  # so that a quote ends a part
    for link in _LINK.finditer(text):
        if not link[1]:
            continue
        levels = levels + 1 if link.start() == end else 1
        end = link.end()
        if levels >= MOST_LEVELS and _LAST.match(text, end):
            return True
    return False


def is_too_deep(value: Any) -> bool:
    """Whether mappings and lists in `value` lie more than MOST_LEVELS within each other."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        level = [item for node in level for item in _items(node)]
        if not level:
            return False
    return True


def too_deep(source: object, line: int | None = None) -> UserError:
    """The error of a text that is nested too deeply."""
    return UserError(f"is nested too deeply: {MOST_LEVELS} levels are the most", source=source, line=line)


class _Values:
    """How deep the events of a YAML text are by now, and for how many values the outermost node stands."""

    def __init__(self) -> None:
        self._open: list[tuple[str | None, int]] = []
        self._sizes: dict[str | None, int] = {}
        self.count = 0

    @property
    def depth(self) -> int:
        return len(self._open)

    def take(self, event: Any) -> None:
        name = type(event).__name__
        if name in ("MappingStartEvent", "SequenceStartEvent"):
            self._open.append((event.anchor, self.count))
            self.count += 1
        elif name in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, before = self._open.pop()
            self._sizes[anchor] = self.count - before
        elif name == "AliasEvent":
            self.count += self._sizes.get(event.anchor, 1)
        elif name == "ScalarEvent":
            self._sizes[event.anchor] = 1
            self.count += 1


def _interpolations(text: str) -> int:
    """How deeply brackets lie within each other in a text with ${...}, whose grammar calls itself for each."""
    depth = most = 0
    for found in _OPENING.finditer(text) if "${" in text else ():
        depth += 1 if found[0] in ("${", "{", "[", "(") else -1
        most = max(most, depth)
    return most


def _items(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list | tuple):
        yield from node


def _check_size(size: int, source: object) -> None:
    if size > MOST_BYTES:
        raise UserError(f"has {size / 1e6:,.0f} MB where {MOST_BYTES / 1e6:.0f} are the most", source=source)
