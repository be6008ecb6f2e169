"""The pairs that changed most, in both directions, and those that are most wrong: to be looked through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nemotron_dpo.report.document import ListedPair, Listing, Section, is_coloured
from nemotron_dpo.report.pair_log import PairChanges
from nemotron_dpo.report.pairs_section import where
from nemotron_dpo.report.run_report import Run
from nemotron_dpo.report.texts import PairText, Texts, texts
from nemotron_dpo.report.visible import visible

_EACH = 25
_COLOURED = 12_000  # tokens of a page that have a colour: half a megabyte
_CALLED = {"improved": "improved most", "regressed": "regressed most", "highest": "highest margins", "wrong": "most wrong now"}


def changed_section(run: Run, scores: Path | None, *, with_text: bool) -> Section:
    """Twenty-five of each kind, with their texts unless these are not wanted."""
    change, heading = run.change, "Pairs to look at"
    if change is None:
        return Section("changed", heading)
    rows = {kind: own for kind, own in _chosen(change).items() if len(own)}
    wanted = {change.last.ids[change.last.pair[row]] for own in rows.values() for row in own}
    found = texts(run.given, change.split, wanted, scores) if with_text else Texts()
    listed = [_listed(change, kind, int(row), found) for kind, own in rows.items() for row in own]
    pairs, plain = _within_budget(listed)
    kinds = tuple((kind, f"{_CALLED[kind]} ({len(own)})") for kind, own in rows.items())
    remarks = found.remarks if with_text else ("Texts are left out, as was asked for.",)
    remarks += (f"Of {plain} of these pairs no token is coloured: the page would be too large.",) if plain else ()
    remarks += _of_tokens(pairs, scores, with_text=with_text)
    lead = f"Pairs {where(run, change.split)}. Texts are cut where they are long, and what is invisible in them is spelled out."
    listing = Listing(pairs, kinds, remarks)
    return Section("changed", heading, lead, listing=listing, on_page="Open a pair to read it.")


def _of_tokens(pairs: tuple[ListedPair, ...], scores: Path | None, *, with_text: bool) -> tuple[str, ...]:
    """What is to be said where tokens have no colour."""
    if not with_text or any(pair.chosen_tokens for pair in pairs):
        return ()
    if scores is not None:
        return ("The scores given have no values for the tokens of these pairs, so no change is coloured.",)
    return ("Tokens are not coloured by their change: that needs scores by the trained policy (ref-logprobs, then --scores).",)


def _within_budget(listed: list[ListedPair]) -> tuple[tuple[ListedPair, ...], int]:
    """The pairs, coloured as far as a page has room, and how many lost their colours: those furthest down, of each kind."""
    ranks = [sum(one.kind == pair.kind for one in listed[:n]) for n, pair in enumerate(listed)]
    kept, left, plain = list(listed), _COLOURED, 0
    for place in sorted(range(len(listed)), key=ranks.__getitem__):
        pair = listed[place]
        size = sum(map(is_coloured, (*pair.chosen_tokens, *pair.rejected_tokens)))
        if size > left:
            kept[place], plain = replace(pair, chosen_tokens=(), rejected_tokens=()), plain + 1
        left -= min(size, left)
    return tuple(kept), plain


def _chosen(change: PairChanges) -> dict[str, np.ndarray]:
    """Rows by kind, the strongest first. A pair that gained is never listed as one that regressed."""
    last = change.last.margin
    wrong = np.argsort(last, kind="stable")
    wrong = wrong[last[wrong] < 0][:_EACH]
    if not change.was_seen_twice:
        return {"highest": np.argsort(-last, kind="stable")[:_EACH], "wrong": wrong}
    moved = last - change.first.margin
    order = np.argsort(moved, kind="stable")
    up, down = order[::-1], order
    return {"improved": up[moved[up] > 0][:_EACH], "regressed": down[moved[down] < 0][:_EACH], "wrong": wrong}


def _listed(change: PairChanges, kind: str, row: int, found: Texts) -> ListedPair:
    last = change.last
    source = visible(last.files[last.file[row]] or last.sources[last.source[row]]) or "line"
    pair = last.ids[last.pair[row]]
    facts = (
        f"{last.prompt_tokens[row]} prompt, {last.chosen_tokens[row]} chosen, {last.rejected_tokens[row]} rejected "
        f"tokens; pair {pair.hex()[:12]}"
    )
    first = float(change.first.margin[row]) if change.was_seen_twice else None
    text = found.by_id.get(pair) or PairText("", "", "")
    has_text = pair in found.by_id
    return ListedPair(
        kind, f"{source}:{last.source_line[row]}", first, float(last.margin[row]), facts,
        text.prompt if has_text else None, text.chosen if has_text else None, text.rejected if has_text else None,
        text.chosen_tokens, text.rejected_tokens,
    )  # fmt: skip
