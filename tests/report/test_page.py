"""The report page, driven in a browser as a reader would."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semiseg.errors import UserError
from semiseg.report.page import inert_json, write_page

SECTIONS = ("fractions", "differences", "ranks", "distributions", "cost", "curves", "initialisations")
READY = "() => document.querySelector('#filters') && document.querySelector('#contents li, #empty:not([hidden])')"
TIMER = """
const watch = new MutationObserver(() => {
  const button = document.querySelector('#scores th[data-key="mean"] button');
  if (!button || !document.querySelector('#scores tbody tr:last-child')) return;
  watch.disconnect();
  setTimeout(() => {  // after the script that built the table has returned, as a reader's click would
    const first = () => document.querySelector('#scores tbody').textContent;
    const before = first();
    document.querySelector('#scores th[data-key="mean"] button').click();
    if (first() !== before) window.interactive = performance.now();
  });
});
watch.observe(document, { childList: true, subtree: true });
"""

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """`open_page(comparison, hash="", **options)` opens the written page; errors and requests fail the test."""
    contexts, faults = [], []

    def open_(comparison: dict[str, Any], hash: str = "", script: str = "", **options: Any) -> Any:
        path = tmp_path / "report.html"
        write_page(comparison, path)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        if script:
            page.add_init_script(script)
        page.goto(path.as_uri() + (f"#{hash}" if hash else ""))
        page.wait_for_function(READY)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


def column(page: Any, key: str) -> list[str]:
    """The leading text of one leaderboard column, without the ± part."""
    place = page.evaluate(
        "key => [...document.querySelectorAll('#scores thead th')].findIndex(th => th.dataset.key === key)", key
    )
    cells = page.locator(f"#scores tbody tr > :nth-child({place + 1})").all_inner_texts()
    return [re.split(r"\s*±", text)[0].strip() for text in cells]


def numbers(page: Any, key: str = "mean") -> list[float]:
    return [float(text.replace("−", "-")) for text in column(page, key) if text != "–"]


def scroll_through(page: Any) -> None:
    """Bring every chart into view and wait until it is drawn."""
    page.evaluate(
        """async () => {
            for (const chart of document.querySelectorAll('section:not([hidden]) .chart'))
                while (!chart.querySelector('.main-svg')) {
                    chart.scrollIntoView({ behavior: 'instant', block: 'center' });
                    await new Promise((done) => setTimeout(done, 20));
                }
        }"""
    )


def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SEMISEG_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_sorts_by_numbers_with_mouse_and_keyboard(comparison: Callable, open_page: Open) -> None:
    made = comparison(methods=4)
    made["cells"][0]["minutes"], made["cells"][1]["minutes"] = 9.0, 10.0  # "10.0" < "9.0" as text
    page = open_page(made)
    score = page.locator("#scores th[data-key='mean']")
    score.locator("button").click()
    assert score.get_attribute("aria-sort") == "descending"
    falling = numbers(page)
    assert falling == sorted(falling, reverse=True)
    assert len(falling) == 21
    page.keyboard.press("Enter")  # the focus has stayed on the button
    assert score.get_attribute("aria-sort") == "ascending"
    assert numbers(page) == falling[::-1]
    page.locator("#scores th[data-key='minutes'] button").focus()
    page.keyboard.press("Enter")
    assert score.get_attribute("aria-sort") is None
    minutes = numbers(page, "minutes")
    assert minutes == sorted(minutes)
    assert column(page, "minutes")[len(minutes) :] == ["–"] * 9  # controls have no time and stay at the end


def test_smaller_distances_rank_first(comparison: Callable, open_page: Open) -> None:
    page = open_page(comparison(methods=4), hash="metric=hd95&labeled=5+%25")
    distances = numbers(page)[:4]
    assert distances == sorted(distances)
    assert column(page, "rank") == ["1", "2", "3", "4", "–", "–", "–"]
    assert page.locator("#scores tr.best").count() == 1
    page.locator("#scores th[data-key='mean'] button").click()
    assert page.locator("#scores th[data-key='mean']").get_attribute("aria-sort") == "ascending"


def test_shows_scores_with_interval_and_published_value(comparison: Callable, open_page: Open) -> None:
    made = comparison(methods=2, fractions=(0.05,))
    cell = made["cells"][1]
    cell["mean"]["dice_pooled"], cell["ci90"]["dice_pooled"], cell["failed"] = 0.7213, 0.0104, 2
    cell["published"] = [{"source": "A paper, Table 2", "metric": "dice_pooled", "mean": 0.762, "ci90": 0.011}]
    made["cells"][0]["ci90"]["dice_pooled"] = None  # one run
    page = open_page(made, hash="metric=dice_pooled")
    row = page.locator("#scores tr", has_text="UA-MT").inner_text()
    for text in ("72.1", "± 1.0", "76.2", "± 1.1", "−4.1", "4 (2 failed)"):
        assert text in row
    assert "A paper, Table 2" in page.locator("#sources").inner_text()
    assert "±" not in page.locator("#scores tr", has_text="Supervised").inner_text()
    assert "74.0" in page.locator("#scores tr.muted", has_text="VAE").inner_text()


def test_filters_change_rows_and_charts_and_live_in_the_address(comparison: Callable, open_page: Open) -> None:
    page = open_page(comparison(datasets=("glas", "hmeps"), methods=3))
    assert page.locator("#scores tbody tr").count() == 36
    assert page.locator("#fractions figure").count() == 2
    page.select_option("#dataset", "hmeps")
    assert page.locator("#scores tbody tr").count() == 18
    assert page.locator("#fractions figcaption strong").all_inner_texts() == ["hmeps"]
    page.select_option("#labeled", "20 %")
    assert page.locator("#scores tbody tr").count() == 6
    assert page.locator("#differences figcaption strong").all_inner_texts() == ["hmeps · 20 %, against Supervised"]
    dice = numbers(page)
    page.select_option("#metric", "jaccard")
    assert numbers(page) != dice
    page.locator("#fractions .chart").scroll_into_view_if_needed()
    page.wait_for_selector("#fractions .main-svg")
    assert "Jaccard (%)" in page.locator("#fractions .chart").inner_text()
    page.reload()
    page.wait_for_function(READY)
    assert [page.locator(f"#{key}").input_value() for key in ("dataset", "labeled", "metric")] == [
        *("hmeps", "20 %", "jaccard")
    ]
    assert page.locator("#scores tbody tr").count() == 6
    page.fill("#search", "ua-")
    assert column(page, "name") == ["UA-MT"]


def test_every_section_is_drawn_and_has_its_numbers(comparison: Callable, open_page: Open) -> None:
    page = open_page(comparison(methods=4, fractions=(0.05, 1.0)))
    assert page.evaluate("typeof window.Plotly") == "undefined"  # nothing is built before it is seen
    scroll_through(page)
    for section in SECTIONS:
        assert page.locator(f"#{section} .chart .main-svg").count() > 0, section
        assert page.locator(f"#{section} .chart").first.get_attribute("aria-label"), section
        page.locator(f"#{section} summary").first.click()
        page.wait_for_selector(f"#{section} details table tbody tr")
    pictures = page.locator("#panels img")
    assert pictures.count() == 8
    assert pictures.first.get_attribute("loading") == "lazy"
    assert "glas" in pictures.first.get_attribute("alt")
    assert "asked for 2 GB" in page.locator("#failures").inner_text()
    assert page.locator("#contents a").count() == 10


def test_legend_hides_a_method_in_the_charts(comparison: Callable, open_page: Open) -> None:
    page = open_page(comparison(methods=3, fractions=(0.05,)))
    scroll_through(page)
    drawn = "() => document.querySelector('#distributions .chart').data.length"
    assert page.evaluate(drawn) == 3
    page.locator("#cost .legend button[data-method='uamt']").click()
    scroll_through(page)
    assert page.evaluate(drawn) == 2
    assert page.locator("#curves .legend button[data-method='uamt']").get_attribute("aria-pressed") == "false"


def test_protocols_never_mix(comparison: Callable, open_page: Open) -> None:
    page = open_page(comparison(methods=2, fractions=(0.05, 1.0), protocols=("A", "B")))
    text = page.locator("#protocol-note").inner_text()
    assert "budget" in text
    assert "split" not in text
    assert page.locator("#protocol-box tr.differs").count() == 1
    shown = """() => Object.fromEntries([...document.querySelectorAll('section:not([hidden]) .chart')].map(c =>
        [c.closest('section').id, c.data.filter(t => t.name).flatMap(t => [...(t.orientation ? t.x : t.y)])]))"""
    scores, charts = {}, {}
    for protocol in ("A", "B"):
        page.select_option("#protocol", protocol)
        assert page.locator("#scores tbody tr").count() == 10  # five methods and controls at two label shares
        scroll_through(page)
        scores[protocol], charts[protocol] = numbers(page), page.evaluate(shown)
    assert min(scores["A"][:2]) > max(scores["B"][:2])
    for section in ("fractions", "distributions"):
        a, b = charts["A"][section], charts["B"][section]
        assert len(a) == len(b)
        assert not set(a) & set(b), section


def test_published_results_appear_on_demand(comparison: Callable, open_page: Open) -> None:
    page = open_page(comparison(methods=2), hash="metric=dice_pooled")
    traces = "() => document.querySelector('#fractions .chart').data.filter(t => /open/.test(t.marker?.symbol)).length"
    scroll_through(page)
    assert page.evaluate(traces) == 0
    page.check("#published")
    scroll_through(page)
    assert page.evaluate(traces) == 4  # UA-MT at three shares, and VAE, which we did not run


def test_names_are_text(comparison: Callable, open_page: Open) -> None:
    script, image, comment = "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "<!--<script>"
    made = comparison(methods=3, fractions=(0.05,))
    made["title"] = made["cells"][0]["name"] = script
    made["cells"][2]["name"] = "<b>bold</b>"  # a tag that Plotly would obey
    made["cells"][1]["name"] = made["failures"][0]["run"] = image
    made["failures"][0]["error"] = comment
    for section in ("cells", "differences", "distributions", "panels", "initialisations"):
        made[section][0]["dataset"] = f"<a href='https://example.org'>{comment}</a>"
    page = open_page(made)
    scroll_through(page)
    assert page.locator("h1").inner_text() == script
    assert all(name in page.locator("#scores").inner_text() for name in (script, image))
    assert all(name in page.locator("#failures").inner_text() for name in (image, comment))
    assert page.locator("#distributions .chart text", has_text="<b>bold</b>").count() == 1
    assert page.locator("main img[src=x], main script, main a, .chart a").count() == 0


def test_missing_numbers_and_counts(comparison: Callable, open_page: Open) -> None:
    made = comparison(methods=3, runs=1, fractions=(0.05, 0.2)) | {"published_only": []}
    for cell in made["cells"]:
        cell["labeled"], cell["fraction"] = f"{round(100 * cell['fraction'])} patients", None
        cell["mean"]["dice"], cell["values"]["dice"] = None, [None]
    for curve in made["curves"]:
        curve["low"] = curve["high"] = [None] * len(curve["step"])
    for row in made["differences"]:
        row |= {"p": None, "p_holm": None, "low": None, "high": None, "per_run_sd": None}
    page = open_page(made)
    scroll_through(page)
    assert page.locator("#scores th[data-key='rank'], #scores th[data-key='mean']").count() == 0
    assert page.locator("#labeled option").all_inner_texts()[1:] == ["5 patients", "20 patients"]
    page.select_option("#metric", "jaccard")
    scroll_through(page)
    assert "± " not in page.locator("#scores").inner_text()


def test_nothing_to_compare(nothing: Callable, open_page: Open) -> None:
    page = open_page(nothing())
    assert "no runs" in page.locator("#empty").inner_text()
    assert page.locator("main > section:not([hidden])").count() == 0
    page = open_page(nothing() | {"metrics": []})
    assert page.locator("#empty").is_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375)])
def test_looks(scheme: str, width: int, comparison: Callable, open_page: Open, tmp_path: Path) -> None:
    page = open_page(comparison(fractions=(0.05, 1.0)), color_scheme=scheme, viewport={"width": width, "height": 900})
    scroll_through(page)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=screenshots(tmp_path) / f"report-{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = """() => [...document.querySelectorAll('.chart')].flatMap(c =>
        [...c.querySelectorAll('text')].filter(t => {
        const [box, all] = [t.getBoundingClientRect(), c.getBoundingClientRect()];
        return box.width && (box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1);
    }).map(t => c.closest('section').id + ': ' + t.textContent))"""
    assert page.evaluate(clipped) == []
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    page.locator("#theme").click()
    assert (page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != "rgb(255, 255, 255)") != dark
    page.reload()
    page.wait_for_function(READY)
    assert page.locator("html").get_attribute("data-theme") == ("light" if dark else "dark")


def test_3600_runs_are_small_and_fast(comparison: Callable, open_page: Open, tmp_path: Path) -> None:
    made = comparison(
        datasets=("glas", "pannuke", "hmeps", "bbbc004", "cvc", "atrium"),
        fractions=(0.01, 0.02, 0.05, 0.1, 0.2),
        methods=15,
        runs=8,
        cases=60,
    )
    made["panels"] = made["panels"][:30]
    assert sum(c["runs"] for c in made["cells"] if not c["control"]) == 3600
    seconds = []
    for _ in range(2):
        page = open_page(made, script=TIMER)
        page.wait_for_function("window.interactive")
        seconds.append(page.evaluate("window.interactive") / 1000)
    assert page.locator("#differences figure").count() == 6
    page.locator("#differences .more").click()
    assert page.locator("#differences figure").count() == 30
    size = (tmp_path / "report.html").stat().st_size / 1e6
    print(f"{size:.2f} MB, interactive after {min(seconds):.2f} s of {seconds}")
    assert size < 10
    assert min(seconds) < 2


def test_json_is_inert_and_strict() -> None:
    assert "<" not in inert_json(["</script>", "<!--"])
    with pytest.raises(ValueError, match="Out of range"):
        inert_json([float("nan")])


def test_unwritable_folder_is_said(nothing: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_page(nothing(), tmp_path / "file" / "report.html")
