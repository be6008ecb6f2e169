"""Read a tokenizer's folder: tokenizer.json, the tokens added to it and the chat template, with digests of their content.

transformers is not needed. The folder may be that of a policy (a Hugging Face id or folder, a Megatron checkpoint), or it may
hold only a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dpo import file_digests, hf_folder, sources
from nemotron_dpo.errors import UserError
from nemotron_dpo.folder_files import has_file, has_folder
from nemotron_dpo.machine_errors import named
from nemotron_dpo.preferences import added_tokens, tokenizer_class
from nemotron_dpo.preferences.added_tokens import AddedTokens
from nemotron_dpo.preferences.encoding import is_tokenizers_own

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER_FILES = ("tokenizer.json", added_tokens.CONFIG, added_tokens.SPECIAL, added_tokens.ADDED)
_TEMPLATE, _MORE_TEMPLATES, _TEMPLATE_OF_PROCESSORS = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.json")
_REMEDY = "give --chat-template FILE"


@dataclass(frozen=True)
class TokenizerFolder:
    """What a worker needs to render and tokenize; the values are plain, so that they can be sent to another process.

    `template_name` is the file that `template` is from. `adds_bos` is the field add_bos_token of tokenizer_config.json, which
    counts only without a chat template; None where the file does not have it.
    """

    path: Path
    added: AddedTokens
    template: str | None
    template_name: str
    tool_template: str | None = None
    adds_bos: bool | None = None

    @property
    def doubt(self) -> str | None:
        """A warning where transformers 5 would make other token ids with the same folder; None where it would not."""
        tokenizer, config = _json(self.path / "tokenizer.json"), _json(self.path / added_tokens.CONFIG)
        return tokenizer_class.doubt(tokenizer, config, _json(self.path / "config.json").get("model_type"))

    def remarks(self) -> list[str]:
        """What a person should know who tokenizes with this folder."""
        lines = [] if (doubt := self.doubt) is None else [f"warning: {self.path}: {doubt}"]
        if self.template is None:
            lines.append(f"{self.path}: no chat template: rows are taken as plain text")
        return lines

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of bos_token, eos_token and the other named tokens, by these names, as chat templates see them."""
        return {name: token.content for name, token in self.added.named.items()}

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of the tokenizer's files under "tokenizer", and that of the template's text under "chat_template"."""
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
        """The tokenizer with all its added tokens, with padding and truncation switched off.

        Raises UserError where tokenizer.json is broken, where it asks for dropout (a text would have other ids each time), or
        where the files beside it contradict it.
        """
        from tokenizers import Tokenizer

        file = self.path / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except BaseException as error:
            if not isinstance(error, Exception) and not is_tokenizers_own(error):
                raise
            raise UserError(f"cannot be read: {str(error).splitlines()[0]}", source=file) from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if getattr(tokenizer.model, "dropout", None):
            raise UserError("asks for dropout: a text has other ids each time", source=file, remedy="set its dropout to null")
        self.added.add_to(tokenizer)
        if self.template is None and self.adds_bos is not None:
            _check_bos(tokenizer, self.adds_bos, self.path / added_tokens.CONFIG)
        return tokenizer


def open_folder(id_or_dir: str, template_file: str | None = None) -> TokenizerFolder:
    """Find the tokenizer `id_or_dir` and read its folder; `template_file`, where given, replaces its chat template.

    Raises UserError where there is no such folder, where the folder has no tokenizer.json, where one of its files cannot be
    read, or where a file asks for a feature that is not supported here.
    """
    path = _find(id_or_dir)
    if (path.parent / ".metadata").is_file():  # the folder is part of a checkpoint, which has digests of its files
        file_digests.check_subfolder(path)
    if not has_file(path / "tokenizer.json"):
        raise _no_tokenizer(path)
    config = _json(path / added_tokens.CONFIG)
    _refuse_unhonoured(config, path / added_tokens.CONFIG)
    added = added_tokens.read(path, config, _json(path / added_tokens.SPECIAL), _json(path / added_tokens.ADDED))
    adds_bos = config.get("add_bos_token")
    if template_file is not None:
        return TokenizerFolder(path, added, _text(Path(template_file)), template_file)
    return TokenizerFolder(path, added, *_templates(path, config), adds_bos if isinstance(adds_bos, bool) else None)


def _templates(path: Path, config: dict[str, Any]) -> tuple[str | None, str, str | None]:
    """The default template, the file it is from, and the template for rows with tools; None for a template that is not there.

    The first place that has a template counts, in the order in which transformers looks: template files, then
    tokenizer_config.json, then chat_template.json.
    """
    named = {file.stem: file for file in [path / _TEMPLATE] if has_file(file)}
    others = sorted((path / _MORE_TEMPLATES).glob("*.jinja")) if has_folder(path / _MORE_TEMPLATES) else []
    more = {file.stem: file for file in others if has_file(file)}
    files = {**({"default": named["chat_template"]} if named else {}), **more}
    if files:
        if "default" not in files:
            what = f"has {_MORE_TEMPLATES}/{next(iter(more.values())).name} and no {_TEMPLATE}, so no default template"
            raise UserError(what, source=path, remedy=f"write the default one to {_TEMPLATE}, or {_REMEDY}")
        tools = files.get("tool_use")
        return _text(files["default"]), str(files["default"]), _text(tools) if tools else None
    for name in (added_tokens.CONFIG, _TEMPLATE_OF_PROCESSORS):
        said = (config if name == added_tokens.CONFIG else _json(path / name)).get("chat_template")
        if said is not None:
            default, tool_template = _configured(said, path / name)
            return default, str(path / name), tool_template
    return None, str(path / added_tokens.CONFIG), None


def _no_tokenizer(path: Path) -> UserError:
    other = next((name for name in _OTHER_FORMS if (path / name).is_file()), None)
    what = f"has {other} and no tokenizer.json" if other else "has no tokenizer.json"
    if isinstance(own := _json(path / added_tokens.CONFIG).get("auto_map"), dict) and "AutoTokenizer" in own:
        what += ", and makes tokens by code of its own (auto_map), which is never run"
        return UserError(what, source=path, remedy="give a folder with a tokenizer.json that splits texts as that code does")
    return UserError(what, source=path, remedy="save it with transformers' AutoTokenizer(...).save_pretrained")


def _refuse_unhonoured(config: dict[str, Any], file: Path) -> None:
    """Raise UserError where a field of `config` makes transformers produce other ids with the same tokenizer.json."""
    for key in ("split_special_tokens", "fix_mistral_regex"):
        if config.get(key):
            raise UserError(f"{key} {config[key]!r} is not supported", source=file, remedy="tokenizers without are")
    versions = [name for name in _listed(config.get("fast_tokenizer_files")) if name != "tokenizer.json"]
    if versions:
        what = f"names {versions[0]}, of which transformers takes the one for its version"
        raise UserError(what, source=file, field="fast_tokenizer_files", remedy="keep the right one as tokenizer.json")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_bos(tokenizer: Tokenizer, said: bool, file: Path) -> None:
    """Raise UserError where add_bos_token (`said`) and tokenizer.json disagree on whether a text begins with a token.

    Versions of transformers differ in which of the two they follow.
    """
    with_special, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    adds = with_special[: len(bare)] != bare
    if adds != said:
        what = f"says {str(said).lower()}, and tokenizer.json puts {'a' if adds else 'no'} token before a text"
        remedy = "remove the field to go by tokenizer.json (transformers 5 does), or change that"
        raise UserError(what, source=file, field="add_bos_token", remedy=remedy)


def _find(id_or_dir: str) -> Path:
    folder = Path(id_or_dir).expanduser()
    if has_file(folder / "tokenizer.json") or has_file(folder / added_tokens.CONFIG):
        return folder
    return sources.resolve(id_or_dir).tokenizer_folder


def _configured(value: Any, file: Path) -> tuple[str | None, str | None]:
    """The default template and the one for rows with tools, from the field chat_template of `file`.

    `value` is one template, a list of {name, template} objects, or an object of templates by name. Raises UserError where
    none of them is named "default".
    """
    if isinstance(value, str):
        return value, None
    listed = {str(t.get("name")): t.get("template") for t in value if isinstance(t, dict)} if isinstance(value, list) else {}
    named = value if isinstance(value, dict) else listed
    if not isinstance(named.get("default"), str):
        raise UserError('its chat_template has no "default"', source=file, remedy=_REMEDY)
    if not isinstance(named.get("tool_use"), str | None):
        raise UserError('its chat_template "tool_use" is no text', source=file, remedy=_REMEDY)
    return named["default"], named.get("tool_use")


def _json(path: Path) -> dict[str, Any]:
    if not has_file(path):
        return {}
    try:
        value = hf_folder.parsed_config(_content(path))
    except json.JSONDecodeError as error:
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
    with named(path):
        return path.read_bytes()
