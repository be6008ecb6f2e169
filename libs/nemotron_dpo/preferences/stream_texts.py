"""Look into a stream of pairs: decode some of them with the tokenizer that it was made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.selection import Picker
from nemotron_dpo.preferences.tokenizer_folder import TokenizerFolder, open_folder

if TYPE_CHECKING:
    from nemotron_dpo.streams import StreamInfo

_KINDS = ("tokenized_pairs", "scored_pairs")
_ARROW_STREAM = b"\xff\xff\xff\xff"


def is_stream(name: str) -> bool:
    """Whether the file `name` is a stream of pairs, of whatever version: its first bytes and its description say so."""
    path = Path(name)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(_ARROW_STREAM)) != _ARROW_STREAM:
            return False
    import pyarrow as pa

    from nemotron_dpo.streams import StreamInfo

    try:
        with pa.memory_map(name) as file, pa.ipc.open_stream(file) as stream:
            return StreamInfo.detach(stream.schema) is not None
    except (pa.ArrowException, OSError, ValueError):
        return False


def show_stream(
    source: str, tokenizer: str | None, picker_of: Callable[[TokenizerFolder], Picker], say: Callable[[str], object]
) -> list[int]:
    """Offer all pairs of the stream `source` to a picker, and return the lines that it did not find.

    `tokenizer` names another one than the stream remembers. Raises UserError where the stream is damaged, remembers none, or
    remembers one that is not the same any more.
    """
    from nemotron_dpo.streams import open_reader

    with open_reader(source, *_KINDS) as reader:
        picker = picker_of(_folder_of(reader.info, reader.source, tokenizer, say))
        if reader.warning:
            say(f"warning: {reader.warning}")
        for batch in reader:
            picker.offer(batch)
            if picker.is_done:
                break
        return picker.finish()


def tokenizer_of(info: StreamInfo, source: str) -> Callable[[Sequence[int]], str]:
    """What makes text of the token ids of the stream `source`, which `info` describes, special tokens and all.

    Raises UserError where the stream remembers no tokenizer, or one that is not the same any more.
    """
    tokenizer = _folder_of(info, source, None, lambda line: None).load()
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _folder_of(info: StreamInfo, source: str, given: str | None, say: Callable[[str], object]) -> TokenizerFolder:
    names = list(_names(info.settings))
    if given is None and not names:
        raise UserError("does not say which tokenizer made it", source=source, remedy="name it with --tokenizer")
    name = given or names[0]
    try:
        folder = open_folder(name)
    except (UserError, OSError) as error:
        remedy = None if given else "--tokenizer names where it is now"
        raise (
            error
            if given
            else UserError(f"was made with the tokenizer {name}, which cannot be read", source=source, remedy=remedy)
        ) from None
    if folder.digests["tokenizer"] != info.digests.get("tokenizer"):
        if given is None:
            what = f"was made with the tokenizer {name}, which has changed since"
            raise UserError(what, source=source, remedy="--tokenizer names where the right one is")
        say(f"warning: {source}: was not made with the tokenizer {name}: its texts may be others")
    return folder


def _names(settings: dict[str, Any]) -> Iterator[str]:
    """The tokenizer that a stream was made with, or those of the streams that it was mixed of."""
    if isinstance(name := settings.get("tokenizer"), str):
        yield name
    for part in settings.get("mixture", []):
        yield from _names(part.get("settings", {}))
