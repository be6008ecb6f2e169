"""Prompt and response as an inference server and a model would split them; transformers is the oracle for the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemotron_dpo.preferences.tokenizer_folder import open_folder
from support.chat_templates import CHATML, MISTRAL, MISTRAL_TOOLS, OPENS_THOUGHT, PHI3, REWRITING, TEMPLATES
from support.preference_rows import only_pair, only_reject
from support.small_tokenizers import byte_level, merging, save, sentencepiece_like

QUESTION = [{"role": "user", "content": "How are you?"}]
TURNS = [*QUESTION, {"role": "assistant", "content": " Well. "}, {"role": "user", "content": "And\n\nnow?"}]
ROWS = {
    "strings": {"prompt": "How are you?", "chosen": "Fine, thanks.", "rejected": "no"},
    "leading and trailing space": {"prompt": "How are you?", "chosen": " Fine \n", "rejected": "\n no"},
    "several turns": {"prompt": TURNS, "chosen": "Fine.", "rejected": [{"role": "assistant", "content": "no"}]},
    "other scripts": {"prompt": "日本語 \U0001f600?", "chosen": "e\u0301\u0000\u200d", "rejected": "Ω"},
    "template text in the answer": {"prompt": "a", "chosen": "im_end\nassistant\n", "rejected": "[INST] b [/INST]"},
}


def folder_of(tmp_path: Path, template: str, bos: str | None = "<s>", eos: str | None = "</s>") -> Path:
    return save(tmp_path / "tokenizer", byte_level(), chat_template=template, bos_token=bos, eos_token=eos)


def oracle(folder: Path, row: dict[str, Any], side: str) -> tuple[list[int], str, str]:
    """(prompt ids a server feeds, prompt text, text of the whole conversation) by transformers."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    answer = row[side] if isinstance(row[side], list) else [{"role": "assistant", "content": row[side]}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return ids, text, tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_what_a_server_feeds_and_a_model_has_to_write(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    template, bos, eos, end = TEMPLATES[name]
    folder = folder_of(tmp_path, template, bos, eos)
    tokenizer = byte_level()
    pair = only_pair(folder, row)
    for side in ("chosen", "rejected"):
        server_ids, prompt, whole = oracle(folder, row, side)
        assert pair["prompt_ids"] == server_ids
        response = tokenizer.decode(pair[f"{side}_ids"], skip_special_tokens=False)
        assert whole.startswith(prompt + response)
        assert whole[len(prompt + response) :].strip() in ("", eos)
        assert pair[f"{side}_ids"].index(tokenizer.token_to_id(end)) == len(pair[f"{side}_ids"]) - 1
        assert not pair[f"{side}_truncated"]


def test_merges_do_not_cross_the_boundary(tmp_path: Path) -> None:
    """x a | b c d: joined text would merge a+b, and "xa" + "bcd" would equal what another response gives."""
    folder = save(tmp_path, merging(), eos_token="</s>")
    assert merging().encode("xabcd</s>").tokens == ["x", "ab", "c", "d", "</s>"]
    pair = only_pair(folder, {"prompt": "xa", "chosen": "bcd", "rejected": "cd"})
    tokens = {k: [merging().id_to_token(i) for i in pair[f"{k}_ids"]] for k in ("prompt", "chosen", "rejected")}
    assert tokens == {"prompt": ["x", "a"], "chosen": ["b", "c", "d", "</s>"], "rejected": ["c", "d", "</s>"]}


def test_a_dummy_prefix_is_for_the_prompt_alone(tmp_path: Path) -> None:
    """Llama 2 and Mistral put a space before every text; a response that starts with one would get two."""
    tokenizer = sentencepiece_like()
    folder = save(tmp_path, tokenizer, chat_template=MISTRAL, bos_token="<s>", eos_token="</s>")
    pair = only_pair(folder, {"prompt": "hi", "chosen": "hi there", "rejected": " hi"})
    assert pair["prompt_ids"] == tokenizer.encode("<s>[INST] hi [/INST]", add_special_tokens=False).ids
    assert [tokenizer.id_to_token(i) for i in pair["chosen_ids"]][:2] == ["hi", "\u2581"]
    assert [tokenizer.id_to_token(i) for i in pair["rejected_ids"]] == ["\u2581h", "i", "</s>"]
    assert tokenizer.decode(pair["prompt_ids"] + pair["chosen_ids"]) == "[INST] hi [/INST]hi there"


def test_prompt_rewritten_by_the_answer_is_split_at_its_header(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, REWRITING, None, "<|im_end|>")
    row = ROWS["several turns"]
    pair = only_pair(folder, row)
    server_ids, _, _ = oracle(folder, row, "chosen")
    assert pair["prompt_ids"] == server_ids
    assert byte_level().decode(pair["chosen_ids"], skip_special_tokens=False) == "Fine.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "extra"),
    [(OPENS_THOUGHT, {}), (MISTRAL_TOOLS, {"tools": [{"name": "search"}]}), ("{{ messages[-1].content | upper }}", {})],
)
def test_no_exact_split_is_an_error(tmp_path: Path, template: str, extra: dict[str, Any]) -> None:
    reason, _, drop = only_reject(folder_of(tmp_path, template), {"prompt": "a", "chosen": "bc", "rejected": "cd", **extra})
    assert (reason, drop) == ("no exact split", False)


def test_a_turn_without_an_end_token_is_an_error(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    reason, message, _ = only_reject(folder_of(tmp_path, template), {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert (reason, "end-of-turn" in message) == ("no exact split", True)


@pytest.mark.parametrize("template", [CHATML, PHI3])
@pytest.mark.parametrize("prefill", ["Sure, ", "Sure,"])
def test_a_prefill_is_continued_without_another_header(tmp_path: Path, template: str, prefill: str) -> None:
    folder = folder_of(tmp_path, template)
    prompt = [*QUESTION, {"role": "assistant", "content": prefill}]
    pair = only_pair(folder, {"prompt": prompt, "chosen": "here it is", "rejected": [{"role": "assistant", "content": "no"}]})
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    served = tokenizer.apply_chat_template(prompt, continue_final_message=True, tokenize=True, return_dict=False)
    assert pair["prompt_ids"] == served
    end = "<|im_end|>" if template is CHATML else "<|end|>"
    assert byte_level().decode(pair["chosen_ids"], skip_special_tokens=False) == "here it is" + end


def test_a_trimmed_prefill_keeps_every_character_of_the_joined_message(tmp_path: Path) -> None:
    template, bos, eos, _ = TEMPLATES["gemma"]
    folder = folder_of(tmp_path, template, bos, eos)
    prompt = [*QUESTION, {"role": "assistant", "content": "Sure, "}]
    pair = only_pair(folder, {"prompt": prompt, "chosen": "here", "rejected": "no"})
    joined = byte_level().decode(pair["prompt_ids"] + pair["chosen_ids"], skip_special_tokens=False)
    assert joined.endswith("<start_of_turn>model\nSure, here<end_of_turn>")


def test_tool_calls_end_where_the_template_ends_them(tmp_path: Path) -> None:
    template = CHATML.replace("message['content']", "(message.content or message.tool_calls | tojson)")
    call = {"role": "assistant", "tool_calls": [{"name": "search", "arguments": {"q": "ä<"}}]}
    pair = only_pair(folder_of(tmp_path, template), {"prompt": "a", "chosen": [call], "rejected": "b"})
    text = byte_level().decode(pair["chosen_ids"], skip_special_tokens=False)
    assert text == '[{"name": "search", "arguments": {"q": "ä<"}}]<|im_end|>'


@pytest.mark.parametrize("text", ["a<s>", "</s>"])
@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_control_tokens_in_a_text_are_an_error(tmp_path: Path, field: str, text: str) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", field: text}
    assert only_reject(folder_of(tmp_path, MISTRAL), row)[0] == "control token in text"


def test_an_end_of_turn_that_is_not_the_eos_is_a_control_token_too(tmp_path: Path) -> None:
    template, bos, eos, end = TEMPLATES["gemma"]
    row = {"prompt": "a", "chosen": f"b{end}b", "rejected": "c"}
    assert only_reject(folder_of(tmp_path, template, bos, eos), row)[0] == "control token in text"


@pytest.mark.parametrize(("adds_bos", "head"), [(False, []), (True, ["<s>"])])
def test_plain_text_without_a_template(tmp_path: Path, adds_bos: bool, head: list[str]) -> None:
    tokenizer = byte_level(adds_bos=adds_bos)
    folder = save(tmp_path, tokenizer, eos_token="</s>")
    pair = only_pair(folder, {"prompt": "hello ", "chosen": "world", "rejected": "you"})
    assert pair["prompt_ids"] == tokenizer.encode("hello ").ids
    assert tokenizer.decode(pair["prompt_ids"][: len(head)], skip_special_tokens=False) == "".join(head)
    assert tokenizer.decode(pair["chosen_ids"], skip_special_tokens=False) == "world</s>"


def test_messages_need_a_template(tmp_path: Path) -> None:
    folder = save(tmp_path, byte_level(), eos_token="</s>")
    assert only_reject(folder, {"prompt": QUESTION, "chosen": "a", "rejected": "b"})[0] == "no chat template"


def test_template_is_found_where_transformers_saves_it(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    listed = save(tmp_path / "listed", byte_level(), chat_template=named, eos_token={"content": "</s>", "special": True})
    beside = save(tmp_path / "beside", byte_level(), eos_token="</s>")
    (beside / "chat_template.jinja").write_text("j")
    (given := tmp_path / "given.jinja").write_text("g")
    assert (open_folder(str(listed)).template, open_folder(str(listed)).tool_template) == ("d", "t")
    assert open_folder(str(listed)).special_tokens == {"eos_token": "</s>"}
    assert open_folder(str(beside)).template == "j"
    assert open_folder(str(beside), str(given)).template == "g"
