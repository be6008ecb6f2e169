"""The tables of the models that are supported and that are not, in checkpoint/README.md, made from the code.

python -m nemotron_dpo.checkpoint.family_table libs/nemotron_dpo/checkpoint/README.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from nemotron_dpo.checkpoint.families import FAMILIES
from nemotron_dpo.checkpoint.families.known import AROUND, MODELS, REASONS
from nemotron_dpo.checkpoint.families.wrappers import WRAPPERS

# what stands between two marks in the README -> what makes it
_BEGIN = "<!-- families: made by nemotron_dpo.checkpoint.family_table -->\n"
_END = "<!-- end of families -->\n"


def family_tables() -> str:
    """The tables as Markdown."""
    why: dict[str, list[str]] = {}
    for model_type, reason in REASONS.items():
        why.setdefault(reason, []).append(f"`{model_type}`")
    supported = ((f"`{model_type}`", MODELS[model_type]) for model_type in FAMILIES)
    around = (
        (f"`{name}`", AROUND[name], ", ".join(f"`{text}`" for text in dict.fromkeys(wrapper.texts.values())))
        for name, wrapper in WRAPPERS.items()
    )
    refused = ((", ".join(named), reason) for reason, named in why.items())
    return "\n".join(
        (
            "These are supported, each against transformers:\n",
            _table(("`model_type`", "models"), supported),
            "These models see or hear. Their text model trains, and the rest is carried through unchanged:\n",
            _table(("`model_type`", "models", "text models"), around),
            "These are refused by name:\n",
            _table(("`model_type`", "why"), refused),
        )
    )


def with_tables(text: str) -> str:
    """`text`, a README, with the tables as they must be between their two marks."""
    before, _, rest = text.partition(_BEGIN)
    return f"{before}{_BEGIN}\n{family_tables()}\n{_END}{rest.partition(_END)[2]}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
