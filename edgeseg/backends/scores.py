"""How sure the float network is: its graph with the scores as a second output, run on the CPU beside the engine.

Engines decide inside the graph and hand over masks alone. The FP32 graph that travels in a bundle still has the tensor
LOGITS before that decision; naming it as an output takes no `onnx` package, which a device does not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeseg.backends.base import Closing
from edgeseg.backends.onnxruntime import inference_session
from edgeseg.errors import ModelError
from edgeseg.types import FRAME, LOGITS, MASK, Floats, Frames, Mask, OutputSpec

_BLOCK = 1 << 15  # values of one class per block: 128 KiB of float32, so that a block stays in the cache


def with_scores(graph: bytes) -> bytes:
    """The serialized ONNX graph with LOGITS, float32, as one more output after those it has.

    A message of Protocol Buffers that comes in two pieces is merged (protobuf.dev, "Encoding", last one wins), repeated
    fields appended: so what is put behind the bytes is ModelProto{graph: GraphProto{output: [ValueInfoProto]}}, whose
    numbers are fields 7, 12, and of ValueInfoProto 1 (name) and 2 (type: tensor_type 1, elem_type 1 = FLOAT).
    Whether the graph has such a tensor shows when it is opened.
    """
    value = _field(1, LOGITS.encode()) + _field(2, _field(1, b"\x08\x01"))
    return graph + _field(7, _field(12, value))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field; one byte holds numbers below 16 and one lengths below 128, and there are no others."""
    return bytes([number << 3 | 2, len(content)]) + content


def confidence(scores: Floats, *, probabilities: bool = False) -> float:
    """The mean over pixels of the winning class's probability, 0 to 1, of scores float32 (C, H, W).

    Of logits the highest value of their softmax; of one channel max(p, 1 - p) with p its sigmoid. `probabilities`: the
    scores are some already. A pixel whose scores are not finite counts as 0. A network is seldom as sure as it should
    be (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017): compare with the same network, not with 1.
    """
    classes, height, width = scores.shape
    rows = max(1, min(height, _BLOCK // width))
    best, term, total = (np.empty((rows, width), np.float32) for _ in range(3))
    seen: float = 0.0
    with np.errstate(all="ignore"):
        for top in range(0, height, rows):
            block = scores[:, top : top + rows]
            b, t, s = (array[: block.shape[1]] for array in (best, term, total))
            if classes == 1 and probabilities:
                np.subtract(1.0, block[0], out=t)
                np.maximum(block[0], t, out=b)
            elif classes == 1:  # the larger of sigmoid(x) and sigmoid(-x) is sigmoid(|x|)
                np.abs(block[0], out=t)
                np.negative(t, out=t)
                np.exp(t, out=t)
                t += 1.0
                np.reciprocal(t, out=b)
            elif probabilities:
                np.max(block, axis=0, out=b)
            else:
                np.max(block, axis=0, out=b)
                s.fill(0.0)
                for plane in block:
                    np.subtract(plane, b, out=t)
                    np.exp(t, out=t)
                    s += t
                np.reciprocal(s, out=b)
            np.nan_to_num(b, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            seen += float(b.sum(dtype=np.float64))
    return float(min(1.0, max(0.0, seen / (height * width))))


class Scored(Closing):
    """A float graph, opened for its mask and how sure it is of it. Not to be shared between threads.

    `threads`: 0 for all that the process may use. Raises ModelError where ONNX Runtime refuses the graph,
    MissingOnMachine where it is not installed.
    """

    def __init__(self, graph: bytes, output: OutputSpec, threads: int = 0) -> None:
        self._probabilities = output.activation == "probabilities"
        self._outputs = [MASK, LOGITS]
        try:
            self._session: Any = inference_session(with_scores(graph), threads=threads)
        except ModelError:  # a network that decides itself has no scores; whatever else is wrong is said here
            self._session = inference_session(graph, threads=threads)
            self._outputs = [MASK]

    def run(self, frames: Frames) -> tuple[Mask, float | None]:
        """The mask uint8 (H, W) of one frame uint8 (1, H, W, 3) at the network's size, and the confidence in it.

        The confidence is None where the graph has no scores.
        """
        mask, *scores = self._session.run(self._outputs, {FRAME: frames})
        return mask[0], confidence(scores[0][0], probabilities=self._probabilities) if scores else None

    def close(self) -> None:
        self._session = None
