"""A running stream watched without labels: on a sampled share of frames the float network is asked as well.

Its mask tells how far the engine still agrees with it, its scores and class shares whether the camera still shows what
the model was calibrated on. All of that in one thread of low priority, which lets frames go by while it is busy.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from edgeseg.backends.base import Closing
from edgeseg.backends.scores import Scored
from edgeseg.bundle import FP32, Bundle
from edgeseg.errors import BadInput, BundleError
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.drift import Baseline, Drift, from_json
from edgeseg.runtime.values import Shot

NICE = 10  # as of nice(1): the stream goes first


def baseline_of(bundle: Bundle) -> Baseline | None:
    """What the float network saw on the calibration frames; None in a bundle built before there was one, or without
    frames. Raises BundleError for one that is damaged."""
    stored = bundle.verdict.get("baseline") if isinstance(bundle.verdict, Mapping) else None
    if stored is None:
        return None
    try:
        return from_json(stored)
    except BadInput as error:
        raise BundleError(f"the bundle's verdict: {error}") from error


class Watch(Closing):
    """Agreement with the float network, and drift, on a share (0 to 1) of the frames that are offered.

    Of every round(1 / share) frames one is taken, by chance (`seed`), so that nothing periodic is always or never hit.
    `threads`: of the float network. Raises BadInput for a share that is none, BundleError for a bundle without the
    float network or with a damaged baseline, ModelError and MissingOnMachine where ONNX Runtime cannot open it.
    """

    def __init__(self, bundle: Bundle, share: float, *, seed: int = 0, threads: int = 1) -> None:
        if not 0 < share <= 1:
            raise BadInput(f"the share of frames to watch is above 0 and at most 1; {share} came")
        if FP32 not in bundle.files:
            raise BundleError(f"the bundle holds no {FP32} to compare with. Build it again, or do not watch.")
        self._share, self._every = share, round(1 / share)
        self._baseline = baseline_of(bundle)
        classes = bundle.spec.output.classes  # one channel decides between two, of which one is named
        self._classes = ("other", *classes) if len(classes) == 1 else classes
        self._network = Scored(bundle.files[FP32], bundle.spec.output, threads)
        self._frame = np.empty((1, *bundle.spec.input.size, 3), np.uint8)
        self._mask = np.empty(bundle.spec.input.size, np.uint8)
        self._stream = 0
        self._random = random.Random(seed)
        self._offered = 0
        self._next = self._random.randrange(self._every)
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self._asked = self._skipped_busy = self._frames = self._failed = 0
        self._error: str | None = None
        self._agreement = Agreement()
        self._sure, self._sure_frames = 0.0, 0
        self._drifts: dict[int, Drift] = {}  # by stream: cameras drift one by one
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def offer(self, shot: Shot) -> None:
        """A frame with its mask, in the thread that delivers; copied if it is to be looked at. Does not wait."""
        with self._changed:
            chosen = self._offered % self._every == self._next
            self._offered += 1
            if self._offered % self._every == 0:
                self._next = self._random.randrange(self._every)
            if not chosen or self._closed:
                return
            self._asked += 1
            if self._busy:
                self._skipped_busy += 1
                return
            try:
                np.copyto(self._frame, shot.input)
                np.copyto(self._mask, shot.mask)
            except ValueError as error:  # another size than the bundle's
                self._fail(error)
                return
            self._stream = shot.stream
            self._busy = True
            self._changed.notify_all()

    @property
    def warning(self) -> str | None:
        """What is wrong with what the cameras show, None where nothing is."""
        with self._changed:
            drifts = sorted(self._drifts.items())
        texts = [(f"stream {stream}: " if len(drifts) > 1 else "") + d.warning for stream, d in drifts if d.warning]
        return "\n".join(texts) or None

    def document(self) -> dict[str, Any]:
        """What was seen so far. `asked` = `frames` + `skipped_busy` + `failed` + the one at work.

        `agreement`, `boundary`: share of the pixels, and of those within 2 pixels of a class boundary, in which the
        engine answers as the float network does. `confidence`: mean, of the float network. `drift`: one for each
        stream that frames came from, empty without a baseline; `baseline` says whether there is one.
        """
        with self._changed:
            return {
                "share": self._share,
                "asked": self._asked,
                "frames": self._frames,
                "skipped_busy": self._skipped_busy,
                "failed": self._failed,
                "error": self._error,
                "agreement": self._agreement.overall if self._frames else None,
                "boundary": self._agreement.boundary if self._agreement.band_pixels else None,
                "confidence": self._sure / self._sure_frames if self._sure_frames else None,
                "baseline": self._baseline is not None,
                "drift": [{"stream": stream, **drift.document()} for stream, drift in sorted(self._drifts.items())],
            }

    def close(self) -> None:
        """End after the frame at work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._network.close()

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own; the network runs in this one
            with suppress(OSError):  # a container may forbid it: then it runs as all others do
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._changed:
                while not self._busy and not self._closed:
                    self._changed.wait()
                if not self._busy:
                    return
            try:
                self._look()
            except Exception as error:  # a stream does not end because nobody watches it any more
                with self._changed:
                    self._fail(error)
            finally:
                with self._changed:
                    self._busy = False

    def _look(self) -> None:
        mask, sure = self._network.run(self._frame)
        seen = agreement(mask, self._mask)
        shares = np.bincount(mask.ravel(), minlength=len(self._classes)) / mask.size
        with self._changed:
            self._frames += 1
            self._agreement += seen
            if sure is not None:
                self._sure += sure
                self._sure_frames += 1
            if self._baseline is not None:
                if self._stream not in self._drifts:
                    self._drifts[self._stream] = Drift(self._baseline, self._classes)
                self._drifts[self._stream].update(shares, sure)

    def _fail(self, error: Exception) -> None:
        self._failed += 1
        self._error = self._error or f"{type(error).__name__}: {error}"
