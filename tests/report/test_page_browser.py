"""The page in a real browser: headless Chromium, as a phone and on a desk, in light, in dark and on paper.

Set EDGESEG_SCREENSHOTS to a folder to keep what the page looked like.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="drives Chromium by its DevTools")
pytest.importorskip("matplotlib", reason="plots need matplotlib")

from edgeseg.report.history import history, write_history
from edgeseg.report.html import write_report
from tests.report.documents import bench, build, evaluation, put
from tests.runtime.test_serve_browser import CHROMIUM, DESK, PHONE, SMALL, Tab, browse
from tests.runtime.test_serve_browser import devtools as devtools  # a fixture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")

LONG = "a_very_long_name_of_a_network_that_somebody_chose-v2.1_final"


@pytest.fixture(scope="module")
def page(built: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page with a bundle, its pictures, and documents of everything else."""
    folder = tmp_path_factory.mktemp("page")
    documents: list[Any] = [bench(bundle=LONG), bench(level=12.0), build(name=LONG)]
    documents.append(evaluation(confusion=[[900, 20], [30, 50]]))
    paths = [put(folder, f"{at}.json", document) for at, document in enumerate(documents)]
    return write_report([built, *paths], folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def through_time(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("history")
    for at in range(20):
        level = (10.0 if at < 12 else 11.0) + 0.01 * (at * 7 % 5)
        put(folder, f"{at}.json", bench(f"2026-03-{at + 1:02d}T00:00:00Z", level, bundle=LONG))
    return write_history(history([folder]), folder / "history.html").as_uri()


OUTSIDE = """[...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length && !e.closest('.scroll')
  && !e.closest('svg') && !e.closest('pre') && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map((e) => e.outerHTML.slice(0, 99))"""

SMALLEST = """Math.min(...[...document.querySelectorAll('svg text')].filter((t) =>
  t.getClientRects().length).map((t) => { const svg = t.ownerSVGElement; return parseFloat(getComputedStyle(t).fontSize)
  * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; }))"""

# WCAG 2.2, 1.4.3: at least 4.5 to 1 between each text and the ground it stands on.
FAINT = """(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), front = rgb(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(front), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${e.textContent.slice(0, 40)}: ${(a + 0.05) / (b + 0.05)}`);
  } return bad; })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SMALL, PHONE, DESK], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("which", ["report", "history"])
def test_the_page_fits_and_can_be_read(
    devtools: str, page: str, through_time: str, which: str, size: tuple[int, int], scheme: str
) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(page if which == "report" else through_time, size, scheme)
        assert await tab.value("document.documentElement.scrollWidth") <= size[0]
        assert await tab.value(OUTSIDE) == []
        shown = "[...document.querySelectorAll('figure.plot %s')].filter((e) => e.getClientRects().length).length"
        wide, narrow = await tab.value(shown % ".wide"), await tab.value(shown % ".narrow")
        assert (wide == 0) == (size[0] < 600)
        assert (narrow == 0) == (size[0] >= 600)
        assert wide + narrow > 0
        assert await tab.value(SMALLEST) >= 9
        assert await tab.value(FAINT) == []
        assert await tab.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        asked = await tab.value("performance.getEntriesByType('resource').map((r) => r.name.slice(0, 30))")
        assert [name for name in asked if not name.startswith("data:")] == []
        dark = await tab.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        await tab.shoot(f"{which}-{size[0]}-{scheme}")
        assert tab.complaints == []

    browse(devtools, look)


def test_the_checkers_can_fail(devtools: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><body style='background:#fff'><p style='width:3000px;color:#eee'>faint and wide</p>"
        "<svg viewBox='0 0 1000 10' width='100'><text font-size='10' y='9'>tiny</text></svg>",
        encoding="utf-8",
    )

    async def look(tab: Tab) -> None:
        await tab.open(bad.as_uri(), PHONE, "light")
        assert len(await tab.value(OUTSIDE)) >= 1
        assert len(await tab.value(FAINT)) == 1
        assert await tab.value(SMALLEST) < 5

    browse(devtools, look)


def test_on_paper(devtools: str, page: str) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(page, DESK, "dark")
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        await tab.call("Emulation.setEmulatedMedia", media="print", features=dark)
        # Paper is white whatever the screen is, and wide enough for the wide plots.
        ground = "getComputedStyle(document.documentElement).getPropertyValue('--ground').trim()"
        assert await tab.value(ground) == "#fff"
        assert await tab.value("document.querySelector('.wide').getClientRects().length") == 1
        assert await tab.value("document.querySelector('.narrow').getClientRects().length") == 0
        assert await tab.value("getComputedStyle(document.querySelector('pre')).whiteSpace") == "pre-wrap"
        found = await tab.call("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        data = base64.b64decode(found["data"])
        assert data.startswith(b"%PDF")
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20

    browse(devtools, look)


def test_a_pointer_over_a_dot_reads_its_numbers(devtools: str, page: str) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(page, DESK, "light")
        # Nothing runs in the page and nothing is fetched for it, even if markup got in.
        await tab.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
        assert await tab.value("new Promise((r) => setTimeout(() => r(window.ran === undefined), 200))")
        titles = await tab.value("[...document.querySelectorAll('.wide .said > title')].map((t) => t.textContent)")
        assert any(re.fullmatch(r".*: \d+\.\d\d ms, \d+\.\d\d %.*", title) for title in titles)
        assert any("the largest of 80" in title for title in titles)

    browse(devtools, look)
