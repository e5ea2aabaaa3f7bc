"""The accuracy of candidates on selection frames: train frames not calibrated on, and never those of the verdict."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from edgeseg import backends
from edgeseg.backends import Engine
from edgeseg.backends.onnxruntime import AS_WRITTEN, inference_session
from edgeseg.data import Reading, fit, pick, read
from edgeseg.data.prepare import to_size
from edgeseg.errors import CannotTell, ModelError
from edgeseg.measure.confusion import confusion
from edgeseg.pipeline.search.floor import Matrices, Outcome, outcome
from edgeseg.pipeline.search.suffix import emulated
from edgeseg.trials.isolate import try_engines
from edgeseg.types import FRAME, MASK, Mask, ModelSpec, OnnxModel, Pixels

FRAMES = 100
_HELD = 256 << 20  # bytes of prepared frames and labels kept between candidates

Run = Callable[[Pixels], Mask]


def selection_for(calibration: Reading, verdict: Reading | None, count: int = FRAMES) -> Reading | None:
    """Frames of the split that was calibrated on, spread over what neither calibration nor verdict uses.

    None if nothing is left.
    """
    used = set(calibration.indices)
    if verdict is not None and verdict.split.name == calibration.split.name:
        used |= set(verdict.indices)
    left = [index for index in range(len(calibration.split)) if index not in used]
    if not left:
        return None
    return read(calibration.split, [left[at] for at in pick(len(left), count)], color=calibration.color)


@dataclass(slots=True)
class Judge:
    """Compares candidates with FP32 on the same frames; what FP32 answers is computed once.

    `frames`, `labelled`: how many, after the first judgement.
    """

    reading: Reading
    spec: ModelSpec
    ignore_index: int | None
    frames: int = 0
    labelled: int = 0
    _matrices: Matrices | None = None
    _masks: list[tuple[tuple[int, int], bytes]] = field(default_factory=list)
    _held: list[tuple[Pixels, Mask | None]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        return "mIoU" if self.labelled else "agreement with FP32"

    @property
    def accuracy(self) -> float:
        """Of FP32, in points of 100: 100 where the metric is agreement with it."""
        assert self._matrices is not None
        return outcome(self._matrices, self._matrices).accuracy if self.labelled else 100.0

    def reference(self, run: Run) -> None:
        """What FP32 answers. Raises CannotTell if no frame could be read."""
        rows, size, keep = [], 0, True
        for frame, label in self._samples():
            mask = run(frame)
            self.frames += 1
            self.labelled += label is not None
            rows.append(self._count(mask, label))
            self._masks.append((mask.shape[:2], zlib.compress(np.ascontiguousarray(mask).tobytes(), 1)))
            size += frame.nbytes + (0 if label is None else label.nbytes)
            keep = keep and size <= _HELD
            self._held = [*self._held, (frame, label)] if keep else []
        if not rows:
            raise CannotTell(f"no frame of split '{self.reading.split.name}' could be read to choose by")
        self._matrices = np.stack(rows)

    def outcome(self, run: Run) -> Outcome:
        """What a candidate loses. `reference` comes first."""
        assert self._matrices is not None
        classes = len(self._matrices[0])
        if self.labelled:
            rows = [self._count(run(frame), label) for frame, label in self._samples()]
            return outcome(self._matrices, np.stack(rows))
        exact, rows = [], []
        for (frame, _), (shape, packed) in zip(self._samples(), self._masks, strict=True):
            mask = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)
            exact.append(confusion(mask, mask, classes))
            rows.append(confusion(run(frame), mask, classes))
        return outcome(np.stack(exact), np.stack(rows), overall=True)

    def _samples(self) -> Iterator[tuple[Pixels, Mask | None]]:
        if self._held:
            yield from self._held
            return
        size, resize = self.spec.input.size, self.spec.input.resize
        for sample in self.reading:
            yield fit(sample.pixels, size, resize), sample.label

    def _count(self, mask: Mask, label: Mask | None) -> Matrices:
        classes = max(len(self.spec.output.classes), 2)
        if label is None:
            return np.zeros((classes, classes), np.int64)
        height, width = label.shape[:2]
        return confusion(to_size(mask, (height, width)), label, classes, self.ignore_index)


@contextmanager
def running(engine: Engine, frame: Pixels) -> Iterator[Run]:
    """The engine on one frame after the other. Raises ModelError where the runtime refuses or crashes."""
    if backends.get(engine.backend).isolate:
        (answer,) = try_engines([engine], frame[None])
        if isinstance(answer, str):
            raise ModelError(answer)
    with backends.open_engine(engine) as session:
        yield lambda pixels: session.run(pixels[None])[0]


@contextmanager
def emulating(model: OnnxModel) -> Iterator[Run]:
    """The same by emulation on ONNX Runtime, quantizers as they are written and nothing fused across them."""
    session = inference_session(emulated(model.graph), AS_WRITTEN)
    yield lambda pixels: np.asarray(session.run([MASK], {FRAME: pixels[None]})[0])[0]
