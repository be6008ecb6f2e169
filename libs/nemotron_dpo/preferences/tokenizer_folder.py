"""Everything a tokenizer's folder says: tokenizer.json, special tokens and the chat template, each with a digest.

Read without transformers. The folder is that of a policy (a Hugging Face id or folder, a Megatron checkpoint) or one that
holds a tokenizer alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dpo import sources
from nemotron_dpo.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFolder:
    """What a worker needs to render and tokenize; plain values, so that it can be sent to another process."""

    path: Path
    special_tokens: dict[str, str]
    template: str | None
    template_name: str
    tool_template: str | None = None

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of the tokenizer's files (without the template) and of the template's text."""
        files = hashlib.sha256()
        for name in _TOKENIZER_FILES:
            if (self.path / name).is_file():
                files.update(name.encode() + b"\0" + _content(self.path / name) + b"\n")
        digests = {"tokenizer": f"sha256:{files.hexdigest()}"}
        if self.template is not None:
            text = "\0".join(t for t in (self.template, self.tool_template) if t is not None)
            digests["chat_template"] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        return digests

    def load(self) -> Tokenizer:
        """The tokenizer, with padding and truncation switched off."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"cannot be read: {str(error).splitlines()[0]}", source=self.path / "tokenizer.json") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def open_folder(id_or_dir: str, template_file: str | None = None) -> TokenizerFolder:
    """Find the tokenizer `id_or_dir`; its template is the text of `template_file` where one is given.

    Raises UserError where there is no such folder, or no tokenizer.json in it, or one of its files cannot be read.
    """
    path = _find(id_or_dir)
    if not (path / "tokenizer.json").is_file():
        raise UserError(
            "has no tokenizer.json", source=path, remedy="save it with transformers' AutoTokenizer(...).save_pretrained"
        )
    config = _json(path / "tokenizer_config.json")
    special_tokens = _special_tokens({**_json(path / "special_tokens_map.json"), **config})
    if template_file is not None:
        return TokenizerFolder(path, special_tokens, _text(Path(template_file)), template_file)
    file = path / "chat_template.jinja"
    if file.is_file():
        extra = path / "additional_chat_templates" / "tool_use.jinja"
        return TokenizerFolder(path, special_tokens, _text(file), str(file), _text(extra) if extra.is_file() else None)
    template, tool_template = _configured(config.get("chat_template"), path)
    return TokenizerFolder(path, special_tokens, template, str(path / "tokenizer_config.json"), tool_template)


def _find(id_or_dir: str) -> Path:
    folder = Path(id_or_dir).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    if folder.is_dir() and (folder / "tokenizer_config.json").is_file():
        return folder
    return sources.resolve(id_or_dir).tokenizer_folder


def _configured(value: Any, path: Path) -> tuple[str | None, str | None]:
    """The default template and the one for tools, from a string or a list of named templates."""
    if value is None or isinstance(value, str):
        return value, None
    named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)} if isinstance(value, list) else {}
    if not isinstance(named.get("default"), str):
        raise UserError(
            'its chat_template has no "default"', source=path / "tokenizer_config.json", remedy="give --chat-template FILE"
        )
    return named["default"], named.get("tool_use")


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like; each a string or an object with a `content`."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _json(path: Path) -> dict[str, Any]:
    import orjson

    if not path.is_file():
        return {}
    try:
        value = orjson.loads(_content(path))
    except orjson.JSONDecodeError as error:
        raise UserError(f"is broken JSON: {error.msg}", source=path, line=error.lineno) from None
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return _content(path).decode()
    except UnicodeDecodeError:
        raise UserError("is not valid UTF-8", source=path) from None


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise UserError("is a folder where a file is due", source=path)
    if not path.exists():
        raise UserError("no such file", source=path)
    return path.read_bytes()
