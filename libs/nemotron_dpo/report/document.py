"""What a report says, without a format: the pages in HTML, Markdown, PNG and on the terminal are made from the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Mark = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it speaks for the run, against it, or could not be told."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Answer:
    """A question of whoever opens the report, with the answer in a word or two, the reasons and what to type."""

    question: str
    answer: str
    mark: Mark
    why: str = ""
    checks: tuple[Check, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first column names the rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Curve:
    """A line of a figure, by steps: `ink` is the name of its colour, `dots` marks the points that were measured."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    ink: str
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    spec: Vega-Lite, whose colours are names of inks. curves: what a reader may point at, where the picture is one of curves.
    bounds: the values at the edges of the plot (left, right, bottom, top); `log` where the vertical scale is logarithmic.
    """

    key: str
    title: str
    caption: str
    spec: Mapping[str, Any]
    said: str
    curves: tuple[Curve, ...] = ()
    bounds: tuple[float, float, float, float] | None = None
    log: bool = False


@dataclass(frozen=True)
class Note:
    """What is easily misread, and how it is meant."""

    title: str
    text: str


@dataclass(frozen=True)
class ScoredToken:
    """A piece of a response, and how much more probable training made it, in nats."""

    text: str
    change: float


STRONGEST = 2.0  # nats: a token that changed by more has the full colour


def shade_of(token: ScoredToken) -> int:
    """How strongly `token` is coloured, 0 to 4."""
    return min(4, round(4 * abs(token.change) / STRONGEST))


def is_coloured(token: ScoredToken) -> bool:
    """Whether its change is large enough to be seen."""
    return shade_of(token) > 0


@dataclass(frozen=True)
class ListedPair:
    """A pair of the list: `kind` says why it is there. Texts are None where they are not shown."""

    kind: str
    label: str
    first: float | None
    last: float
    facts: str
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    chosen_tokens: tuple[ScoredToken, ...] = ()
    rejected_tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Listing:
    """Pairs to look through. `kinds` are those of its pairs with what they are called; `remarks` say what is left out."""

    pairs: tuple[ListedPair, ...]
    kinds: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A chapter: words, pictures, tables, notes, pairs and commands, in this order; what is empty is not there.

    legend: inks and what they mean in all of its pictures. on_page: how to read the page, which has pictures and can be
    pointed at; text alone leaves it out.
    """

    key: str
    heading: str
    lead: str = ""
    figures: tuple[Figure, ...] = ()
    grids: tuple[Grid, ...] = ()
    notes: tuple[Note, ...] = ()
    listing: Listing | None = None
    commands: tuple[str, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    on_page: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show but perhaps the lead."""
        return not (self.figures or self.grids or self.notes or self.listing or self.commands)


@dataclass(frozen=True)
class Page:
    """A whole report. `remarks` are what its reader must know of the record itself: that it is cut, or still grows."""

    title: str
    headline: str
    status: str
    answers: tuple[Answer, ...]
    figures_first: Grid
    sections: tuple[Section, ...]
    remarks: tuple[str, ...] = ()
