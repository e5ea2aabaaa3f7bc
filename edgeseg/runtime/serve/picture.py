"""One stream's latest picture for the page: copied in the thread that delivers, made a JPEG in the page's thread.

Two buffers are all it holds of frames, and one JPEG: a viewer who is slow misses pictures and delays nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from edgeseg.runtime.sinks.base import View
from edgeseg.types import Pixels

WIDTH = 960  # pixels, at most: what a phone shows, and a third of the bytes of a 1080p frame
QUALITY = 80  # of the JPEG, 0 to 100


class Picture:
    """`offer` belongs to the thread that delivers, everything else to the page's."""

    def __init__(self, max_fps: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = 0  # of the pictures so far
        self.jpeg = b""  # the latest
        self.made = 0.0  # when, in seconds since 1970
        self.watchers = 0
        self._changed = asyncio.Event()  # set once, when the next picture is there; then replaced
        self._period, self._clock, self._due = 1.0 / max_fps, clock, 0.0
        self._lock = threading.Lock()
        self._spare, self._front, self._small = (np.empty((0, 0, 3), np.uint8) for _ in range(3))
        self._fresh = False

    def offer(self, view: View) -> bool:
        """Copy the overlay if somebody watches and it is time for one. Whether `publish` must be called for it."""
        if not self.watchers:
            return False
        now = self._clock()
        if now < self._due:
            return False
        # On a grid, so that 30 frames a second become 15 and not 10 when one comes a moment early.
        self._due += self._period if now - self._due < self._period else now - self._due + self._period
        overlay = view.overlay()
        with self._lock:
            if self._spare.shape != overlay.shape:
                self._spare = np.empty_like(overlay)
            np.copyto(self._spare, overlay)
            unseen, self._fresh = self._fresh, True
        return not unseen

    def publish(self) -> None:
        """Encode what was offered last, once for all who watch, and wake them."""
        with self._lock:
            if not self._fresh:
                return
            self._spare, self._front, self._fresh = self._front, self._spare, False
        self.jpeg = self._encode(self._front)
        self.made = time.time()
        self.number += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def newer(self, than: int, seconds: float) -> bool:
        """Wait until there is a picture after number `than`; False if none came within `seconds`."""
        if self.number > than:
            return True
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    def _encode(self, pixels: Pixels) -> bytes:
        import cv2

        height, width = pixels.shape[:2]
        if width > WIDTH:
            shape = (max(1, round(height * WIDTH / width)), WIDTH, 3)
            if self._small.shape != shape:
                self._small = np.empty(shape, np.uint8)
            pixels = cv2.resize(pixels, shape[1::-1], dst=self._small, interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            raise ValueError(f"OpenCV makes no JPEG of {pixels.shape}")
        encoded: bytes = data.tobytes()
        return encoded
