"""The page as a sink of the stream: a thread with a loop of its own, which ends when the sink is closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeseg.errors import need
from edgeseg.runtime.serve.access import access, listen, url_of
from edgeseg.runtime.serve.picture import Picture
from edgeseg.runtime.sinks.base import Sink, View
from edgeseg.runtime.values import Shot


class Page(Sink):
    """Serves the live page and the metrics from its making until `close`."""

    url: str  # what to open, with ?token=… where one is wanted

    def __init__(
        self,
        address: str,
        state: Callable[[], Mapping[str, Any]],
        *,
        token: str | None = None,
        streams: Sequence[str],
        max_fps: float = 15.0,
    ) -> None:
        """Listen at `address`, as `access.listen` reads it, for viewers of `streams` (names, in order).

        `state` gives the snapshot "edgeseg.stream.live/1"; it is called in the page's thread. `token` is wanted of
        viewers; without it see `access.access`. At most `max_fps` pictures a second are made of each stream.
        Raises BadInput for an address or a token that cannot be used, and for a port in use; MissingOnMachine.
        """
        for module, extra in (("aiohttp.web", "serve"), ("prometheus_client", "serve"), ("cv2", "run")):
            need(module, extra=extra, why="--serve")
        from edgeseg.runtime.serve.routes import Site, Snapshot, serve

        self._pictures = tuple(Picture(max_fps) for _ in streams)
        listening = listen(address)
        try:
            rules = access(listening, token)
            site = Site(Snapshot(state, streams), self._pictures, rules)
            self.url = url_of(listening, rules)
        except BaseException:
            listening.close()
            raise
        self.name = f"page at {self.url.partition('?')[0]}"  # without the token: names go into logs
        self._stop, started = asyncio.Event(), threading.Event()

        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            started.set()
            await serve(site, listening, self._stop)

        def run() -> None:
            try:
                asyncio.run(main())
            finally:
                listening.close()
                started.set()

        self._thread = threading.Thread(target=run, name="edgeseg-page", daemon=True)
        self._thread.start()
        started.wait()

    def put(self, shot: Shot, view: View) -> bool:
        """Take the overlay if somebody watches the shot's stream and it is time for a picture. Always True."""
        picture = self._pictures[shot.stream]
        if picture.offer(view):
            self._loop.call_soon_threadsafe(picture.publish)
        return True

    def close(self) -> None:
        """End all connections and the thread. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
