"""The page of dpo-report in a real browser: what is drawn, what keys do, who can read it, and that texts stay texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_dpo.report import writing
from support import report_runs
from support.browser import Browser, browser
from support.report_runs import sightings, usual_rows, write_log, write_run

pytestmark = pytest.mark.slow
HOSTILE = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre></details></main><h1 id=owned>owned</h1>",
    '" onmouseover="document.title=\'owned\'" x="',
    "invoice \u202egnp.exe\u202c end",
    "nul \x00 bell \x07 escape \x1b[2J end",
    "{{ 7*7 }} ${7*7} <!-- --> &lt;b&gt; ]]>",
]
# Of every picture: how large it is, and how many marks with a colour that can be seen it has besides its axes.
DRAWN = """[...document.querySelectorAll('figure')].map(f => {
  const svg = f.querySelector('svg'), box = svg.getBoundingClientRect(), paper = getComputedStyle(document.body).backgroundColor;
  const marks = [...svg.querySelectorAll('[class*="role-mark"] path, [class*="role-mark"] line')];
  const seen = marks.filter(m => { const s = getComputedStyle(m); const r = m.getBoundingClientRect();
    return (r.width > 1 || r.height > 1) && ![s.stroke, s.fill].every(c => c === 'none' || c === paper); });
  return [f.id, box.width > 150 && box.height > 60, seen.length]; })"""

# Scroll to a figure, and where its picture is once it stays there: parts that come into view take their true heights.
SETTLED = """async name => {
  const figure = document.querySelector(name);
  for (let last, now; ; last = now) {
    figure.scrollIntoView({block: 'center', behavior: 'instant'});
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    const box = figure.querySelector('svg').getBoundingClientRect();
    now = [box.left, box.top, box.width, box.height];
    if (String(now) === String(last)) return now;
  } }"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with 80 pairs of three sources, whose texts and names are hostile."""
    return _written(tmp_path_factory.mktemp("report"), HOSTILE)


def _written(folder: Path, texts: list[str]) -> Path:
    settings = [*report_runs.SETTINGS, "--validation", "scored.arrow"]
    run = write_run(folder / "run", usual_rows(), settings=settings, reason=HOSTILE[0], lineage={HOSTILE[1]: HOSTILE[4]})
    sources = [("plain.jsonl", HOSTILE[2], HOSTILE[4])[n % 3] for n in range(80)]
    for_all = {"source": sources, "chosen_tokens": [10 + n for n in range(80)]}
    margins = [(n % 4 - 0.5) * 3 for n in range(80)]
    batches = [
        sightings(0, "validation-default", [0.0] * 80, **for_all),
        sightings(20, "validation-default", margins, **for_all),
    ]
    write_log(run, batches)
    after = report_runs.write_texts(
        run, [(f"prompt {n}", texts[n // 4 % len(texts)], f"reply {n}") for n in range(80)], shift=0.7
    )
    target = folder / "page.html"
    writing.write(writing.page([str(run)], scores=after), str(target), "html")
    return target


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    for name, shift in (("one", 0.0), (HOSTILE[0].replace("/", "\u2044"), 9.0)):
        run = write_run(folder / name, usual_rows(120), settings=[*report_runs.SETTINGS, f"policy.optimizer.lr={1 + shift}e-5"])
        write_log(run, [sightings(step, "validation-default", [n - shift for n in range(-9, 31)]) for step in (0, 20)])
    target = folder / "page.html"
    writing.write(writing.page(sorted(map(str, (path for path in folder.iterdir())))), str(target), "html")
    return target


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_everything_is_drawn_and_readable(which: str, tab: Browser, request: pytest.FixtureRequest) -> None:
    """In both looks and on a phone: no complaint, no request, no overflow; and in both looks nothing serious from axe-core."""
    target = request.getfixturevalue(which)
    for width, height, dark in ((1280, 900, False), (1280, 900, True), (390, 844, False)):
        tab.open(target, width=width, height=height, dark=dark)
        drawn = tab.value(DRAWN)
        assert len(drawn) == {"page": 13, "comparison": 7}[which]
        assert [figure for figure in drawn if not figure[1] or not figure[2]] == []
        assert tab.value("document.documentElement.scrollWidth") <= width
        tab.value("document.querySelectorAll('details').forEach((d, n) => { if (n < 6) d.open = true }); 0")
        assert width < 600 or [(one["id"], [node["html"] for node in one["nodes"]]) for one in tab.axe()] == []
        assert tab.problems == []
        assert tab.requests == [target.resolve().as_uri()]


def test_print_is_on_white_without_what_only_a_screen_has(page: Path, tab: Browser) -> None:
    tab.open(page, dark=True, media="print")
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.querySelector('h1')).color") == "rgb(35, 38, 43)"
    assert tab.value("[...document.querySelectorAll('.filter, #theme')].every(e => getComputedStyle(e).display === 'none')")
    assert [figure for figure in tab.value(DRAWN) if not figure[1] or not figure[2]] == []
    pdf = tab.call("Page.printToPDF", printBackground=False)["data"]
    assert len(pdf) > 50_000


def test_the_look_can_be_chosen(page: Path, tab: Browser) -> None:
    tab.open(page)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert (tab.value("document.getElementById('theme').textContent"), tab.value(paper)) == ("Dark", "rgb(252, 251, 248)")
    tab.value("document.getElementById('theme').focus()")
    tab.press("Enter", "\r")
    assert (tab.value("document.getElementById('theme').textContent"), tab.value(paper)) == ("Light", "rgb(21, 23, 26)")


def test_pairs_are_filtered_by_words_and_by_kind(page: Path, tab: Browser) -> None:
    tab.open(page)
    shown = "[...document.querySelectorAll('.pairs > li')].filter(i => !i.hidden).length"
    assert tab.value("document.getElementById('count').textContent") == "65 of 65 shown"
    tab.value("document.getElementById('search').focus()")
    tab.call("Input.insertText", text="PROMPT 43")
    assert tab.value(shown) == 1
    assert tab.value("document.getElementById('count').textContent") == "1 of 65 shown"
    tab.press("Escape")
    assert tab.value(shown) == 65  # 25 that improved, 20 that regressed, and these again as most wrong
    tab.value("document.querySelector('[name=kind][value=regressed]').focus()")
    tab.press(" ", " ")
    assert tab.value(shown) == 20  # a quarter of the pairs has a margin below 0
    kinds = tab.value(
        "[...new Set([...document.querySelectorAll('.pairs > li')].filter(i => !i.hidden).map(i => i.dataset.kind))]"
    )
    assert kinds == ["regressed"]
    tab.value("document.querySelector('.pairs > li:not([hidden]) summary').focus()")
    tab.press("Enter", "\r")
    assert tab.value("document.querySelectorAll('.pairs details[open]').length") == 1


def test_values_are_read_with_keys_and_pointer(page: Path, tab: Browser) -> None:
    tab.open(page)
    read = "document.querySelector('#figure-loss .read').textContent"
    assert tab.value(read) == ""
    tab.press("Tab")  # so that the focus is one of the keyboard's
    tab.value("document.querySelector('#figure-loss .plot').focus({focusVisible: true})")
    tab.becomes(read, "step 20training 0.4081validation 0.42")
    tab.press("Home")
    tab.becomes(read, "step 0validation 0.6931")
    tab.press("ArrowRight")
    tab.becomes(read, "step 1training 0.6931")
    tab.value("document.activeElement.blur()")
    tab.becomes(read, "")
    box = tab.value(f"({SETTLED})('#figure-loss')")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] - 4, y=box[1] + box[3] / 2)
    tab.becomes(read, "step 20training 0.4081validation 0.42")
    circle = tab.value(
        "(c => [+c.getAttribute('cx'), +c.getAttribute('cy')])(document.querySelector('#figure-loss .cross circle'))"
    )
    ends = "[...document.querySelectorAll('#figure-loss [class*=mark-symbol] path')].map(p => p.getCTM()).at(-1)"
    drawn = tab.value(f"(m => [m.e, m.f])({ends})")
    scale = tab.value(
        "(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)(document.querySelector('#figure-loss svg'))"
    )
    last = tab.value(
        "[...document.querySelectorAll('#figure-loss .cross circle')].map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]).at(-1)"
    )
    assert last == pytest.approx([value / scale for value in drawn], abs=1.0)  # the cross is where Vega drew the point
    assert circle[0] == pytest.approx(last[0])


def test_hostile_texts_stay_texts(page: Path, tab: Browser) -> None:
    tab.open(page)
    assert tab.value("document.title") == "report0/run" or not tab.value("document.title").startswith("owned")
    assert tab.value("document.querySelectorAll('#owned, .text script, .text img, main h1').length") == 1  # the page's own h1
    assert tab.value("document.querySelectorAll('script').length") == 1
    said = tab.value("document.body.textContent")
    for words in (
        "<script>document.title='owned'</script>",
        "invoice <U+202E>gnp.exe<U+202C> end",
        "nul <U+0000> bell <U+0007>",
    ):
        assert words in said, words
    assert "{{ 7*7 }} ${7*7} <!-- --> &lt;b&gt; ]]>" in said
    assert "49" not in tab.value(
        "[...document.querySelectorAll('.text')].map(t => t.textContent).filter(t => t.includes('7*7')).join()"
    )
    hidden = "[...document.documentElement.outerHTML].filter(c => /[\\u202a-\\u202e\\u2066-\\u2069\\u0000-\\u0008\\u001b]/.test(c)).length"
    assert tab.value(hidden) == 0
    assert tab.problems == []


def test_a_line_of_a_megabyte_is_cut_and_the_page_stays_small(tmp_path: Path, tab: Browser) -> None:
    """Coloured text is as well. Of many tokens only so many get a colour: half a nat shows, and each token moved by 0.7."""
    target = _written(tmp_path, ["a " * 500_000, *["b " * 900] * 19])
    assert target.stat().st_size < 2_000_000
    tab.open(target)
    assert " ... [the beginning of 500,001 tokens]" in tab.value("document.querySelector('.pairs').textContent")
    assert "no token is coloured" in tab.value("document.body.textContent")
    assert tab.problems == []
