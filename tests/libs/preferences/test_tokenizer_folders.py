"""Tokenizer folders as transformers 4.40 to 5 and people write them: transformers' ids and text, or a refusal by name."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support.chat_templates import CHATML
from support.preference_rows import only_pair
from support.small_tokenizers import byte_level, save

Change = Callable[[Path], object]
NEW = byte_level().get_vocab_size()  # the first id that tokenizer.json does not have
CALL, END = "<tool_call>", "</tool_call>"
TEXTS = (
    f"use {CALL} now",
    f"a{CALL}b{END} c",
    f" {CALL}  {END} ",
    "hello world <|im_end|> and <|end|>x",
    "the <think> word<think>s",
    "<|eot|><pad> [MASK]",
)


def added(content: str, **flags: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **flags}
    return {"content": content, **flags}


def decoder(*tokens: dict[str, Any], first: int = NEW) -> dict[str, Any]:
    return {str(first + number): token for number, token in enumerate(tokens)}


def config(drop: tuple[str, ...] = (), **changes: Any) -> Change:
    return rewritten("tokenizer_config.json", lambda said: {k: v for k, v in {**said, **changes}.items() if k not in drop})


def rewritten(name: str, change: Callable[[Any], Any]) -> Change:
    def write(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()) if path.exists() else {})))

    return write


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def special_map(**said: Any) -> Change:
    return rewritten("special_tokens_map.json", lambda _: said)


def added_json(**said: int) -> Change:
    return rewritten("added_tokens.json", lambda _: said)


def own(*tokens: AddedToken) -> Change:
    """Tokens that tokenizer.json itself has."""

    def write(folder: Path) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens(list(tokens))
        tokenizer.save(str(folder / "tokenizer.json"))

    return write


ALIKE: dict[str, Change] = {
    "as it is": lambda folder: None,
    "in added_tokens_decoder": config(added_tokens_decoder=decoder(added(CALL), added(END))),
    "in added_tokens_decoder, special": config(added_tokens_decoder=decoder(added(CALL, special=True))),
    "in added_tokens_decoder, without flags": config(added_tokens_decoder={str(NEW): {"content": CALL}}),
    "taking the space on its left": config(added_tokens_decoder=decoder(added(CALL, lstrip=True))),
    "taking the space on its right": config(added_tokens_decoder=decoder(added(CALL, rstrip=True), added(END, rstrip=True))),
    "as a whole word": config(added_tokens_decoder=decoder(added("<think>", single_word=True))),
    "after normalization": config(added_tokens_decoder=decoder(added(CALL, normalized=True))),
    "in added_tokens_decoder, out of order": config(
        added_tokens_decoder={str(NEW + 1): added(END), str(NEW): added(CALL), "3": added("<|im_end|>", special=True)}
    ),
    "other flags than in tokenizer.json": both(
        own(AddedToken(CALL, lstrip=True)), config(added_tokens_decoder=decoder(added(CALL, rstrip=True)))
    ),
    "in additional_special_tokens": config(additional_special_tokens=[CALL, END]),
    "in extra_special_tokens": config(extra_special_tokens=[CALL, END]),
    "in extra_special_tokens with names": config(extra_special_tokens={"call_token": CALL, "end_token": END}),
    "in model_specific_special_tokens": config(model_specific_special_tokens={"call": CALL, "end_token": END}),
    "in both lists": config(extra_special_tokens=[CALL], additional_special_tokens=[END]),
    "an extra token with flags": config(
        extra_special_tokens=[{"__type": "AddedToken", **added(CALL, lstrip=True, special=True)}]
    ),
    "a token that has a name of its own": config(image_token=CALL),
    "in added_tokens.json": added_json(**{CALL: NEW, END: NEW + 1}),
    "in added_tokens.json, out of order": added_json(**{END: NEW + 1, CALL: NEW}),
    "in added_tokens.json, and special": both(added_json(**{CALL: NEW}), config(additional_special_tokens=[CALL])),
    "in special_tokens_map.json": special_map(additional_special_tokens=[CALL, END]),
    "in special_tokens_map.json with flags": special_map(pad_token=added(CALL, lstrip=True)),
    "in both files under the older name": both(
        config(additional_special_tokens=[END]), special_map(additional_special_tokens=[CALL])
    ),
    "in both files under the newer name": both(config(extra_special_tokens=[END]), special_map(extra_special_tokens=[CALL])),
    "files that added_tokens_decoder puts out of use": both(
        config(added_tokens_decoder=decoder(added(CALL))), added_json(**{END: NEW}), special_map(eos_token="<|eot|>")
    ),
    "an end of sequence that is new": config(eos_token="<|eot|>"),
    "an end of sequence by special_tokens_map.json": both(config(eos_token="<|end|>"), special_map(eos_token="<|eot|>")),
    "special tokens with flags": config(
        pad_token={"__type": "AddedToken", **added("<pad>", lstrip=True, special=True)}, mask_token="[MASK]"
    ),
    "flags of a special token by its number": config(
        pad_token="<pad>", added_tokens_decoder=decoder(added("<pad>", lstrip=True, special=True))
    ),
    "a special token that is a plain token": config(pad_token="o"),
    "nulls": config(bos_token=None, additional_special_tokens=None, pad_token=None),
}


def folder_of(root: Path, change: Change) -> Path:
    folder = save(root, byte_level(), eos_token="<|im_end|>", chat_template=CHATML)
    change(folder)
    return folder


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    plain = byte_level()
    without_effect = []
    for number, (name, change) in enumerate(ALIKE.items()):
        folder = folder_of(tmp_path / str(number), change)
        opened, oracle = open_folder(str(folder)), AutoTokenizer.from_pretrained(folder)
        tokenizer = opened.load()
        ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        assert ours == [oracle(text, add_special_tokens=False).input_ids for text in TEXTS], name
        assert opened.special_tokens == oracle.special_tokens_map, name
        if ours == [plain.encode(text, add_special_tokens=False).ids for text in TEXTS]:
            without_effect.append(name)
    assert without_effect == ["as it is", "nulls"]  # each other folder would be read wrongly by tokenizer.json alone


def test_pairs_hold_the_added_tokens(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config(added_tokens_decoder=decoder(added(CALL))))
    pair = only_pair(folder, {"prompt": f"Use {CALL} now.", "chosen": f"{CALL}a", "rejected": f"b {CALL} "})
    assert NEW in pair["prompt_ids"]
    assert pair["chosen_ids"][0] == NEW
    assert NEW in pair["rejected_ids"]


def test_the_digest_counts_every_file_that_adds_tokens(tmp_path: Path) -> None:
    changes = (lambda folder: None, added_json(**{CALL: NEW}), special_map(eos_token="<|end|>"), config(pad_token="<|end|>"))
    digests = {open_folder(str(folder_of(tmp_path / str(n), c))).digests["tokenizer"] for n, c in enumerate(changes)}
    assert len(digests) == len(changes)


REFUSED: dict[str, tuple[Change, str]] = {
    "another id": (
        config(added_tokens_decoder=decoder(added(CALL), first=NEW + 5)),
        f"tokenizer_config.json: says that token {NEW + 5} is '{CALL}', which after tokenizer.json is {NEW}",
    ),
    "another token": (config(added_tokens_decoder={"3": added(CALL)}), f"says that token 3 is '{CALL}', which after tokenizer"),
    "another id in added_tokens.json": (added_json(**{CALL: 7}), f"added_tokens.json: says that token 7 is '{CALL}'"),
    "no token": (config(added_tokens_decoder={"500": {"context": CALL}}), "tokenizer_config.json: does not describe tokens"),
    "no number": (config(added_tokens_decoder={"last": added(CALL)}), "tokenizer_config.json: does not describe tokens"),
    "split tokens": (config(split_special_tokens=True), "split_special_tokens True is not supported"),
    "another pattern": (config(fix_mistral_regex=True), "fix_mistral_regex True is not supported"),
    "several versions": (
        config(fast_tokenizer_files=["tokenizer.json", "tokenizer.4.0.json"]),
        '"fast_tokenizer_files" names tokenizer.4.0.json',
    ),
    "dropout": (
        rewritten("tokenizer.json", lambda said: {**said, "model": {**said["model"], "dropout": 0.5}}),
        "tokenizer.json: asks for dropout: a text has other ids each time",
    ),
    "a beginning that only the config has": (
        config(add_bos_token=True, drop=("chat_template",)),
        '"add_bos_token" says true, and tokenizer.json puts no token before a text',
    ),
    "no tokenizer.json": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"),
        "has tokenizer.model and no tokenizer.json: save it with transformers' AutoTokenizer",
    ),
    "tokens by code of its own": (  # as Kimi K2 has it: what transformers makes of its tiktoken.model splits texts otherwise
        lambda folder: [
            config(auto_map={"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]})(folder),
            (folder / "tokenizer.json").rename(folder / "tiktoken.model"),
        ],
        "has tiktoken.model and no tokenizer.json, and makes tokens by code of its own (auto_map), which is never run: give a",
    ),
    "a template for tools alone": (
        lambda folder: put(folder, {"additional_chat_templates/tool_use.jinja": "t"}),
        "has additional_chat_templates/tool_use.jinja and no chat_template.jinja, so no default template",
    ),
    "no default template": (config(chat_template=[{"name": "rag", "template": "r"}]), 'its chat_template has no "default"'),
}


def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path) -> None:
    for number, (name, (change, message)) in enumerate(REFUSED.items()):
        folder = folder_of(tmp_path / str(number), change)
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            open_folder(str(folder)).load()
        assert "\n" not in str(caught.value), name


def test_what_is_no_file_is_not_passed_over(tmp_path: Path) -> None:
    """As if it were not there, the template of tokenizer_config.json would count, or none."""
    nowhere = "is a link that leads nowhere: put a file there, or remove the link"
    makers: list[tuple[Callable[[Path], object], str]] = [
        (lambda path: path.symlink_to("gone"), nowhere),
        (lambda path: path.symlink_to(path.name), nowhere),
        (os.mkfifo, "is a named pipe where a file is due"),
        (Path.mkdir, "is a folder where a file is due"),
    ]
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/default.jinja")
    for number, (name, (make, message)) in enumerate(itertools.product(names, makers)):
        folder = folder_of(tmp_path / str(number), lambda folder: None)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(UserError) as caught:
            open_folder(str(folder))
        assert str(caught.value) == f"{folder / name}: {message}"


@pytest.mark.parametrize("target", ["gone", "tokenizer.json"])
def test_a_folder_of_templates_that_is_none_is_not_passed_over(target: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, lambda folder: (folder / "additional_chat_templates").symlink_to(target))
    message = {"gone": "is a link that leads nowhere", "tokenizer.json": "is a file where a folder is due"}[target]
    with pytest.raises(UserError, match=f"additional_chat_templates: {message}"):
        open_folder(str(folder))


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


# what is in the folder besides tokenizer_config.json's template "c" -> the template of a row without and one with tools
TEMPLATES: dict[str, tuple[Change, str, str]] = {
    "the config's": (lambda folder: None, "c", "c"),
    "a list": (config(chat_template=[{"name": n, "template": n[0]} for n in ("default", "tool_use", "rag")]), "d", "t"),
    "an object": (config(chat_template={"default": "d", "tool_use": "t"}), "d", "t"),
    "a file": (lambda folder: put(folder, {"chat_template.jinja": "f"}), "f", "f"),
    "files": (
        lambda folder: put(folder, {"chat_template.jinja": "f", "additional_chat_templates/tool_use.jinja": "t"}),
        "f",
        "t",
    ),
    "a file for documents": (
        lambda folder: put(folder, {"chat_template.jinja": "f", "additional_chat_templates/rag.jinja": "r"}),
        "f",
        "f",
    ),
    "a default among the others": (lambda folder: put(folder, {"additional_chat_templates/default.jinja": "a"}), "a", "a"),
    "a file over a list": (
        both(
            config(chat_template=[{"name": n, "template": n[0]} for n in ("default", "tool_use")]),
            lambda folder: put(folder, {"chat_template.jinja": "f"}),
        ),
        "f",
        "f",
    ),
    "a processor's beside it": (lambda folder: put(folder, {"chat_template.json": '{"chat_template": "p"}'}), "c", "c"),
}


def test_templates_are_those_of_transformers(tmp_path: Path) -> None:
    for number, (name, (change, plain, with_tools)) in enumerate(TEMPLATES.items()):
        folder = folder_of(tmp_path / str(number), both(config(chat_template="c"), change))
        oracle: Any = AutoTokenizer.from_pretrained(folder)
        assert (oracle.get_chat_template(), oracle.get_chat_template(tools=[{}])) == (plain, with_tools), name
        opened = open_folder(str(folder))
        assert (opened.template, opened.tool_template or opened.template) == (plain, with_tools), name


def test_a_template_of_processors_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    """transformers' AutoProcessor reads it, AutoTokenizer does not; without it the rows would be plain text."""
    files = {"chat_template.json": json.dumps({"chat_template": CHATML})}
    folder = folder_of(tmp_path, both(config(drop=("chat_template",)), lambda folder: put(folder, files)))
    assert open_folder(str(folder)).template == CHATML


def test_a_beginning_in_both_is_taken(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(adds_bos=True), eos_token="</s>", bos_token="<s>", add_bos_token=True)
    assert only_pair(folder, {"prompt": "a", "chosen": "b", "rejected": "c"})["prompt_ids"][0] == 0
