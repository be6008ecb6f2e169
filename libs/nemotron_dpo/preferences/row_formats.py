"""Read rows of the formats in which preferences are published, and bring them to one: a prompt and two responses.

pair          {prompt, chosen, rejected}: strings or message lists; the responses may repeat the whole conversation
conversation  {chosen, rejected}: message lists; the prompt is the longest common prefix of turns
transcript    {chosen, rejected}: "\\n\\nHuman: ... \\n\\nAssistant: ..." texts
ranked        {context, completions: [{rank, completion}, ...]}: NeMo-RL's PreferenceDataset, the lower rank is chosen
helpsteer3    {context, response1, response2, overall_preference}: below 0 the first response is chosen, 0 is a tie
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nemotron_dpo.preferences import row_fields
from nemotron_dpo.preferences.beside import NOTHING, Beside, joined_input, read_beside
from nemotron_dpo.preferences.messages import Message, messages_of_json_text, read_tools
from nemotron_dpo.preferences.problems import RowProblem, drop, missing, wrong_type
from nemotron_dpo.preferences.rewards import NONE, RECOGNISED, RowRewards, read_rewards
from nemotron_dpo.preferences.row_fields import Row, Text
from nemotron_dpo.preferences.transcripts import is_transcript, parse_prompt, parse_transcript


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the columns that hold a pair, and those that hold its rewards, None for the names that are recognised."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    chosen_reward: str | None = None
    rejected_reward: str | None = None


def columns_read(keys: Keys) -> frozenset[str]:
    """The names of all columns that the readers of rows look at, including those that make a row refused, such as images.

    All names are in lower case, but for those that `keys` gives.
    """
    names = (keys.prompt, keys.chosen, keys.rejected, keys.chosen_reward, keys.rejected_reward)
    return _COLUMNS.union(name for name in names if name is not None)


_COLUMNS = frozenset(
    {
        "context", "completions", "response1", "response2", "overall_preference", "tools", "chat_template_kwargs",
        "conversations", "system", "input", "image", "images", "video", "videos", "audio", "audios", "pixel_values",
        *(name for names in RECOGNISED for name in names),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison: a prompt, the response that was preferred and the one that was rejected, each as text or as turns.

    `rewards` are what the row says that the two responses are worth.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] | None = None
    beside: Beside = NOTHING
    rewards: RowRewards = NONE


def recognise(row: Row, keys: Keys) -> str:
    """The name of the format of `row`; "pair" for an unknown format, because the reader of pairs says what is missing."""
    if row.get(_prompt_key(row, keys)) is not None:
        return "pair"
    if row.get("completions") is not None:
        return "ranked"
    if row.get("overall_preference") is not None or row.get("response1") is not None:
        return "helpsteer3"
    return _without_prompt(row, keys) or "pair"


def _without_prompt(row: Row, keys: Keys) -> str | None:
    """The format of a row whose responses contain the prompt; None where the responses do not contain it."""
    chosen = row.get(keys.chosen)
    if isinstance(chosen, list):
        return "conversation"
    if isinstance(chosen, str) and is_transcript(chosen):
        return "transcript"
    return None


def read_row(row: Row, row_format: str, keys: Keys) -> Preference:
    """The preference in `row`.

    Raises RowProblem where a field is missing or of a wrong type, and (as a drop) for a tie or for equal responses.
    """
    row, of_json_text = _with_messages(row, (_prompt_key(row, keys), keys.chosen, keys.rejected, "context"))
    try:
        prompt, chosen, rejected = _READERS[row_format](row, keys)
    except RowProblem as problem:
        raise _with_role(problem, row, keys) from None
    tools, template_kwargs = read_tools(row_fields.optional(row, "tools")), row_fields.optional(row, "chat_template_kwargs")
    if template_kwargs is not None and not isinstance(template_kwargs, dict):
        raise wrong_type("chat_template_kwargs", "an object", template_kwargs)
    rewards = read_rewards(row, row_format, keys)
    beside = read_beside(row, _columns(row_format, keys, _prompt_key(row, keys)).union(rewards.columns))
    if of_json_text:
        beside = replace(beside, of_json_text=of_json_text)
    if chosen == rejected:
        raise drop("equal responses", "the chosen and the rejected response are the same")
    return Preference(prompt, chosen, rejected, tools, template_kwargs, beside, rewards)


def _with_role(problem: RowProblem, row: Row, keys: Keys) -> RowProblem:
    """`problem` or, where `row` lacks a column of the pair, a problem that also names the option for another column."""
    roles = {keys.prompt: "prompt", keys.chosen: "chosen", keys.rejected: "rejected"}
    if problem.reason != "missing field" or problem.field not in roles or problem.field in row:
        return problem
    return missing(problem.field, row, roles[problem.field])


def _with_messages(row: Row, names: tuple[str, ...]) -> tuple[Row, tuple[str, ...]]:
    """`row` with the JSON text in its columns `names` replaced by the messages it encodes, and the columns where it was."""
    found = {name: messages for name in names if (messages := messages_of_json_text(row.get(name))) is not row.get(name)}
    return ({**row, **found}, tuple(found)) if found else (row, ())


@functools.cache
def _columns(row_format: str, keys: Keys, prompt_key: str) -> frozenset[str]:
    """The names of the columns that rows of `row_format` consist of."""
    own = {
        "ranked": ("context", "completions"),
        "helpsteer3": ("context", "response1", "response2", "overall_preference"),
        "pair": (prompt_key, keys.chosen, keys.rejected),
    }.get(row_format, (keys.chosen, keys.rejected))
    return frozenset((*own, "tools", "chat_template_kwargs"))


def _prompt_key(row: Row, keys: Keys) -> str:
    """The prompt's column: ShareGPT's `conversations` where the row has no `prompt` and the caller named no other column."""
    return "conversations" if "conversations" in row and keys.prompt not in row and keys.prompt == "prompt" else keys.prompt


def _read_pair(row: Row, keys: Keys) -> tuple[Text, Text, Text]:
    prompt_key = _prompt_key(row, keys)
    if row_fields.optional(row, prompt_key) is None and (row_format := _without_prompt(row, keys)):
        return _READERS[row_format](row, keys)
    prompt, chosen, rejected = (row_fields.text(row, key) for key in (prompt_key, keys.chosen, keys.rejected))
    if isinstance(prompt, str) and keys.prompt == "instruction":
        prompt = joined_input(prompt, row)
    if isinstance(chosen, list) and isinstance(rejected, list) and _repeats_prompt(chosen, rejected):
        return _agreeing(prompt, *_common_prefix(chosen, rejected), keys)
    if isinstance(prompt, str) and is_transcript(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        prompt = parse_prompt(prompt, keys.prompt)
        chosen, rejected = (t.removeprefix(" ") if isinstance(t, str) else t for t in (chosen, rejected))
    return prompt, chosen, rejected


def _read_conversation(row: Row, keys: Keys) -> tuple[Text, Text, Text]:
    return _common_prefix(row_fields.messages(row, keys.chosen), row_fields.messages(row, keys.rejected))


def _read_transcript(row: Row, keys: Keys) -> tuple[Text, Text, Text]:
    turns = [parse_transcript(row_fields.string(row, key), key) for key in (keys.chosen, keys.rejected)]
    return _common_prefix(*turns)


def _read_ranked(row: Row, keys: Keys) -> tuple[Text, Text, Text]:
    completions = row_fields.required(row, "completions")
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        raise wrong_type("completions", "a list of objects", completions)
    if len(completions) != 2:
        raise RowProblem("wrong type", f"holds {len(completions)} responses where 2 are due", field="completions")
    ranks = [row_fields.number(c, "rank") for c in completions]
    if ranks[0] == ranks[1]:
        raise drop("tie", "both completions have the same rank")
    best, worst = completions if ranks[0] < ranks[1] else completions[::-1]
    return row_fields.text(row, "context"), row_fields.text(best, "completion"), row_fields.text(worst, "completion")


def _read_helpsteer3(row: Row, keys: Keys) -> tuple[Text, Text, Text]:
    preference = row_fields.number(row, "overall_preference")
    context, first, second = (row_fields.text(row, key) for key in ("context", "response1", "response2"))
    if preference == 0:
        raise drop("tie", "overall_preference is 0")
    return (context, first, second) if preference < 0 else (context, second, first)


_READERS: dict[str, Callable[[Row, Keys], tuple[Text, Text, Text]]] = {
    "pair": _read_pair,
    "conversation": _read_conversation,
    "transcript": _read_transcript,
    "ranked": _read_ranked,
    "helpsteer3": _read_helpsteer3,
}


def _common_prefix(chosen: list[Message], rejected: list[Message]) -> tuple[Text, Text, Text]:
    if chosen == rejected:
        raise drop("equal responses", "the chosen and the rejected conversation are the same")
    length = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    return chosen[:length], chosen[length:], rejected[length:]


def _repeats_prompt(chosen: list[Message], rejected: list[Message]) -> bool:
    return all(len(turns) > 1 and turns[0].get("role") in ("system", "user") for turns in (chosen, rejected))


def _agreeing(prompt: Text, shared: Text, chosen: Text, rejected: Text, keys: Keys) -> tuple[Text, Text, Text]:
    """The prompt and responses of a row that has both a prompt and two whole conversations, which begin with `shared`.

    Raises RowProblem where the prompt is neither `shared` nor the content of its last user turn.
    """
    last_user = next((m.get("content") for m in reversed(shared) if isinstance(m, dict) and m.get("role") == "user"), None)
    if prompt not in (shared, last_user):
        message = "is not what the two conversations have in common"
        raise RowProblem("prompt disagrees", message, field=keys.prompt)
    return shared, chosen, rejected
