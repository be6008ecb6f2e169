#!/usr/bin/env python3
"""Tokenize preference pairs: JSON, Parquet or Arrow rows to a stream of tokenized_pairs/3.

\b
  preference-tokenize pairs.jsonl -o pairs.arrow --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct
  preference-tokenize data/*.jsonl.gz -o - --tokenizer $POLICY | ref-logprobs - -o scored.arrow --policy $POLICY
  preference-tokenize pairs.jsonl -o train.arrow --tokenizer $POLICY --split validation=0.05 --split-output validation.arrow
  preference-tokenize --show 3 --longest scored.arrow

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

Each pair is written with the name of its file or data set, with that of the file too where a data set has several, and with
the rewards of its responses where the row has some.
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
the run (--on-error fail) or is counted and skipped. At the end an audit tells of lengths and of what is odd, with the first
input lines; --stats has all of them, and --drop leaves such pairs out:

\b
  empty        a response of white space alone
  whitespace   responses that differ in white space alone
  inverted     rewards that contradict the choice       tied   the same reward for both responses
  both-ways    A is preferred to B here, and B to A there: all of these
  duplicates   the same pair came before

--split validation=0.05 holds that share of the pairs out, by prompt: no prompt is on both sides. It and the last two of --drop
need all pairs first, which wait on the disk of the output. --show prints pairs as text on stderr, or without -o on stdout, and
then nothing is written. It looks into streams of this program and of ref-logprobs too, which remember their tokenizer.

The last line on stderr has exact counts. Digests of input, tokenizer and template travel with the stream. Input that can be
read only once (stdin, a pipe) is recorded as "stream".
"""

from __future__ import annotations

import datetime
import functools
import os
from pathlib import Path
from typing import Any, NoReturn

import click

from nemotron_dpo import cli
from nemotron_dpo.errors import UserError
from nemotron_dpo.preferences.lines import MOST_ROW_BYTES, ROW_BYTES

PROGRAM = "preference-tokenize"


@click.command(PROGRAM, help=__doc__, no_args_is_help=True)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=cli.PATH)
@click.option("-o", "--output", type=cli.PATH, metavar="OUT", help='File to write, or "-" for stdout.')
@click.option("--tokenizer", type=cli.PATH, metavar="ID_OR_DIR", help="Hugging Face id or folder, or Megatron checkpoint.")
@click.option(
    "--chat-template", type=cli.PATH, metavar="FILE", help="Jinja file to use instead of the tokenizer's own template."
)
@click.option("--chat-template-kwargs", metavar="JSON", help='Variables for the template, such as {"enable_thinking":false}.')
@click.option("--template-date", metavar="YYYY-MM-DD", help="What templates take for the present day [default: today].")
@click.option("--system-prompt-file", type=cli.PATH, metavar="FILE", help="System message for rows that have none.")
@click.option(
    "--split",
    "splits",
    metavar="SPLIT",
    multiple=True,
    help="Split of a data set or folder, or a part: train, train[:1%], train[10:20]. NAME=SHARE holds out a share.",
)
@click.option("--split-output", type=cli.PATH, metavar="FILE", help="Where the pairs that --split NAME=SHARE holds out go.")
@click.option(
    "--seed", metavar="N", type=click.IntRange(min=0), default=42, show_default=True, help="Of --split NAME=SHARE and --random."
)
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
@click.option("--drop", "drops", metavar="A,B", help="What to leave out of the oddities above, such as duplicates,both-ways.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Read the first N rows only.")
@click.option("--num-workers", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--rejects", type=cli.PATH, metavar="FILE", help="JSONL of the rows not written: place, reason, digests.")
@click.option("--rejects-with-rows", is_flag=True, help="Put each row itself into --rejects too.")
@click.option(
    "--stats", type=cli.PATH, metavar="FILE", help="JSON report: counts, lengths, length bias, all oddities, digests."
)
@click.option("--show", "num_shown", metavar="N", type=click.IntRange(min=0), help="Print the first N pairs as text.")
@click.option("--random", "at_random", is_flag=True, help="Show pairs at random, by --seed.")
@click.option("--longest", is_flag=True, help="Show the longest pairs.")
@click.option("--lines", metavar="12,40", help="Show the pairs of these input lines; all of them without --show.")
@click.option("--show-tokens", is_flag=True, help='Show the boundaries of tokens, by "|".')
@click.option(
    "--max-line-bytes",
    metavar="N",
    type=click.IntRange(1, MOST_ROW_BYTES),
    default=ROW_BYTES,
    show_default=True,
    help="Longest row. Tokenizing one takes some 200 times its bytes of memory.",
)
def command(**options: Any) -> None:
    from nemotron_dpo.preferences.selection import parse_choice
    from nemotron_dpo.preferences.stream_texts import is_stream

    asked = ("num_shown", "at_random", "longest", "lines", "seed")
    choice = parse_choice(*(options[name] for name in asked))
    looks_only, inputs = options["output"] is None, options["inputs"]
    if looks_only and choice.number == 0:
        raise click.UsageError("Missing option '-o' / '--output', or --show to look at pairs only")
    can_be_rows = options["tokenizer"] or not (inputs[0] == "-" or inputs[0].endswith(".arrow"))
    if looks_only and len(inputs) == 1 and (is_stream(inputs[0]) or not can_be_rows):
        others = {str(parameter.name) for parameter in command.params} - {"inputs", "tokenizer", "show_tokens", *asked}
        cli.refuse_given(others, f"is about rows, and {inputs[0]} is a stream of pairs")
        _look_into(inputs[0], choice, options)
        return
    if looks_only:
        cli.refuse_given({"split_output", "rejects", "stats"}, "needs -o: without it no more rows are read than are shown")
    if options["tokenizer"] is None:
        raise click.UsageError("Missing option '--tokenizer'")
    _tokenize(choice, options)


def _tokenize(choice: Any, options: dict[str, Any]) -> None:
    from nemotron_dpo.preferences.column_names import Columns, doubt
    from nemotron_dpo.preferences.tokenize_files import tokenize_files

    settings, looks_only = _settings(options), options["output"] is None
    mixed_up = doubt(Columns(*(options[f"{role}_key"] for role in ("prompt", "chosen", "rejected"))))
    if mixed_up and not settings.swap:
        cli.say(PROGRAM, f"warning: {mixed_up}")
    for line in settings.folder.remarks():
        cli.say(PROGRAM, line)
    picker = _picker(choice, settings.folder, options)
    tally = tokenize_files(_job(options), settings, picker, functools.partial(cli.show_progress, PROGRAM))
    _say_missing(picker.finish())
    for line in () if looks_only else tally.audit():
        cli.say(PROGRAM, line)
    for warning in tally.warnings():
        cli.say(PROGRAM, f"warning: {warning}")
    cli.say(PROGRAM, "nothing is written without -o" if looks_only else tally.closing_line())


def _settings(options: dict[str, Any]) -> Any:
    from nemotron_dpo.preferences.audit.findings import parse_names
    from nemotron_dpo.preferences.row_formats import Keys
    from nemotron_dpo.preferences.tokenize_chunk import Settings
    from nemotron_dpo.preferences.tokenizer_folder import open_folder

    return Settings(
        folder=open_folder(options["tokenizer"], options["chat_template"]),
        now=_moment(options["template_date"]),
        keys=Keys(options["prompt_key"], options["chosen_key"], options["rejected_key"], *_reward_keys(options)),
        system_prompt=_system_prompt(options["system_prompt_file"]),
        template_kwargs=_json_object(options["chat_template_kwargs"]),
        drops=parse_names(options["drops"] or ""),
        rejects_have_rows=options["rejects_with_rows"],
        **{name: options[name] for name in ("max_length", "truncation", "swap", "max_line_bytes")},
    )


def _job(options: dict[str, Any]) -> Any:
    from nemotron_dpo.preferences.held_out import parse_splits
    from nemotron_dpo.preferences.tokenize_files import Tokenization

    if options["rejects_with_rows"] and options["rejects"] is None:
        raise click.UsageError("--rejects-with-rows needs --rejects FILE")
    split, held_out = parse_splits(options["splits"], options["seed"], options["split_output"])
    same = ("inputs", "subset", "source_name", "row_format", "limit", "num_workers", "rejects", "stats")
    tokenizer = options["tokenizer"]
    return Tokenization(
        **{name: options[name] for name in same},
        output=options["output"] or os.devnull,
        is_written=options["output"] is not None,
        split=split,
        held_out=held_out,
        skip_errors=options["on_error"] == "skip",
        tokenizer=os.path.abspath(tokenizer) if os.path.isdir(tokenizer) else tokenizer,
        beside=(tokenizer, options["chat_template"], options["system_prompt_file"]),
    )


def _look_into(stream: str, choice: Any, options: dict[str, Any]) -> None:
    """Show pairs of a stream."""
    from nemotron_dpo.preferences.stream_texts import show_stream

    say = functools.partial(cli.say, PROGRAM)
    _say_missing(show_stream(stream, options["tokenizer"], lambda folder: _picker(choice, folder, options), say))


def _picker(choice: Any, folder: Any, options: dict[str, Any]) -> Any:
    from nemotron_dpo.preferences.selection import Picker

    if choice.number == 0:
        return Picker(choice, lambda pair: None)
    from nemotron_dpo.preferences.showing import printer

    return Picker(choice, printer(folder.load(), on_stdout=options["output"] is None, boundaries=options["show_tokens"]))


def _say_missing(lines: list[int]) -> None:
    if lines:
        cli.say(PROGRAM, f"no pair is of line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}")


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


def main() -> NoReturn:
    """Entry point."""
    cli.run(command, PROGRAM)


if __name__ == "__main__":
    main()
