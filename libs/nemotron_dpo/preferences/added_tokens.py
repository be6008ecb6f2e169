"""Tokens that the files beside tokenizer.json add to it, by transformers' rules.

The reference is transformers' PreTrainedTokenizerBase._from_pretrained and TokenizersBackend (4.40 to 5): where
tokenizer_config.json has an added_tokens_decoder, special_tokens_map.json and added_tokens.json are not looked at; else the
former wins over tokenizer_config.json and the latter adds tokens. Of a token that tokenizer.json has too, tokenizer.json's
id stands, and the flags that come with a number.
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
_EXTRA = ("extra_special_tokens", "additional_special_tokens")  # the name of transformers 5, which wins, and of 4
_OF_MODEL = "model_specific_special_tokens"  # by names of the model's own; transformers 5 writes them


@dataclass(frozen=True)
class Token:
    """A token with the flags of `tokenizers.AddedToken`; a special one is matched before the text is normalized."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class AddedTokens:
    """`named` are bos_token, eos_token and the like, `extra` those without a name, `numbered` those given with an id.

    `file` is where the numbered ones stand.
    """

    named: Mapping[str, Token]
    extra: tuple[Token, ...]
    numbered: Mapping[int, Token]
    file: Path

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Add what `tokenizer` lacks, in transformers' order; a numbered token may also change the flags of one it has.

        Raises UserError where a token gets another id than is said.
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
    """What the files of the folder `path` say, given their contents. Raises UserError where one describes no token."""
    numbered_by_config = "added_tokens_decoder" in config
    said = dict(config) if numbered_by_config else {**config, **special, **_merged_extra(config, special)}
    extra = next((said[key] for key in _EXTRA if said.get(key)), ())
    named = {key: said[key] for key in said if key.endswith("_token") and isinstance(said[key], str | Mapping)}
    try:
        named = {**named, **(said.get(_OF_MODEL) or {})}
        if isinstance(extra, Mapping):  # the same under an older name
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
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"does not describe tokens ({type(error).__name__}: {error})", source=path / CONFIG) from None
    flags = {token.content: token for token in numbered.values()}
    names = {key: flags.get(token.content, token) for key, token in names.items()}
    return AddedTokens(names, extras, numbered, path / (CONFIG if numbered_by_config else ADDED))


def _merged_extra(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, list[Any]]:
    """transformers adds the extra tokens of both files under their newer name; under the older one they replace."""
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
    return Token(**{"normalized": not special, **flags, "special": special})


def _plain(content: str, special: bool) -> Token:
    return Token(content, normalized=not special, special=special)
