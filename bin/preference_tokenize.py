#!/usr/bin/env python3
"""Tokenize preference pairs: JSON, Parquet or Arrow rows to a stream of tokenized_pairs/2.

\b
  preference-tokenize pairs.jsonl -o pairs.arrow --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct
  preference-tokenize data/*.jsonl.gz -o - --tokenizer $POLICY | ref-logprobs - -o scored.arrow --policy $POLICY

INPUT is a file, a glob, a folder or "-" for stdin. JSON lines, a JSON array, Parquet and Arrow are told apart by their
content, CSV and TSV by their suffix; what is text may be .gz, .zst, .bz2 or .xz. The first record of a CSV names its
columns, every cell is text, an empty one is absent. A folder may be one that `datasets` saved. Of a folder with files of
several splits (train, test) --split names one: splits must not be mixed. The manifest.json of NVIDIA's rl_prep, or its
folder, stands for all shards of a split.

INPUT may also be the id of a data set of the Hugging Face hub, with --split and --subset, or HelpSteer3 or Tulu3Preference.
These need the package datasets. HF_HUB_OFFLINE and HF_DATASETS_OFFLINE hold. --split may be a part, as in `datasets`:
train[:1%], train[10:20], train[-100:], train+validation. Of a file, whose rows have no split by name, it is the part alone.
Rows may be

\b
  {prompt, chosen, rejected}                  strings or lists of {role, content} messages
  {chosen, rejected}                          whole conversations; the prompt is what they share
  {chosen, rejected}                          "\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts
  {context, completions: [{rank, completion}, {rank, completion}]}
  {context, response1, response2, overall_preference}

and may have the columns `tools` (a list or its JSON text), `chat_template_kwargs` and `system`. Messages may also be
ShareGPT's {from, value}, under `conversations`, or the JSON text of messages. Roles may be called human, gpt and the like.
Text parts are joined. Arguments of tool calls that are JSON text are parsed, unless the template writes text as it is. With
--prompt-key instruction Alpaca's `input` follows the instruction on a line of its own. Parquet and Arrow store null where a
row lacks a field of an object, so null counts as absent there. Errors name the line, or the row of a table or an array.

Each pair is written with the name of its file or data set, and with the rewards of its responses where the row has some.
--chosen-reward-key and --rejected-reward-key name their columns (of rows with completions, a field of these); a row without
a number there is an error. Without these options score_chosen and score_rejected are recognised, chosen_rating,
chosen_score, chosen_reward and the like, and `reward` of completions. The strength of overall_preference, 1 to 3, is the
reward of the chosen response, and 0 that of the other. The last line says how many pairs have rewards.

The prompt is the chat template's text with the generation prompt. The response is what the template adds after it, up to
and including the end-of-turn token. The two are tokenized apart. A prompt that ends with an assistant's message is continued
by the response. A row that has no exact split is an error. With a tokenizer that has no chat template, strings are taken as
plain text and the end-of-sequence token follows each response.

Every text of a row must be in what the template renders. A text that it leaves out is an error, which quotes its first
words. Only the reasoning in past turns and the text beside past tool calls may be missing, and white space at the ends of
texts may differ. The last line counts these, and names columns that carry content and were not read. Images and sound are
an error.

Rows that carry no signal (equal responses, a tie, no room for a response) are dropped and counted. An error in a row ends
the run (--on-error fail) or is counted and skipped. The last line on stderr has exact counts. Digests of input, tokenizer
and template travel with the stream. Input that can be read only once (stdin, a pipe) is recorded as "stream".
"""

from __future__ import annotations

import datetime
import functools
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from nemotron_dpo import cli
from nemotron_dpo.errors import UserError

PROGRAM = "preference-tokenize"


@click.command(PROGRAM, help=__doc__, no_args_is_help=True)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=cli.PATH)
@click.option("-o", "--output", required=True, type=cli.PATH, metavar="OUT", help='File to write, or "-" for stdout.')
@click.option(
    "--tokenizer", required=True, type=cli.PATH, metavar="ID_OR_DIR", help="Hugging Face id or folder, or Megatron checkpoint."
)
@click.option(
    "--chat-template", type=cli.PATH, metavar="FILE", help="Jinja file to use instead of the tokenizer's own template."
)
@click.option("--chat-template-kwargs", metavar="JSON", help='Variables for the template, such as {"enable_thinking":false}.')
@click.option("--template-date", metavar="YYYY-MM-DD", help="What templates take for the present day [default: today].")
@click.option("--system-prompt-file", type=cli.PATH, metavar="FILE", help="System message for rows that have none.")
@click.option("--split", metavar="SPLIT", help="Split of a data set or folder, or a part: train, train[:1%], train[10:20].")
@click.option("--subset", metavar="NAME", help="Subset (config) of a data set.")
@click.option(
    "--format",
    "row_format",
    type=click.Choice(["auto", "pair", "conversation", "transcript", "ranked", "helpsteer3"]),
    default="auto",
    show_default=True,
    help="Shape of the rows, in the order above.",
)
@click.option("--prompt-key", metavar="K", default="prompt", show_default=True)
@click.option("--chosen-key", metavar="K", default="chosen", show_default=True)
@click.option("--rejected-key", metavar="K", default="rejected", show_default=True)
@click.option("--chosen-reward-key", metavar="K", help="Column of the chosen response's reward, a number in every row.")
@click.option("--rejected-reward-key", metavar="K", help="Column of the rejected response's reward.")
@click.option("--source-name", metavar="NAME", help="Name of the data in the stream [default: of each file or data set].")
@click.option("--max-length", metavar="N", type=click.IntRange(min=2), help="Most tokens of prompt + response.")
@click.option(
    "--truncation",
    type=click.Choice(["response", "drop", "prompt-left"]),
    default="response",
    show_default=True,
    help="What to do with a longer pair: cut its responses at the end, drop it, or cut its prompt on the left.",
)
@click.option("--swap", is_flag=True, help="Exchange chosen and rejected.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Read the first N rows only.")
@click.option("--num-workers", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--rejects", type=cli.PATH, metavar="FILE", help="JSONL of the rows not written: place, reason, digests.")
@click.option("--stats", type=cli.PATH, metavar="FILE", help="JSON report: counts, lengths, length bias, duplicates, digests.")
@click.option(
    "--show", "num_shown", metavar="N", type=click.IntRange(min=0), default=0, help="Print the first N pairs to stderr."
)
@click.option("--max-line-bytes", metavar="N", type=click.IntRange(min=1), default=16 << 20, show_default=True)
def command(**options: Any) -> None:
    from nemotron_dpo.preferences.encoding import TRUNCATIONS
    from nemotron_dpo.preferences.row_formats import Keys
    from nemotron_dpo.preferences.tokenize_chunk import Settings
    from nemotron_dpo.preferences.tokenize_files import Job, tokenize_files
    from nemotron_dpo.preferences.tokenizer_folder import open_folder

    settings = Settings(
        folder=open_folder(options["tokenizer"], options["chat_template"]),
        now=_moment(options["template_date"]),
        keys=Keys(options["prompt_key"], options["chosen_key"], options["rejected_key"], *_reward_keys(options)),
        system_prompt=_system_prompt(options["system_prompt_file"]),
        template_kwargs=_json_object(options["chat_template_kwargs"]),
        max_length=options["max_length"],
        truncation=next(t for t in TRUNCATIONS if t == options["truncation"]),
        swap=options["swap"],
        max_line_bytes=options["max_line_bytes"],
    )
    if (doubt := settings.folder.doubt) is not None:
        cli.say(PROGRAM, f"warning: {settings.folder.path}: {doubt}")
    if settings.folder.template is None:
        cli.say(PROGRAM, f"{settings.folder.path}: no chat template: rows are taken as plain text")
    same = ("inputs", "output", "split", "subset", "source_name", "row_format", "limit", "num_workers", "rejects", "stats")
    job = Job(
        **{name: options[name] for name in (*same, "num_shown")},
        skip_errors=options["on_error"] == "skip",
        beside=(options["tokenizer"], options["chat_template"], options["system_prompt_file"]),
    )
    show = _shower(settings) if job.num_shown else _no_show
    tally = tokenize_files(job, settings, show, functools.partial(cli.show_progress, PROGRAM))
    for warning in tally.warnings():
        cli.say(PROGRAM, f"warning: {warning}")
    cli.say(PROGRAM, tally.closing_line())


def _reward_keys(options: dict[str, Any]) -> tuple[str | None, str | None]:
    chosen, rejected = options["chosen_reward_key"], options["rejected_reward_key"]
    if (chosen is None) != (rejected is None):
        given, absent = ("chosen", "rejected") if rejected is None else ("rejected", "chosen")
        raise click.UsageError(f"--{given}-reward-key needs --{absent}-reward-key: a pair has two rewards")
    return chosen, rejected


def _moment(date: str | None) -> datetime.datetime:
    if date is None:
        return datetime.datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        return datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise click.BadParameter(f"{date!r} is no date like 2026-01-31", param_hint="--template-date") from None


def _system_prompt(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise UserError("is not valid UTF-8", source=file) from None


def _json_object(text: str | None) -> dict[str, Any]:
    import orjson

    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"broken JSON: {error.msg}", param_hint="--chat-template-kwargs") from None
    if not isinstance(value, dict):
        raise click.BadParameter("no JSON object", param_hint="--chat-template-kwargs")
    return value


def _no_show(texts: Any, ids: Any) -> None:
    """Show nothing."""


def _shower(settings: Any) -> Any:
    from nemotron_dpo.preferences.showing import format_pair

    tokenizer = settings.folder.load()
    colour = "NO_COLOR" not in os.environ and (sys.stderr.isatty() or "FORCE_COLOR" in os.environ)
    return lambda texts, ids: print(format_pair(ids, tokenizer, colour=colour), file=sys.stderr, end="\n\n")


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
