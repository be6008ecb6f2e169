"""Turn one chunk of rows into record batches of token ids and facts about the pairs: a worker's unit of work."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from nemotron_dpo.preferences.audit.facts import FACTS, fact, oddities
from nemotron_dpo.preferences.audit.findings import OF_ONE_PAIR
from nemotron_dpo.preferences.beside import refuse_repeated_keys
from nemotron_dpo.preferences.boundary import RenderedPair
from nemotron_dpo.preferences.columns import Row, pair_id, to_batches
from nemotron_dpo.preferences.encoding import Encoder, PairIds, Truncation, make_encoder, truncate
from nemotron_dpo.preferences.lines import ROW_BYTES, Chunk, TooLong
from nemotron_dpo.preferences.notes import Notes, note_changes, note_columns
from nemotron_dpo.preferences.problems import Reject, RowProblem, describe, drop
from nemotron_dpo.preferences.rendering import Renderer, make_renderer
from nemotron_dpo.preferences.rewards import RowRewards
from nemotron_dpo.preferences.row_formats import Keys, Preference, read_row
from nemotron_dpo.preferences.tokenizer_folder import TokenizerFolder


@dataclass(frozen=True)
class Settings:
    """Everything that the tokenized pairs depend on; the values are plain, so that they can be sent to another process.

    `max_length` is in tokens, None for no limit. `swap` exchanges the chosen and the rejected response of each row. `drops`
    names what is left out besides (audit.findings.NAMES). `rejects_have_rows`, `pairs_have_rows`: with the row as read.
    """

    folder: TokenizerFolder
    now: datetime.datetime
    keys: Keys = field(default_factory=Keys)
    system_prompt: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    truncation: Truncation = "response"
    swap: bool = False
    max_line_bytes: int = ROW_BYTES
    drops: frozenset[str] = frozenset()
    rejects_have_rows: bool = False
    pairs_have_rows: bool = False


@dataclass(frozen=True)
class Result:
    """What a chunk was turned into. `facts` has one row of FACTS for each pair, whose rewards are of `reward_columns`.

    `num_rows` does not count empty lines. `shown` holds the first pairs with their texts. `rows` has the row of each pair as
    it was read, where the settings keep them.
    """

    source: str
    num_rows: int
    batches: list[pa.RecordBatch]
    rejects: list[Reject]
    facts: np.ndarray
    shown: list[tuple[RenderedPair, PairIds]]
    notes: Notes = field(default_factory=Counter)
    reward_columns: list[str] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)


_NO_NUMBER = re.compile(rb"NaN|-?Infinity")


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A row that the chat template has written out."""

    line: int
    texts: RenderedPair
    odd: int
    rewards: RowRewards
    row: Any


@dataclass(frozen=True)
class Worker:
    """Turns chunks into results with the loaded tokenizer and the compiled chat template that it holds."""

    settings: Settings
    renderer: Renderer
    encoder: Encoder
    bos_id: int | None
    num_shown: int = 0

    def __call__(self, chunk: Chunk) -> Result:
        """Tokenize the rows of `chunk`; a row that yields no pair becomes a Reject."""
        rejects: list[Reject] = []
        rendered: list[_Rendered] = []
        notes: Notes = Counter()
        num_blank = 0
        for line, row in enumerate(chunk.rows, chunk.first_line):
            if row == b"\n" or (isinstance(row, bytes) and not row.strip()):
                num_blank += 1
                continue
            try:
                rendered.append(self._rendered(line, row, chunk.row_format, notes))
            except RowProblem as problem:
                rejects.append(self._reject(chunk.source, line, problem, row))
        facts: list[tuple[Any, ...]] = []
        shown: list[tuple[RenderedPair, PairIds]] = []
        columns: dict[str, int] = {"": 0}
        rows: list[bytes] = []

        def noted() -> Iterator[Row]:
            for one, whole, ids in self._encoded(rendered, chunk.source, rejects):
                number = columns.setdefault(one.rewards.of, len(columns))
                facts.append(fact(one.line, one.texts, one.odd, number, whole, ids))
                if self.settings.pairs_have_rows:
                    rows.append(raw(one.row))
                if len(shown) < self.num_shown:
                    shown.append((one.texts, ids))
                yield Row(one.line, ids, pair_id(ids), (one.rewards.chosen, one.rewards.rejected))

        batches = list(to_batches(noted(), chunk.source_name, chunk.file_name))
        rejects.sort(key=lambda r: r.line)
        made, num_rows = np.array(facts, FACTS), len(chunk.rows) - num_blank
        return Result(chunk.source, num_rows, batches, rejects, made, shown, notes, list(columns)[1:], rows)

    def _rendered(self, line: int, row: Any, row_format: str, notes: Notes) -> _Rendered:
        try:
            preference = self.preference(row, row_format)
            note_columns(notes, preference.beside)
            texts = self.renderer.render(preference)
        except RecursionError:
            raise RowProblem("wrong type", "is nested too deeply") from None
        _check_letters(texts, self.settings.max_line_bytes)
        note_changes(notes, texts.changed)
        odd = oddities(texts, preference.chosen, preference.rejected, preference.rewards)
        for name, (flag, what) in OF_ONE_PAIR.items() if odd and self.settings.drops else ():
            if odd & flag and name in self.settings.drops:
                raise drop(name, what)
        return _Rendered(line, texts, odd, preference.rewards, row)

    def preference(self, row: Any, row_format: str) -> Preference:
        """The preference in one row. Raises RowProblem where the row cannot be read or yields no pair."""
        preference = read_row(parse(row, self.settings.max_line_bytes), row_format, self.settings.keys)
        if not self.settings.swap:
            return preference
        rewards = replace(preference.rewards, chosen=preference.rewards.rejected, rejected=preference.rewards.chosen)
        return replace(preference, chosen=preference.rejected, rejected=preference.chosen, rewards=rewards)

    def _encoded(
        self, rendered: list[_Rendered], source: str, rejects: list[Reject]
    ) -> Iterator[tuple[_Rendered, PairIds, PairIds]]:
        """The rows that become pairs, with their ids before and after truncation. Of the others `rejects` gets one each."""
        encoded = self.encoder.encode(one.texts for one in rendered)
        for one, ids in zip(rendered, encoded, strict=True):
            if isinstance(ids, RowProblem):
                rejects.append(self._reject(source, one.line, ids, one.row))
                continue
            try:
                cut = truncate(ids, self.settings.max_length, self.settings.truncation, self.bos_id)
                if cut.chosen == cut.rejected:
                    where = "after truncation" if cut is not ids else "as token ids"
                    raise drop(f"equal {where}", f"the chosen and the rejected response are the same {where}")
            except RowProblem as problem:
                rejects.append(self._reject(source, one.line, problem, one.row, pair_id(ids)))
                continue
            yield one, ids, cut

    def _reject(self, source: str, line: int, problem: RowProblem, row: Any, pair: bytes | None = None) -> Reject:
        kept = raw(row) if self.settings.rejects_have_rows else None
        told = (problem.reason, problem.message, problem.field, problem.drop)
        return Reject(source, line, *told, pair.hex() if pair else None, row_digest(raw(row)), kept)


def make_worker(settings: Settings, num_shown: int = 0) -> Worker:
    """Load the tokenizer and compile the chat template. Raises UserError where one of them is broken.

    `num_shown` is the number of pairs of each chunk that the results keep for a person to look at.
    """
    tokenizer = settings.folder.load()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    renderer = make_renderer(
        settings.folder,
        added,
        system_prompt=settings.system_prompt,
        template_kwargs=settings.template_kwargs,
        now=settings.now,
    )
    bos = settings.folder.special_tokens.get("bos_token")
    return Worker(
        settings,
        renderer,
        make_encoder(tokenizer, plain=renderer.splitter is None, source=settings.folder.path / "tokenizer.json"),
        tokenizer.token_to_id(bos) if bos else None,
        num_shown,
    )


def parse(row: Any, max_line_bytes: int) -> dict[str, Any]:
    """The JSON object in one row, which is the bytes of a line or, from a table, the object itself.

    Raises RowProblem where the row is too long, no UTF-8, no JSON or no object, or where an object has a key twice.
    """
    if isinstance(row, TooLong):
        raise RowProblem("line too long", f"has more than {max_line_bytes} bytes (--max-line-bytes)")
    if isinstance(row, bytes):
        line = row
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _broken(line, error) from None
        if isinstance(row, dict):
            refuse_repeated_keys(line, row)
    if not isinstance(row, dict):
        raise RowProblem("wrong type", f"holds {describe(row)} where an object is due")
    return row


def _broken(line: bytes, error: orjson.JSONDecodeError) -> RowProblem:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return RowProblem("invalid UTF-8", f"is not valid UTF-8 at byte {bad.start + 1}")
    word = _NO_NUMBER.match(line, error.pos) if error.msg else None
    what = f"{word[0].decode()} is no JSON: write null" if word else error.msg
    return RowProblem("broken JSON", f"is broken JSON at column {error.colno}: {what}")


def _check_letters(texts: RenderedPair, most: int) -> None:
    """Raise RowProblem for a text of more letters than a line may have bytes: one of a table, or that a template blew up."""
    letters = len(texts.prompt) + len(texts.chosen) + len(texts.rejected)
    if letters > most:
        raise RowProblem("text too long", f"has {letters} letters where {most} are the most (--max-line-bytes)")


def raw(row: Any) -> bytes:
    """The bytes of a row: its line, or as JSON what a table holds there; empty for what was not held in memory."""
    return row if isinstance(row, bytes) else orjson.dumps(row, default=str) if isinstance(row, dict) else b""


def row_digest(row: bytes) -> str:
    """The hexadecimal sha256 of the bytes of a row."""
    return hashlib.sha256(row).hexdigest()
