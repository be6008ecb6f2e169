"""Why data cannot be read, as far as it is known before it is."""

from __future__ import annotations

from pathlib import Path

from nemotron_dpo.preferences.data_sources import absence

# text of a file, whether it is a template of NeMo-RL's, which puts the first user message in place of {}
FILES = [
    ("Answer briefly: {}\n", True),
    ("{}", True),
    ("  {}\nStep by step.", True),
    ('{"prompt": "a {} b", "chosen": "c", "rejected": "d"}\n', False),
    ('[{"prompt": "{}"}]', False),
    ("no place for a message", False),
]


def test_a_template_for_prompts_is_told_from_rows_by_its_content(tmp_path: Path) -> None:
    for number, (text, is_template) in enumerate(FILES):
        path = tmp_path / f"{number}.txt"
        path.write_text(text)
        why = absence(str(path), None)
        assert (why is not None and why.startswith("is a template for prompts")) == is_template, text
        path = path.rename(tmp_path / f"{number}.jsonl")
        assert absence(str(path), None) is None
