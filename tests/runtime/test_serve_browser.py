"""The live page in a real browser: headless Chromium, driven by the DevTools protocol, as a phone and on a desk.

Set EDGESEG_SCREENSHOTS to a folder to keep what the page looked like.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from edgeseg.data.street import PALETTE, render
from edgeseg.runtime.serve import Page
from edgeseg.types import Mask
from tests.runtime.test_serve import PATIENCE, TOKEN, Deliver, Drawn, port, scripted, source

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")

SMALL, PHONE, DESK = (360, 740), (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Chromium; the address of its DevTools."""
    folder = tmp_path_factory.mktemp("chromium")
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu", "extensions", "dev-shm-usage")
    process = subprocess.Popen(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0"),
            *(f"--disable-{what}" for what in quiet),
            *(f"--user-data-dir={folder}", "about:blank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        told, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (told.is_file() and told.read_text().strip()):
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip("Chromium does not start here")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Tab:
    """One tab: evaluates JavaScript in it and keeps what its console and its loads complained of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), PATIENCE)
            if message.get("id") == self._number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))

    async def value(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        end = time.monotonic() + PATIENCE
        while not await self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            await asyncio.sleep(0.05)

    async def open(self, url: str, size: tuple[int, int] = PHONE, scheme: str = "light") -> None:
        for domain in ("Runtime", "Log", "Page"):
            await self.call(f"{domain}.enable")
        width, height = size
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && document.getElementById('link')?.textContent !== ''")

    async def shoot(self, name: str, *, whole: bool = True) -> None:
        if folder := os.environ.get("EDGESEG_SCREENSHOTS"):
            found = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


def browse(devtools: str, work: Callable[[Tab], Coroutine[Any, Any, None]]) -> None:
    """Run `work` with a new tab."""

    async def go() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{devtools}/json/new?about:blank") as answer:
                target = await answer.json()
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                await work(Tab(socket))
            await session.get(f"{devtools}/json/close/{target['id']}")

    asyncio.run(go())


def overlay(index: int, seed: int = 5) -> Drawn:
    """A rendered scene under its true mask."""
    pixels, mask = render((360, 480), seed=seed, index=index)
    return Drawn(blended(pixels, mask))


def blended(pixels: Any, mask: Mask) -> Any:
    colours = np.array(PALETTE, np.uint8)[mask][..., ::-1]
    return (pixels // 2 + colours // 2).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes() -> list[Drawn]:
    return [overlay(index) for index in (0, 8)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SMALL, DESK], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_page_shows_the_state_and_fits(
    devtools: str, scenes: list[Drawn], size: tuple[int, int], scheme: str
) -> None:
    state = scripted(warnings=["The camera shows far more sky than the calibration set did (31 % against 4 %)."])

    async def look(tab: Tab) -> None:
        await tab.open(page.url, size, scheme)
        await tab.until("document.getElementById('live').naturalWidth > 0 && !document.getElementById('live').hidden")
        await tab.until("document.getElementById('link').textContent === 'Live'")
        shown = "document.getElementById('count-%s').dataset.value"
        for key, wanted in (("processed", 18240), ("dropped", 131), ("failed", 1), ("missed", 12), ("fps", 29.8)):
            assert float(await tab.value(shown % key)) == wanted
        text = (await tab.value("document.body.innerText")).replace("\xa0", " ").replace("\u202f", " ")
        for words in ("18,240", "18,372 captured", "31.2 ms", "29.8", "61.2 %", "65.4 °C", "far more sky", "camera:0"):
            assert words in text
        assert await tab.value("document.querySelectorAll('#classes li').length") == len(state["classes"])
        swatch = "getComputedStyle(document.querySelector('#classes li:nth-child(3) .swatch')).backgroundColor"
        assert await tab.value(swatch) == f"rgb{PALETTE[2]}"
        assert await tab.value("parseFloat(document.querySelector('#classes li:nth-child(3) .fill').style.width)") > 30
        # The plot has a point for every row of the history, in each line.
        paths = (
            "[...document.querySelectorAll('#age .series')].map((line) => line.getAttribute('d').match(/[ML]/g).length)"
        )
        assert await tab.value(paths) == [60, 60, 60]
        assert "p99" in await tab.value("document.querySelector('#age svg').getAttribute('aria-label')")
        assert await tab.value("document.documentElement.scrollWidth") <= size[0]
        inside = (
            "[...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length && !e.closest('svg') && "
            "e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 99))"
        )
        assert await tab.value(inside) == []
        await tab.shoot(f"{size[0]}-{scheme}")
        assert tab.complaints == []

    with Page("0", lambda: state, streams=["camera:0"]) as page, Deliver(page, lambda: scenes[0]):
        browse(devtools, look)


def test_contrast_is_enough_in_both_schemes(devtools: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1 between each text and the ground it stands on."""
    script = """(() => {
      const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
      const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
      const bad = [];
      for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!own || !e.getClientRects().length || e.id === 'blank') continue;
        const style = getComputedStyle(e), front = rgb(e.closest('svg') ? style.fill : style.color);
        const [a, b] = [light(front), light(ground(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) bad.push(`${e.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
      }
      return bad;
    })()"""

    async def look(tab: Tab) -> None:
        for scheme in ("light", "dark"):
            await tab.open(page.url, PHONE, scheme)
            await tab.until("document.getElementById('link').textContent === 'Live'")
            assert await tab.value(script) == []
        await tab.value("document.querySelector('h1').style.color = 'rgb(90 90 90)'")
        assert len(await tab.value(script)) == 1  # the check itself can fail

    state = scripted(warnings=["It is hot."], machine={"temperature_c": 99.0, "throttled": True})
    with Page("0", lambda: state, streams=["camera:0"]) as page:
        browse(devtools, look)


def test_the_token_leaves_the_address_and_the_page_works(devtools: str, scenes: list[Drawn]) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(f"http://127.0.0.1:{port(page)}/?token={TOKEN}")
        await tab.until("document.getElementById('live')?.naturalWidth > 0")
        assert await tab.value("location.search + location.hash") == ""
        assert await tab.value("document.cookie") == ""  # HttpOnly
        assert (
            await tab.value("history.length") <= 2
        )  # about:blank and the page: the address with the token is replaced
        assert tab.complaints == []

    async def refused(tab: Tab) -> None:
        await tab.call("Network.clearBrowserCookies")
        await tab.call("Page.navigate", url=f"http://127.0.0.1:{port(page)}/?token=wrong-{TOKEN}")
        await tab.until("document.body?.innerText.includes('wants a token')")
        await tab.shoot("refused")

    with Page("0.0.0.0:0", scripted, streams=["camera:0"], token=TOKEN) as page, Deliver(page, lambda: scenes[0]):
        browse(devtools, look)
        browse(devtools, refused)


def test_several_streams_are_tabs_and_only_the_chosen_one_is_drawn(devtools: str, scenes: list[Drawn]) -> None:
    rows = [
        source(0, "rtsp://gate.example/stream/with/a/rather/long/name/of/its/own"),
        source(1, "camera:1", state="reopening", fps=0.0, outages=7),
        source(2, "street:480x360@30"),
    ]

    def watched() -> list[int]:
        return [picture.watchers for picture in page._pictures]

    async def look(tab: Tab) -> None:
        await tab.open(page.url)
        await tab.until("document.querySelectorAll('[role=tab]').length === 3")
        await tab.until("document.getElementById('live').naturalWidth > 0")
        assert watched() == [1, 0, 0]
        await tab.value("document.querySelectorAll('[role=tab]')[2].click()")
        while watched() != [0, 0, 1]:  # the browser lets the first go
            await asyncio.sleep(0.02)
        assert await tab.value("document.querySelectorAll('[role=tab]')[2].getAttribute('aria-selected')") == "true"
        assert await tab.value("location.hash") == "#2"
        await tab.value("document.querySelectorAll('[role=tab]')[2].focus()")
        for kind in ("keyDown", "keyUp"):
            await tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft")
        await tab.until("document.getElementById('source').innerText.includes('reopening')")
        assert "7 outages" in await tab.value("document.getElementById('source').innerText")
        assert await tab.value("document.documentElement.scrollWidth") <= PHONE[0]
        await tab.until("document.getElementById('blank').innerText.includes('opened again')")
        await tab.shoot("streams", whole=False)
        await tab.value("document.querySelectorAll('[role=tab]')[0].click()")
        await tab.value("document.getElementById('pause').click()")
        while watched() != [0, 0, 0]:  # paused: one picture, then nobody watches
            await asyncio.sleep(0.02)
        assert tab.complaints == []

    with (
        Page("0", lambda: scripted(sources=rows), streams=[row["name"] for row in rows]) as page,
        Deliver(page, lambda: scenes[0], streams=1),
    ):
        threading.Thread(target=_feed, args=(page, scenes[1], deliver_stop := threading.Event()), daemon=True).start()
        try:
            asyncio.run(asyncio.wait_for(asyncio.to_thread(browse, devtools, look), 60))
        finally:
            deliver_stop.set()


def _feed(page: Page, view: Drawn, stop: threading.Event) -> None:
    from tests.runtime.test_serve import shot

    while not stop.wait(0.03):
        page.put(shot(2), view)


def test_the_plot_is_read_by_keyboard(devtools: str) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(page.url)
        await tab.until("document.querySelectorAll('#age .series').length === 3")
        await tab.value("document.querySelector('#age svg').focus()")
        for _ in range(2):
            await tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
        row = history[-3]
        text = await tab.value("document.querySelector('#age output').textContent")
        assert text == f"−2 s: p50 {row['age_p50']:.1f} ms, p99 {row['age_p99']:.1f} ms, max {row['age_max']:.1f} ms"

    state = scripted()
    history = state["history"]
    with Page("0", lambda: state, streams=["camera:0"]) as page:
        browse(devtools, look)


def test_a_lost_connection_is_said_and_taken_up_again(devtools: str, scenes: list[Drawn]) -> None:
    pages: list[Page] = []

    async def look(tab: Tab) -> None:
        await tab.open(pages[0].url)
        await tab.until("document.getElementById('live').naturalWidth > 0")
        where = port(pages[0])
        pages[0].close()
        await tab.until("!document.getElementById('lost').hidden")
        assert await tab.value("document.getElementById('link').textContent") == "Reconnecting"
        assert "connection is lost" in (await tab.value("document.getElementById('lost').textContent")).lower()
        await tab.until("document.getElementById('blank').innerText === 'Connection lost'")
        await tab.shoot("lost", whole=False)
        with Page(str(where), lambda: scripted(frames={"processed": 5}), streams=["camera:0"]) as again:
            await tab.until("document.getElementById('count-processed').dataset.value === '5'")
            assert await tab.value("document.getElementById('lost').hidden")
            while not again._pictures[0].watchers:  # the picture is asked for again, too
                await asyncio.sleep(0.02)

    with Page("0", scripted, streams=["camera:0"]) as first, Deliver(first, lambda: scenes[0]):
        pages.append(first)
        browse(devtools, look)


def test_the_end_is_said(devtools: str) -> None:
    ended = False

    async def look(tab: Tab) -> None:
        nonlocal ended
        await tab.open(page.url)
        await tab.until("document.getElementById('link').textContent === 'Live'")
        ended = True
        await tab.until("document.getElementById('link').textContent === 'Ended'")
        page.close()
        await asyncio.sleep(0.3)
        assert await tab.value("document.getElementById('lost').hidden")  # an end is no failure
        assert "has ended" in await tab.value("document.body.innerText")

    with Page("0", lambda: scripted(ended=ended), streams=["camera:0"]) as page:
        browse(devtools, look)


@pytest.mark.parametrize(
    "state",
    [
        {},
        scripted(history=[], stages_ms={}, shares={}, calibration_shares=None, quality={}, machine={}, deadline={}),
        dict.fromkeys(scripted()),
        scripted(history=[{"t": 0.0, "age_p50": None, "age_p99": None, "age_max": 3.0, "fps": 0.0}], fps=None),
        scripted(classes=[f"<b>class {k}</b>" for k in range(150)], palette=[], shares={"<b>class 7</b>": 1.0}),
    ],
    ids=["empty", "bare", "null", "first", "many"],
)
def test_the_page_does_without_parts_of_the_state(devtools: str, state: dict[str, Any]) -> None:
    async def look(tab: Tab) -> None:
        await tab.open(page.url)
        await tab.until("document.getElementById('link').textContent === 'Live'")
        await tab.until("document.querySelectorAll('#counters div').length === 6")
        text = await tab.value("document.body.innerText")
        assert "NaN" not in text
        assert "undefined" not in text
        assert "Infinity" not in text
        assert await tab.value("document.querySelectorAll('main b b, .label b').length") == 0  # names are text
        assert await tab.value("document.documentElement.scrollWidth") <= PHONE[0]
        await tab.shoot(f"state-{len(state)}-{len(state.get('classes') or [])}")
        assert tab.complaints == []

    with Page("0", lambda: state, streams=["camera:0"]) as page:
        browse(devtools, look)
