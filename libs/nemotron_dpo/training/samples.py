"""Some pairs of each validation as text, with how far the policy prefers the chosen response of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from nemotron_dpo.preferences.encoding import PairIds
from nemotron_dpo.preferences.pairs import Pairs
from nemotron_dpo.preferences.selection import Shown
from nemotron_dpo.preferences.showing import format_pair
from nemotron_dpo.training.pair_values import PairValues
from nemotron_dpo.training.record import Record


@dataclass(frozen=True)
class Samples:
    """The first `number` pairs of each validation: always the same ones, so that one sees them change."""

    number: int
    tokenizer: Tokenizer

    def of(self, record: Record) -> Iterator[str]:
        """A text for each pair of the validation `record`: how it stands, and then what it says."""
        pairs = record.pairs
        assert pairs is not None
        number = min(self.number, len(pairs.rows))
        for place in range(number):
            where = f"pair {place + 1} of {number} of {record.split} after step {record.step}"
            text = format_pair(_shown(pairs.data, pairs.rows[place]), self.tokenizer, colour=False)
            yield f"{where}: {_standing(pairs, place)}\n{text}"


def _standing(pairs: PairValues, place: int) -> str:
    """Margin, and log-probs with how far they went from the reference's: `margin 1.25, chosen -20.1 (+0.8), ...`."""
    values = {name: float(column[place]) for name, column in pairs.by_name.items()}
    facts = [f"margin {values['margin']:.4g}"] if "margin" in values else []
    for side in ("chosen", "rejected"):
        ratio = values.get(f"{side}_log_ratio")
        facts.append(f"{side} log-prob {values[f'{side}_logp']:.2f}" + ("" if ratio is None else f" ({ratio:+.2f})"))
    return ", ".join(facts)


def _shown(data: Pairs, row: int) -> Shown:
    ids = PairIds(*(column[row].tolist() for column in (data.prompt, data.chosen, data.rejected)))
    scores = None
    if data.ref_chosen is not None and data.ref_rejected is not None:
        scores = (float(data.ref_chosen[row].sum()), float(data.ref_rejected[row].sum()))
    return Shown(data.file(row), int(data.source_lines[row]), ids, scores)
