"""The live page over real sockets: who may see it, what comes back, and that nobody who watches can hold the stream."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeseg.data.street import CLASSES, PALETTE, render
from edgeseg.errors import BadInput, MissingOnMachine
from edgeseg.runtime.serve import Page
from edgeseg.runtime.serve.access import Access, access, listen, url_of
from edgeseg.runtime.serve.metrics import exposition
from edgeseg.runtime.serve.picture import Picture
from edgeseg.runtime.serve.routes import STREAMS, plain
from edgeseg.runtime.values import Shot
from edgeseg.types import Mask, Pixels

PATIENCE = 20.0  # seconds: for a machine that is busy with other things


def scripted(**other: Any) -> dict[str, Any]:
    """A state as the stream gives it, ten minutes into a drive."""
    times = {"p50": 31.2, "p90": 34.8, "p99": 44.9, "max": 61.7}

    def stage(factor: float) -> dict[str, float]:
        return {key: value * factor for key, value in times.items()}

    history = [
        {
            "t": 540.0 + k,
            "age_p50": 31.0 + 2 * math.sin(k / 5),
            "age_p99": 43.0 + 5 * math.sin(k / 3) + (12 if 30 < k < 36 else 0),
            "age_max": 52.0 + 9 * abs(math.sin(k * 1.7)) + (20 if 30 < k < 36 else 0),
            "fps": 29.8 - (4 if 30 < k < 36 else 0) + 0.1 * (k % 3),
            "temperature_c": 58.0 + k / 8,
            "clock_mhz": 1300.0 if k < 40 else 1180.0,
        }
        for k in range(60)
    ]
    raw = [0.12, 0.14, 0.31, 0.02, 0.08, 0.11, 0.012, 0.004, 0.17, 0.034]
    return {
        "schema": "edgeseg.stream.live/1",
        "name": "street",
        "variant": "openvino",
        "precision": "int8",
        "classes": list(CLASSES),
        "palette": [list(colour) for colour in PALETTE],
        "seconds": 612.4,
        "policy": "latest",
        "ended": False,
        "frames": {"captured": 18372, "processed": 18240, "dropped": 131, "failed": 1},
        "fps": 29.8,
        "camera_fps": 30.0,
        "deadline": {"ms": 66.7, "missed": 12, "of": 18240},
        "stages_ms": {
            "capture": stage(0.09),
            "prepare": stage(0.03),
            "infer": stage(0.62),
            "deliver": stage(0.11),
            "age": times,
        },
        "history": history,
        "shares": dict(zip(CLASSES, raw, strict=True)),
        "calibration_shares": dict(zip(CLASSES, reversed(raw), strict=True)),
        "quality": {"miou": 0.612, "streaming_miou": 0.587, "agreement": 0.982, "flicker": 0.013, "confidence": None},
        "warnings": [],
        "machine": {"cpu_percent": 63.0, "rss_mb": 412.5, "temperature_c": 65.4, "gpu_clock_mhz": 1180.0},
        "sources": [source(0, "camera:0")],
        **other,
    }


def source(stream: int, name: str, **other: Any) -> dict[str, Any]:
    counts = {"captured": 18372, "processed": 18240, "dropped": 131, "failed": 1}
    return {"stream": stream, "name": name, "state": "live", **counts, "fps": 29.8, "outages": 2, **other}


@dataclass
class Drawn:
    """A View of one picture, which counts how often it was asked for."""

    pixels: Pixels
    asked: int = 0

    def overlay(self) -> Pixels:
        self.asked += 1
        return self.pixels

    def coloured(self) -> Pixels:
        raise AssertionError("the page shows the overlay")

    def mask(self) -> Mask:
        raise AssertionError("the page shows the overlay")


def flat(value: int, size: tuple[int, int] = (120, 160)) -> Drawn:
    return Drawn(np.full((*size, 3), value, np.uint8))


def shot(stream: int = 0) -> Shot:
    return Shot(stream, np.empty((1, 0, 0, 3), np.uint8), np.empty((0, 0), np.uint8))


@dataclass
class Deliver:
    """Puts what `view` gives into the page, again and again, as the stream does."""

    page: Page
    view: Callable[[], Drawn]
    streams: int = 1
    puts: int = 0
    longest_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.01):
            for stream in range(self.streams):
                view, began = self.view(), time.perf_counter()
                assert self.page.put(shot(stream), view)
                self.longest_s = max(self.longest_s, time.perf_counter() - began)
            self.puts += 1

    def __enter__(self) -> Deliver:
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESEG_TOKEN", raising=False)


@pytest.fixture
def page() -> Iterator[Page]:
    with Page("0", scripted, streams=["camera:0", "camera:1"], max_fps=200.0) as made:
        yield made


@pytest.fixture
def guarded() -> Iterator[Page]:
    """A page that wants a token, as on any other address than loopback."""
    with Page("0.0.0.0:0", scripted, streams=["camera:0"], token="correct horse".replace(" ", "-")) as made:
        yield made


TOKEN = "correct-horse"


def port(page: Page) -> int:
    found = urlsplit(page.url).port
    assert found is not None
    return found


def ask(page: Page, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own. Header names with _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port(page), timeout=PATIENCE)
    try:
        connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def until(what: Callable[[], object], why: str) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.005)


def parts(stream: Any) -> Iterator[bytes]:
    """The JPEGs of an MJPEG stream, read by its own headers."""
    while True:
        line = stream.readline().strip()
        assert line in (b"", b"--edgeseg"), line
        if line == b"--edgeseg":
            assert stream.readline().strip() == b"Content-Type: image/jpeg"
            length = int(stream.readline().split(b":")[1])
            assert stream.readline() == b"\r\n"
            yield stream.read(length)


def decoded(jpeg: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


# --- What is served


def test_the_page_and_all_that_it_loads_come_from_here(page: Page) -> None:
    status, headers, body = ask(page, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    text = body.decode()
    loaded = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(loaded) >= 3
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    script = ask(page, "/page.js")[2].decode()
    for path in {*loaded, *re.findall(r'from "./([^"]*)"', script)}:
        status, headers, _ = ask(page, f"/{path}")
        assert status == 200, path
        assert headers["Content-Type"].startswith(kinds[Path(path).suffix]), path
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|\son\w+=", text)  # what the policy forbids
    assert "://" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text + script)


def test_every_answer_carries_the_headers(page: Page) -> None:
    for path, wanted in (("/", 200), ("/state.json", 200), ("/metrics", 200), ("/nothing", 404), ("/frame/9.jpg", 404)):
        status, headers, _ = ask(page, path)
        assert status == wanted
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "aiohttp" not in headers["Server"]


def test_only_get_and_head(page: Page) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = ask(page, "/state.json", method)
        assert status == 405
        assert {word.strip() for word in headers["Allow"].split(",")} == {"GET", "HEAD"}
    for path in ("/", "/state.json", "/metrics", "/stream/0.mjpg", "/events", "/healthz"):
        assert ask(page, path, "HEAD")[0::2] == (200, b"")  # and it ends, also where GET does not


def test_the_state_is_json_whatever_is_in_it() -> None:
    odd = {
        "fps": np.float32(2.5),
        "camera_fps": math.nan,
        "shares": {"a": np.inf},
        "palette": np.eye(2, dtype=np.uint8),
    }
    with Page("0", lambda: odd, streams=["one"]) as page:
        status, headers, body = ask(page, "/state.json")
        assert status == 200
        assert headers["Content-Type"].startswith("application/json")
        found = json.loads(body)
    assert found["fps"] == 2.5
    assert found["camera_fps"] is None
    assert found["shares"] == {"a": None}
    assert found["palette"] == [[1, 0], [0, 1]]
    assert found["sources"] == [{"stream": 0, "name": "one"}]  # where the state does not tell
    assert plain({1: (np.bool_(True), Path("x"))}) == {"1": [True, "x"]}


def test_events_bring_the_state_as_it_changes() -> None:
    calls = 0

    def state() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return scripted(seconds=calls, name="line\nbreak")

    with Page("0", state, streams=["one"]) as page:
        connection = http.client.HTTPConnection("127.0.0.1", port(page), timeout=PATIENCE)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        heard: list[dict[str, Any]] = []
        while len(heard) < 3:
            line = answer.readline()
            if line.strip():
                assert line.startswith(b"data: ")
                heard.append(json.loads(line[6:]))
        assert [event["seconds"] for event in heard] == [1, 2, 3]
        assert heard[0]["name"] == "line\nbreak"
        connection.close()


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("aiohttp.web", "prometheus_client"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingOnMachine, match=r"--serve needs .*pip install 'edgeseg\[serve\]'"):
                Page("0", scripted, streams=["one"])


def test_nothing_of_it_is_imported_before_a_page_is_made() -> None:
    code = (
        "import sys, edgeseg.runtime.serve; print(sorted({'aiohttp', 'prometheus_client', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Who may see it


@pytest.mark.parametrize(
    ("text", "host"), [("0", "127.0.0.1"), (":0", "127.0.0.1"), ("localhost:0", "127.0.0.1"), ("0.0.0.0:0", "0.0.0.0")]
)
def test_addresses(text: str, host: str) -> None:
    with listen(text) as listening:
        assert listening.getsockname()[0] == host
        rules = access(listening, None)
        assert (rules.token is None) == (host == "127.0.0.1")
        url = url_of(listening, rules)
        assert ("?token=" in url) == (rules.token is not None)
        assert "0.0.0.0" not in url


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_addresses() -> None:
    try:
        local = listen("[::1]:0")
    except BadInput as error:
        pytest.skip(str(error))
    with local:
        assert access(local, None).token is None
        assert url_of(local, access(local, None)).startswith("http://[::1]:")
    with listen("[::]:0") as everywhere:
        assert access(everywhere, None).token is not None
        socket.create_connection(("::1", everywhere.getsockname()[1]), PATIENCE).close()
        if socket.has_dualstack_ipv6():
            socket.create_connection(("127.0.0.1", everywhere.getsockname()[1]), PATIENCE).close()


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3.4", "::1:80", "host:99999", "[::1", "a b:1", "host:٣", ":-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="HOST:PORT"):
        listen(text)


def test_a_port_in_use_and_an_address_elsewhere_are_refused_with_words(page: Page) -> None:
    before = threading.active_count()
    with pytest.raises(BadInput, match=f"port {port(page)} is in use. Choose another"):
        Page(str(port(page)), scripted, streams=["one"])
    with pytest.raises(BadInput, match="does not have that address"):
        Page("192.0.2.7:0", scripted, streams=["one"])
    assert threading.active_count() == before


@pytest.mark.parametrize("token", ["short", "with a space in it", "ключ-и-пароль", "x" * 300, "line\nline line"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(BadInput, match="12 to 256 printable"):
        Page("0", scripted, streams=["one"], token=token)


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEG_TOKEN", "from-the-environment")
    with Page("0", scripted, streams=["one"]) as page:
        assert page.url.endswith("/?token=from-the-environment")
        assert "token" not in page.name
        assert ask(page, "/")[0] == 401


def test_without_the_token_nothing_is_told(guarded: Page) -> None:
    for path in ("/", "/page.js", "/state.json", "/metrics", "/events", "/stream/0.mjpg", "/frame/0.jpg", "/nothing"):
        for given in ("", "?token=wrong-horse-1", "?token=", "?token=%ff%00", "?token=korrekt-häst-é"):
            status, headers, body = ask(guarded, path + given.replace("ä", "%C3%A4").replace("é", "%C3%A9"))
            assert status == 401, path
            assert b"street" not in body
            assert "Bearer" in headers["WWW-Authenticate"]
    assert b"Open the address that edgeseg printed" in ask(guarded, "/")[2]
    for near in ("wrong-horse-1", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), f"{TOKEN[:-1]}é".encode().decode("latin-1")):
        assert ask(guarded, "/", Authorization=f"Bearer {near}")[0] == 401
    assert ask(guarded, "/", Authorization=f"Basic {TOKEN}")[0] == 401
    assert ask(guarded, "/", Cookie=f"edgeseg_{port(guarded)}={TOKEN}")[0] == 401  # the cookie does not hold it
    assert ask(guarded, "/healthz")[0] == 200


def test_the_token_becomes_a_cookie_and_leaves_the_address(guarded: Page) -> None:
    status, headers, body = ask(guarded, f"/?token={TOKEN}")
    assert status == 200
    assert b'http-equiv="refresh" content="0; url=./"' in body
    assert TOKEN.encode() not in body
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    status, _, body = ask(guarded, "/", Cookie=cookie.partition(";")[0])
    assert status == 200
    assert b'id="counters"' in body


def test_programs_bring_the_token_in_a_header_or_in_the_address(guarded: Page) -> None:
    assert ask(guarded, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guarded, "/metrics", Authorization=f"bearer {TOKEN}")[0] == 200
    assert ask(guarded, f"/state.json?token={TOKEN}")[0] == 200
    assert ask(guarded, "/state.json", Host="camera.example", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_on_loopback_only_our_own_names_are_answered(page: Page) -> None:
    for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{port(page)}", "[::1]:80"):
        assert ask(page, "/state.json", Host=host)[0] == 200, host
    for host in ("evil.example", f"evil.example:{port(page)}", "localhost.evil.example", "127.0.0.1.nip.io", "", "::1"):
        status, _, body = ask(page, "/state.json", Host=host)
        assert status == 403, host
        assert b"street" not in body
    with socket.create_connection(("127.0.0.1", port(page)), PATIENCE) as bare:
        bare.sendall(b"GET /state.json HTTP/1.0\r\n\r\n")
        assert b" 403 " in bare.makefile("rb").readline()


def test_an_access_without_rules_would_be_seen() -> None:
    open_to_all = Access(None, None, "c")
    assert open_to_all.answers_to("evil.example")
    assert open_to_all.admits(None, None)


# --- Pictures


def test_pictures_are_those_of_their_stream(page: Page) -> None:
    colours = iter(range(10**9))

    def view() -> Drawn:
        return flat(40 if next(colours) % 2 == 0 else 200)  # stream 0 dark, stream 1 bright

    with Deliver(page, view, streams=2):
        for stream, value in ((0, 40), (1, 200)):
            with urllib.request.urlopen(f"{page.url}stream/{stream}.mjpg", timeout=PATIENCE) as answer:
                assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=edgeseg"
                found = parts(answer)
                for _ in range(4):
                    pixels = decoded(next(found))
                    assert pixels.shape == (120, 160, 3)
                    assert abs(float(pixels.mean()) - value) < 2
            status, headers, body = ask(page, f"/frame/{stream}.jpg")
            assert (status, headers["Content-Type"]) == (200, "image/jpeg")
            assert abs(float(decoded(body).mean()) - value) < 2
    assert ask(page, "/stream/2.mjpg")[0] == 404


def test_a_wide_frame_is_made_smaller_and_looks_the_same(page: Page) -> None:
    scene, _ = render((720, 1280), seed=3, index=0)
    with Deliver(page, lambda: Drawn(scene)):
        seen = decoded(ask(page, "/frame/0.jpg")[2])
    assert seen.shape == (540, 960, 3)
    wanted = cv2.resize(scene, (960, 540), interpolation=cv2.INTER_AREA).astype(np.float64)
    assert 10 * math.log10(255**2 / float(((seen - wanted) ** 2).mean())) > 28  # decibels


def test_no_picture_yet_is_said(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseg.runtime.serve.routes.FRAME_S", 0.05)
    status, headers, body = ask(page, "/frame/0.jpg")
    assert status == 503
    assert headers["Retry-After"]
    assert b"no picture of this stream yet" in body


def test_without_watchers_nothing_is_drawn(page: Page) -> None:
    view = flat(1)
    for _ in range(100):
        assert page.put(shot(), view)
    assert view.asked == 0
    with Deliver(page, lambda: view):
        assert ask(page, "/frame/0.jpg")[0] == 200
    assert view.asked > 0
    until(lambda: page._pictures[0].watchers == 0, "the viewer is gone")
    asked = view.asked
    page.put(shot(), view)
    assert view.asked == asked


def test_watching_one_stream_draws_no_other(page: Page) -> None:
    with urllib.request.urlopen(f"{page.url}stream/0.mjpg", timeout=PATIENCE) as answer:
        until(lambda: page._pictures[0].watchers == 1, "the viewer has come")
        other, own = flat(9), flat(90)
        page.put(shot(1), other)
        page.put(shot(0), own)
        assert abs(float(decoded(next(parts(answer))).mean()) - 90) < 2
    assert other.asked == 0
    assert own.asked == 1


def test_pictures_come_at_the_pace_asked_for() -> None:
    """30 frames a second become 15, also when they come a little early or late; after a pause at once."""
    now, rng = [100.0], np.random.default_rng(0)
    picture = Picture(15.0, clock=lambda: now[0])
    view = flat(5)
    with picture.watched():
        picture.offer(view)
        view.asked = 0
        for k in range(1, 301):
            now[0] = 100.0 + k / 30 + rng.uniform(-0.005, 0.005)
            picture.offer(view)
        assert 147 <= view.asked <= 153
        now[0] += 60.0
        view.asked = 0
        for _ in range(5):
            picture.offer(view)
        assert view.asked == 1


def test_two_offers_make_one_picture_of_the_later() -> None:
    now = [0.0]
    picture = Picture(10.0, clock=lambda: now[0])
    with picture.watched():
        now[0] = 1.0
        assert picture.offer(flat(10))  # publish is due …
        now[0] = 2.0
        assert not picture.offer(flat(200))  # … and still is
        picture.publish()
        picture.publish()
    assert picture.number == 1
    assert abs(float(decoded(picture.jpeg).mean()) - 200) < 2


def test_a_frame_may_change_its_size(page: Page) -> None:
    size = [(120, 160)]
    with Deliver(page, lambda: flat(7, size[0])):
        for wanted in ((120, 160), (60, 200), (300, 40)):
            size[0] = wanted
            until(lambda: decoded(ask(page, "/frame/0.jpg")[2]).shape[:2] == size[0], "the new size is shown")


# --- Viewers who are slow, many, or gone


def resident_mb() -> float:
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        pytest.skip("resident memory is read from /proc here")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_viewer_who_does_not_read_holds_nobody_and_costs_no_memory(page: Page) -> None:
    """Noise makes JPEGs of about 400 KB: 300 of them would be seen, had they been queued."""
    rng = np.random.default_rng(0)
    noise = [Drawn(rng.integers(0, 256, (480, 640, 3), np.uint8)) for _ in range(4)]
    turn = iter(range(10**9))
    with socket.create_connection(("127.0.0.1", port(page)), PATIENCE) as slow:
        slow.sendall(b"GET /stream/0.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: page._pictures[0].watchers == 1, "the slow viewer has come")
        with Deliver(page, lambda: noise[next(turn) % 4]) as deliver:
            until(lambda: page._pictures[0].number > 20, "pictures are made")
            before, made = resident_mb(), page._pictures[0].number
            assert len(page._pictures[0].jpeg) > 200_000
            until(lambda: page._pictures[0].number > made + 300, "pictures go on being made")
            grown = resident_mb() - before
            with urllib.request.urlopen(f"{page.url}stream/0.mjpg", timeout=PATIENCE) as quick:
                found = parts(quick)
                assert all(decoded(next(found)).shape == (480, 640, 3) for _ in range(5))
    assert grown < 20
    assert (
        deliver.longest_s < 2.0
    )  # as long as a busy machine may hold any thread; a full socket would hold it for good


def test_a_viewer_who_never_reads_is_dropped(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseg.runtime.serve.routes.PATIENCE_S", 0.3)
    noise = Drawn(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    with socket.create_connection(("127.0.0.1", port(page)), PATIENCE) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /stream/0.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: page._pictures[0].watchers == 1, "the slow viewer has come")
        with Deliver(page, lambda: noise):
            until(lambda: page._pictures[0].watchers == 0, "the slow viewer is dropped")


def test_who_leaves_is_forgotten_at_once_also_when_no_pictures_come(page: Page) -> None:
    viewers = [socket.create_connection(("127.0.0.1", port(page)), PATIENCE) for _ in range(3)]
    for viewer in viewers:
        viewer.sendall(b"GET /stream/0.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: page._pictures[0].watchers == 3, "three viewers have come")
    for viewer in viewers:
        viewer.close()
    until(lambda: page._pictures[0].watchers == 0, "three viewers have gone")


def test_the_last_picture_is_sent_again_when_no_new_ones_come(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseg.runtime.serve.routes.REPEAT_S", 0.05)
    with urllib.request.urlopen(f"{page.url}stream/0.mjpg", timeout=PATIENCE) as answer:
        until(lambda: page._pictures[0].watchers == 1, "the viewer has come")
        page.put(shot(), flat(77))
        found = parts(answer)
        assert next(found) == next(found) == next(found)


def test_there_is_room_for_so_many_viewers(page: Page) -> None:
    viewers = []
    try:
        for _ in range(STREAMS):
            viewers.append(http.client.HTTPConnection("127.0.0.1", port(page), timeout=PATIENCE))
            viewers[-1].request("GET", "/events")
            assert viewers[-1].getresponse().status == 200
        status, headers, body = ask(page, "/stream/0.mjpg")
        assert status == 503
        assert headers["Retry-After"]
        assert f"{STREAMS} viewers".encode() in body
        assert ask(page, "/state.json")[0] == 200  # what ends by itself still works
    finally:
        for viewer in viewers:
            viewer.close()

    def room() -> bool:
        with socket.create_connection(("127.0.0.1", port(page)), PATIENCE) as again:
            again.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return b" 200 " in again.makefile("rb").readline()

    until(room, "there is room again")


def handles() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_close_leaves_no_thread_no_handle_and_no_connection() -> None:
    with Page("0", scripted, streams=["warm up"]):
        pass  # imports and OpenCV's own threads
    threads, before = set(threading.enumerate()), handles()
    page = Page("0", scripted, streams=["one"])
    open_ones = []
    for path in (b"/stream/0.mjpg", b"/events", b"/stream/0.mjpg", b"/healthz"):
        open_ones.append(socket.create_connection(("127.0.0.1", port(page)), PATIENCE))
        open_ones[-1].sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        assert b" 200 " in open_ones[-1].recv(4096)
    began = time.monotonic()
    page.close()
    assert time.monotonic() - began < PATIENCE
    page.close()
    page.put(shot(), flat(0))
    assert set(threading.enumerate()) == threads
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port(page)), PATIENCE)
    for connection in open_ones:
        connection.settimeout(PATIENCE)
        while connection.recv(1 << 16):
            pass  # the other side has ended it
        connection.close()
    assert handles() == before


def test_fifty_pages_one_after_the_other_leave_nothing() -> None:
    with Page("0", scripted, streams=["warm up"]):
        pass
    threads, before = threading.active_count(), handles()
    for _ in range(50):
        with Page("0", scripted, streams=["one"]) as page:
            assert ask(page, "/healthz")[0] == 200
    assert (threading.active_count(), handles()) == (threads, before)


def test_a_state_that_raises_is_an_answer_of_500_and_the_page_goes_on() -> None:
    good = threading.Event()

    def state() -> dict[str, Any]:
        if not good.is_set():
            raise RuntimeError("secret of the house")
        return scripted()

    with Page("0", state, streams=["one"]) as page:
        status, _, body = ask(page, "/state.json")
        assert status == 500
        assert b"secret" not in body
        good.set()
        assert ask(page, "/state.json")[0] == 200


# --- Prometheus


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_say_what_the_state_says(page: Page) -> None:
    status, headers, body = ask(page, "/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(body.decode())
    camera = (("source", "camera:0"), ("stream", "0"))
    for outcome, wanted in (("captured", 18372), ("processed", 18240), ("dropped", 131), ("failed", 1)):
        assert found["edgeseg_frames_total", (("outcome", outcome), *camera)] == wanted
    assert found["edgeseg_info", (("name", "street"), ("precision", "int8"), ("variant", "openvino"))] == 1
    assert found["edgeseg_fps", ()] == 29.8
    assert found["edgeseg_age_seconds", (("quantile", "0.99"),)] == pytest.approx(0.0449)
    assert found["edgeseg_stage_seconds", (("quantile", "0.5"), ("stage", "infer"))] == pytest.approx(0.0312 * 0.62)
    assert found["edgeseg_deadline_missed_total", ()] == 12
    assert found["edgeseg_miou", ()] == 0.612
    assert found["edgeseg_agreement", ()] == 0.982
    assert found["edgeseg_class_share", (("class", CLASSES[2]),)] == 0.31
    assert found["edgeseg_source_up", camera] == 1
    assert found["edgeseg_source_outages_total", camera] == 2
    assert found["edgeseg_temperature_celsius", ()] == 65.4
    assert found["edgeseg_gpu_clock_hertz", ()] == 1180e6
    assert found["edgeseg_resident_memory_bytes", ()] == 412.5 * 2**20
    assert ("edgeseg_confidence", ()) not in found  # not known, so not there: never 0
    assert ("edgeseg_power_watts", ()) not in found


def test_metrics_survive_any_name() -> None:
    odd = 'a "quoted" \\ back\\nslash,\nnew line} 1'
    state = scripted(shares={odd: 0.5, "é": 0.25}, sources=[source(0, odd, state="reopening"), source(1, odd)])
    found = samples(exposition(state).decode())
    assert found["edgeseg_class_share", (("class", odd),)] == 0.5
    assert found["edgeseg_class_share", (("class", "é"),)] == 0.25
    assert found["edgeseg_source_up", (("source", odd), ("stream", "0"))] == 0
    assert found["edgeseg_source_up", (("source", odd), ("stream", "1"))] == 1


def test_metrics_are_valid_text_line_by_line() -> None:
    """Against the grammar itself, written down apart from the library: one HELP and TYPE each, before its samples."""
    label = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"'
    line = re.compile(rf"([a-zA-Z_:][\w:]*)(?:\{{{label}(?:,{label})*\}})? (?:[-+]?\d[\d.]*(?:e[-+]?\d+)?|NaN|[+-]Inf)")
    described: list[str] = []
    for text in exposition(scripted()).decode().splitlines():
        if text.startswith("# HELP "):
            described.append(text.split()[2])
        elif text.startswith("# TYPE "):
            assert text.split()[2] == described[-1]
            assert (text.split()[3] == "counter") == described[-1].endswith("_total")
        else:
            match = line.fullmatch(text)
            assert match, text
            assert match[1] == described[-1]
    assert len(described) == len(set(described)) > 20
    assert not line.fullmatch('a{b="c"d"} 1')


@pytest.mark.parametrize("key", [None, *scripted()])
def test_metrics_do_without_any_part_of_the_state(key: str | None) -> None:
    whole = scripted()
    for state in (
        {} if key is None else {k: v for k, v in whole.items() if k != key},
        {**whole, **({key: None} if key else {})},
    ):
        samples(exposition(state).decode())
