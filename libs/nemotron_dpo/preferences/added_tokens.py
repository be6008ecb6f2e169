"""Tokens that the files beside tokenizer.json add to it, by transformers' rules.

The reference is transformers' PreTrainedTokenizerBase._from_pretrained and TokenizersBackend (4.40 to 5). If
tokenizer_config.json has an added_tokens_decoder, special_tokens_map.json and added_tokens.json are not looked at.
Otherwise special_tokens_map.json takes precedence over tokenizer_config.json, and added_tokens.json adds tokens. A token
that tokenizer.json also has keeps its id from there. If another file gives that token with an id, the flags of that file
replace those of tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dpo.errors import UserError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_EXTRA = ("extra_special_tokens", "additional_special_tokens")  # the key of transformers 5, which takes precedence, and of 4
_OF_MODEL = "model_specific_special_tokens"  # maps the model's own names to tokens; transformers 5 writes it


@dataclass(frozen=True)
class Token:
    """A token with the flags of `tokenizers.AddedToken`.

    The defaults describe a special token, which is matched before the text is normalized.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that the files of one tokenizer folder add to tokenizer.json.

    `named` maps names such as bos_token to tokens. `extra` has the special tokens without a name. `numbered` maps ids to
    tokens. `file` is the file that gives the numbered tokens; error messages name it.
    """

    named: Mapping[str, Token]
    extra: tuple[Token, ...]
    numbered: Mapping[int, Token]
    file: Path

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Add the tokens that `tokenizer` lacks, in transformers' order: numbered ones by id, then named ones, then extra ones.

        A numbered token that `tokenizer` already has may change the flags of that token. Raises UserError where a numbered
        token does not get its number as id.
        """
        from tokenizers import AddedToken

        known = {_token_of(token) for token in tokenizer.get_added_tokens_decoder().values()}
        in_order = (self.numbered[number] for number in sorted(self.numbered))
        new = [token for token in in_order if token not in known]
        contents = {token.content for token in (*known, *new)}
        for token in (*self.named.values(), *self.extra):
            if token.content not in contents:
                contents.add(token.content)
                new.append(token)
        named = {token.content for token in self.named.values()}
        new = [replace(token, special=token.special or token.content in named) for token in new]
        tokenizer.add_tokens([AddedToken(**asdict(token)) for token in new])
        for number, token in self.numbered.items():
            found = tokenizer.token_to_id(token.content)
            if found != number:
                what = f"says that token {number} is {token.content!r}, which after tokenizer.json is {found}"
                raise UserError(what, source=self.file, remedy="do these files belong together?")


def read(path: Path, config: Mapping[str, Any], special: Mapping[str, Any], added: Mapping[str, Any]) -> AddedTokens:
    """The tokens that the files of the folder `path` add.

    The other arguments are the parsed files: `config` is tokenizer_config.json, `special` is special_tokens_map.json and
    `added` is added_tokens.json. Raises UserError where an entry does not describe a token.
    """
    numbered_by_config = "added_tokens_decoder" in config
    said = dict(config) if numbered_by_config else {**config, **special, **_merged_extra(config, special)}
    extra = next((said[key] for key in _EXTRA if said.get(key)), ())
    named = {key: said[key] for key in said if key.endswith("_token") and isinstance(said[key], str | Mapping)}
    try:
        named = {**named, **(said.get(_OF_MODEL) or {})}
        if isinstance(extra, Mapping):  # older files map the model's own names under this key
            named, extra = {**named, **extra}, ()
        names = {key: _token(value) for key, value in named.items()}
        extras = tuple(_token(value) for value in extra)
        specials = {token.content for token in (*names.values(), *extras)}
        if numbered_by_config:
            numbered = {
                int(number): _token({"special": False, **value}) for number, value in config["added_tokens_decoder"].items()
            }
        else:
            numbered = {int(number): _plain(content, content in specials) for content, number in added.items()}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"does not describe tokens ({type(error).__name__}: {error})", source=path / CONFIG) from None
    flags = {token.content: token for token in numbered.values()}
    names = {key: flags.get(token.content, token) for key, token in names.items()}
    return AddedTokens(names, extras, numbered, path / (CONFIG if numbered_by_config else ADDED))


def _merged_extra(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The extra tokens of both files, merged as transformers merges them.

    Those that special_tokens_map.json gives under the key of transformers 5 are added to those of tokenizer_config.json.
    Those that it gives under the key of transformers 4 count only where tokenizer_config.json has none.
    """
    newer, older = _EXTRA
    mine = config.get(newer) or config.get(older) or []
    if not isinstance(mine, list):
        return {newer: mine}
    theirs = special.get(newer) or ([] if mine else special.get(older)) or []
    return {newer: [*mine, *(token for token in theirs if token not in mine)]} if isinstance(theirs, list) else {newer: theirs}


def _token_of(token: AddedToken) -> Token:
    return Token(token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special)


def _token(value: Any) -> Token:
    if isinstance(value, str):
        return Token(value)
    flags = {key: flag for key, flag in value.items() if key != "__type"}
    if not isinstance(flags["content"], str):
        raise TypeError(f"a content of {flags['content']!r}")
    special = flags.get("special", True)
    token = Token(**{"normalized": not special, **flags, "special": special})
    if odd := next((key for key, flag in asdict(token).items() if key != "content" and not isinstance(flag, bool)), None):
        raise TypeError(f"its {odd} is {getattr(token, odd)!r}")
    return token


def _plain(content: Any, special: bool) -> Token:
    if not isinstance(content, str):
        raise TypeError(f"a content of {content!r}")
    return Token(content, normalized=not special, special=special)
