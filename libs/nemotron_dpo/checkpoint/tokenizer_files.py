"""The files of a policy's tokenizer, which every checkpoint and export of it has a copy of."""

from __future__ import annotations

import shutil
from pathlib import Path

from nemotron_dpo.folder_files import has_file, has_folder, refuse_link_outside

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",  # a processor's template, which is used where there is no other
    "tokenizer.model",
    "spiece.model",
    "tiktoken.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "processor_config.json",  # how a model that reads images makes tokens of them
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",  # says which of the tokenizer's ids end a generated text
)
_TEMPLATES = "additional_chat_templates"


def copied(source: Path) -> list[Path]:
    """Those files of the folder `source` that a copy has.

    Raises UserError where one is a link out of the folder, or something else than a file: nothing of it can be saved then.
    """
    paths = [source / name for name in _FILES]
    if has_folder(source / _TEMPLATES):
        paths += sorted((source / _TEMPLATES).glob("*.jinja"))
    found = [path for path in paths if has_file(path)]
    for path in found:
        refuse_link_outside(path, source)
    return found


def copy(source: Path | None, folder: Path) -> None:
    """Copy the tokenizer's files that `source` has into `folder`. Raises UserError as `copied` does."""
    if source is None:
        return
    for path in copied(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
