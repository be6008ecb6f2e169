"""Turn input files into one stream of tokenized pairs, and account for each row: rejects, counts, pairs to look at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_dpo import __version__
from nemotron_dpo.errors import UserError
from nemotron_dpo.paths import refuse_overwriting
from nemotron_dpo.preferences.audit.findings import OF_SEVERAL_PAIRS
from nemotron_dpo.preferences.data_sources import RowSource, all_files, file_names, format_of, resolve_data, source_names
from nemotron_dpo.preferences.held_out import HeldOut
from nemotron_dpo.preferences.inputs import digest, limit_rows, read_chunks, states
from nemotron_dpo.preferences.lines import Chunk
from nemotron_dpo.preferences.recognition import AUTO, with_row_formats
from nemotron_dpo.preferences.row_formats import columns_read
from nemotron_dpo.preferences.selection import Choice, Picker
from nemotron_dpo.preferences.sink import Files, open_sink
from nemotron_dpo.preferences.splits import is_blank, sliced
from nemotron_dpo.preferences.tally import Tally
from nemotron_dpo.preferences.tokenize_chunk import Settings, make_worker
from nemotron_dpo.preferences.workers import ordered_map
from nemotron_dpo.progress import Progress, Silent, Work
from nemotron_dpo.streams import StreamInfo, published_file
from nemotron_dpo.wording import counted


@dataclass(frozen=True)
class Tokenization:
    """What to read and where to write it; `beside` names the other files and folders that are read.

    `source_name` is what the data are called in the stream; None for the names of files and data sets. `tokenizer` is the name
    that the stream remembers. Unless it `is_written`, the pairs are only looked at. No output may overwrite an input or a
    path in `beside`.
    """

    inputs: tuple[str, ...]
    output: str
    split: str | None = None
    subset: str | None = None
    source_name: str | None = None
    row_format: str = "auto"
    limit: int | None = None
    num_workers: int = 1
    skip_errors: bool = False
    rejects: str | None = None
    stats: str | None = None
    held_out: HeldOut | None = None
    tokenizer: str | None = None
    is_written: bool = True
    beside: tuple[str | None, ...] = ()


def tokenize_files(
    job: Tokenization,
    settings: Settings,
    picker: Picker | None = None,
    progress: Callable[[Work], Progress] = lambda work: Silent(),
) -> Tally:
    """Write the tokenized pairs of `job` and return the counts; `picker` is offered the pairs that are written.

    `progress` is told what work there is, and gives what hears how it goes on. Raises UserError for what a user can fix, such
    as a broken row or a file that changes while it is read. In that case no file is left under the output's name.
    """
    sources = resolve_data(job.inputs, job.split, job.subset)
    files = all_files(sources)
    refuse_overwriting(_outputs(job), [*files, *job.beside])
    before = states(files)
    info = stream_info(job, settings, files)
    settings = replace(settings, pairs_have_rows=bool(job.rejects and settings.drops & OF_SEVERAL_PAIRS.keys()))
    tally, place = Tally(settings.drops, settings.swap), _Place()
    chunks = _chunks(job, settings, sources, place.reach)
    with contextlib.ExitStack() as stack:
        files_written = Files(
            job.output, job.held_out, job.rejects, settings.drops, job.skip_errors, settings.rejects_have_rows
        )
        sink = stack.enter_context(open_sink(files_written, info, picker or Picker(Choice(), lambda shown: None)))
        work = _work(job, sources)
        shown = progress(work)
        for result in stack.enter_context(ordered_map(make_worker, settings, job.num_workers))(chunks):
            tally.add(result)
            sink.take(result)
            amount = result.num_rows if work.total is None else place.moved() / _BYTES[work.unit]
            shown.advance(amount, counted(len(tally.table), "pair"))
            if not job.is_written and sink.picker.is_done:
                break
        _check_unchanged(files, before)
        sink.finish(tally)
        if not tally.num_pairs:
            first = f"the first error is {tally.first_error}" if tally.first_error else None
            raise UserError(f"no pair is left: {tally.closing_line()}", source=", ".join(job.inputs), remedy=first)
        if job.stats:
            _write_json(job.stats, tally.report(info.digests, info.settings))
    return tally


def _check_unchanged(files: list[str], before: list[Any]) -> None:
    """Raise UserError for the first of `files` that is not in the state that it had `before`."""
    for file in (file for file, old, new in zip(files, before, states(files), strict=True) if old != new):
        raise UserError("was changed while it was read", source=file)


def _outputs(job: Tokenization) -> dict[str, str | None]:
    apart = job.held_out.output if job.held_out else None
    return {"-o": job.output, "--split-output": apart, "--rejects": job.rejects, "--stats": job.stats}


def _chunks(
    job: Tokenization, settings: Settings, sources: list[RowSource], reached: Callable[[int], object]
) -> Iterator[Chunk]:
    """The rows of `job`, which know the form they have and the data that they are of."""
    raw = limit_rows(_rows(sources, settings.max_line_bytes, columns_read(settings.keys), reached), job.limit)
    row_format = format_of(job.inputs) or AUTO if job.row_format == AUTO else job.row_format
    names = {file: job.source_name or name for file, name in source_names(sources).items()}
    files = file_names(names)

    def named(chunk: Chunk) -> Chunk:
        return replace(
            chunk, source_name=names.get(chunk.source, job.source_name or "stdin"), file_name=files.get(chunk.source)
        )

    return with_row_formats(map(named, raw), row_format, settings.keys, settings.max_line_bytes)


# What a unit of the work is, where the files are measured.
_BYTES = {"MB": 1_000_000, "kB": 1_000}


@dataclass
class _Place:
    """How far the files were read, in bytes."""

    now: int = 0
    told: int = 0

    def reach(self, place: int) -> None:
        self.now = place

    def moved(self) -> int:
        """Bytes since the last call."""
        amount, self.told = self.now - self.told, self.now
        return amount


def _is_measured(job: Tokenization, sources: list[RowSource]) -> bool:
    """Whether the work is as much as the files are long: they are text, and read to their ends."""
    files = all_files(sources)
    is_text = all(file != "-" and Path(file).is_file() and not file.endswith((".parquet", ".arrow")) for file in files)
    return is_text and job.limit is None and all(source.part.is_whole for source in sources)


def _work(job: Tokenization, sources: list[RowSource]) -> Work:
    if not _is_measured(job, sources):
        return Work("tokenizing", "row", announced=False)
    size = sum(Path(file).stat().st_size for file in all_files(sources))
    unit = "MB" if size >= _BYTES["MB"] else "kB"
    return Work("tokenizing", unit, total=size / _BYTES[unit], announced=False)


def _rows(
    sources: list[RowSource], max_line_bytes: int, columns: Collection[str], reached: Callable[[int], object]
) -> Iterator[Chunk]:
    """The rows of all `sources`, in order.

    Sources that are all whole splits are read as one list of files, so that some of the files may be empty.
    """
    whole = [file for source in sources for file in source.files]
    if all(source.part.is_whole for source in sources):
        yield from read_chunks(whole, max_line_bytes, columns, reached)
        return
    for source in sources:
        start, stop = source.part.bounds(lambda source=source: _num_rows(source, max_line_bytes))
        yield from sliced(read_chunks(source.files, max_line_bytes, columns), start, stop)


def _num_rows(source: RowSource, max_line_bytes: int) -> int:
    if "-" in source.files:
        message = "can be read only once, so its rows cannot be counted"
        raise UserError(message, source="<stdin>", remedy="give a part such as train[:100]")
    chunks = read_chunks(source.files, max_line_bytes, ())
    return sum(not is_blank(row) for chunk in chunks for row in chunk.rows)


def stream_info(job: Tokenization, settings: Settings, files: list[str]) -> StreamInfo:
    """The provenance of the stream: everything that its rows depend on, and nothing else."""
    shaped: dict[str, Any] = {
        "keys": [settings.keys.prompt, settings.keys.chosen, settings.keys.rejected],
        "format": job.row_format,
        "limit": job.limit,
        "max_length": settings.max_length,
        "truncation": settings.truncation,
        "swap": settings.swap,
        "system_prompt": settings.system_prompt,
        "chat_template_kwargs": settings.template_kwargs,
    }
    if "strftime_now" in (settings.folder.template or ""):
        shaped["template_date"] = settings.now.isoformat()
    optional = {"split": job.split, "subset": job.subset, "source_name": job.source_name}
    shaped |= {name: value for name, value in optional.items() if value}
    if settings.drops:
        shaped["drop"] = sorted(settings.drops)
    if job.tokenizer is not None:
        shaped["tokenizer"] = job.tokenizer
    if settings.keys.chosen_reward:
        shaped["reward_keys"] = [settings.keys.chosen_reward, settings.keys.rejected_reward]
    digests = {"input": digest(files), **settings.folder.digests}
    return StreamInfo("tokenized_pairs", "preference-tokenize", __version__, digests, shaped)


def _write_json(path: str, value: dict[str, Any]) -> None:
    import orjson

    with published_file(path) as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
