"""The page over HTTP: the routes, the headers that each answer carries, and the streams that go on until one side ends.

Imported late, by `server`: it needs aiohttp. Everything runs in the page's thread.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from edgeseg.runtime.serve.access import Access
from edgeseg.runtime.serve.metrics import CONTENT_TYPE, exposition
from edgeseg.runtime.serve.picture import Picture

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STREAMS = 32  # pictures and events at a time
EVENT_S = 0.5  # between two events of one viewer
PATIENCE_S = 10.0  # that a viewer may take for one write, then the connection ends
REPEAT_S = 5.0  # without a new picture the last one is sent again: so a viewer who is gone is noticed
FRAME_S = 2.0  # to wait for a picture that is asked for alone
SEND_BUFFER = 1 << 17  # bytes; the system's own would hold seconds of pictures for a slow viewer
BOUNDARY = b"--edgeseg\r\n"

_FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "plot.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_OPEN = {"/healthz", "/page.css", "/icon.svg"}  # tell nothing; the page that asks for a token is made of them
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site shows our pictures
    "Server": "edgeseg",
}


class Snapshot:
    """The state as JSON, asked for anew only when what there is has grown too old."""

    def __init__(self, state: Callable[[], Mapping[str, Any]], streams: Sequence[str]) -> None:
        self._state = state
        self._sources = [{"stream": number, "name": name} for number, name in enumerate(streams)]
        self._text, self._time = "", -math.inf

    def now(self) -> dict[str, Any]:
        return {"sources": self._sources, **self._state()}

    def text(self, age_s: float = 0.0) -> str:
        if time.monotonic() - self._time >= age_s:
            self._text, self._time = json.dumps(plain(self.now()), allow_nan=False), time.monotonic()
        return self._text


class Site:
    """The handlers, and who is being streamed to."""

    def __init__(self, snapshot: Snapshot, pictures: Sequence[Picture], access: Access) -> None:
        self._snapshot, self._pictures, self._access = snapshot, pictures, access
        self._streaming = 0
        folder = Path(__file__).parent
        self._files = {name: (folder / name).read_bytes() for name in _FILES}

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/", self._file("page.html"))
        for name in _FILES:
            app.router.add_get(f"/{name}", self._file(name))
        app.router.add_get(r"/stream/{number:\d{1,4}}.mjpg", self._mjpeg)
        app.router.add_get(r"/frame/{number:\d{1,4}}.jpg", self._frame)
        app.router.add_get("/state.json", self._state)
        app.router.add_get("/events", self._events)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        access, given = self._access, request.query.get("token")
        if not access.answers_to(request.headers.get("Host")):
            return _words(403, "This page answers to localhost and 127.0.0.1 only. Open it by one of these names.")
        if request.method not in ("GET", "HEAD"):
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        if given is not None and access.token is not None and access.admits_token(given):
            return self._enter() if request.path == "/" else await handler(request)
        admitted = access.admits(request.cookies.get(access.cookie), request.headers.get("Authorization"))
        if not admitted and request.path not in _OPEN:
            return _words(
                401,
                "This page wants a token. Open the address that edgeseg printed when it started: it ends in ?token=… "
                "Programs send the header “Authorization: Bearer” with the token.",
                **{"WWW-Authenticate": 'Bearer realm="edgeseg"'},
            )
        return await handler(request)

    def _enter(self) -> web.Response:
        """Keep the token as a cookie, and go on to the address without it.

        By a page that goes on, not by a 303: after a click on a link elsewhere (a mail, a chat), browsers do not send
        a strict cookie with the redirected request, since the click began on another site.
        """
        response = _words(200, "One moment.", '<meta http-equiv="refresh" content="0; url=./">')
        value = self._access.pass_
        response.set_cookie(self._access.cookie, value, httponly=True, samesite="Strict", max_age=30 * 86400)
        return response

    def _file(self, name: str) -> Handler:
        async def give(request: web.Request) -> web.Response:
            return web.Response(body=self._files[name], content_type=_FILES[name], charset="utf-8")

        return give

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _state(self, request: web.Request) -> web.Response:
        return web.Response(text=self._snapshot.text(), content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=exposition(self._snapshot.now()), headers={"Content-Type": CONTENT_TYPE})

    async def _frame(self, request: web.Request) -> web.Response:
        picture = self._picture(request)
        with picture.watched():
            await picture.newer(picture.number, FRAME_S)
        if not picture.jpeg:
            return _words(503, "There is no picture of this stream yet. Try again in a moment.", **{"Retry-After": "2"})
        response = web.Response(body=picture.jpeg, content_type="image/jpeg")
        response.last_modified = picture.made  # it may be an old one: the source may be gone
        return response

    async def _mjpeg(self, request: web.Request) -> web.StreamResponse:
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY[2:-2].decode()}"
        return await self._go_on(request, kind, self._parts(self._picture(request)))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self._go_on(request, "text/event-stream", self._states())

    async def _parts(self, picture: Picture) -> AsyncGenerator[bytes, None]:
        # The last picture from before anybody watched may be hours old: then only a new one is shown.
        seen = picture.number - (1 if picture.watchers else 0)
        yield BOUNDARY
        with picture.watched():
            while True:
                await picture.newer(seen, REPEAT_S)
                if seen < picture.number or picture.jpeg:
                    seen, jpeg = picture.number, picture.jpeg
                    head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                    # Browsers show a part when the next boundary comes, so it goes out with it.
                    yield head + jpeg + b"\r\n" + BOUNDARY

    async def _states(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield f"data: {self._snapshot.text(0.8 * EVENT_S)}\n\n".encode()
            await asyncio.sleep(EVENT_S)

    async def _go_on(self, request: web.Request, kind: str, parts: AsyncGenerator[bytes, None]) -> web.StreamResponse:
        """Send part after part, none before the one ahead of it has left, until the viewer goes or the page closes."""
        if self._streaming >= STREAMS:
            text = f"There are {STREAMS} viewers of pictures and events already. Close one and try again."
            return _words(503, text, **{"Retry-After": "5"})
        response = web.StreamResponse(headers={"Content-Type": kind, "X-Accel-Buffering": "no"})
        transport = request.transport
        if request.method == "HEAD" or transport is None:
            return response
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._streaming += 1
        try:
            await response.prepare(request)
            async with aclosing(parts):
                async for part in parts:
                    await asyncio.wait_for(response.write(part), PATIENCE_S)
        except (asyncio.TimeoutError, ConnectionError):  # the viewer does not read, or is gone: how a stream ends
            transport.abort()  # drops what it still holds for such a one
        finally:
            self._streaming -= 1
        return response

    def _picture(self, request: web.Request) -> Picture:
        number = int(request.match_info["number"])
        if number >= len(self._pictures):
            raise web.HTTPNotFound(text=f"There is no stream {number}: they are 0 to {len(self._pictures) - 1}.\n")
        return self._pictures[number]


async def serve(site: Site, listening: socket.socket, stop: asyncio.Event) -> None:
    """Answer on `listening` until `stop` is set; then all connections are closed."""
    runner = web.AppRunner(
        site.application(),
        access_log=None,
        handler_cancellation=True,  # a viewer who leaves is forgotten at once, also where nothing is being sent
        shutdown_timeout=0.2,  # for answers that end by themselves; then streams are cancelled
        keepalive_timeout=30.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        await stop.wait()
    finally:
        await runner.cleanup()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _words(status: int, text: str, head: str = "", **headers: str) -> web.Response:
    """A short page that says what to do."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>edgeseg</title>{head}<meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="/icon.svg"><link rel="stylesheet" href="/page.css">'
        f'<main class="words"><h1>edgeseg</h1><p>{escape(text)}</p></main></html>\n'
    )
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


def plain(value: Any) -> Any:
    """The value in JSON's own types: NumPy's scalars unwrapped, null for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float) or value is None else str(value)
