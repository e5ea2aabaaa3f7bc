"""What each convolution loses in INT8: when it alone is INT8, and when all but it are.

Judged at the scores, where all that stands behind a convolution has had its say: a layer's own error says little about
what becomes of it. Emulated on ONNX Runtime, so every engine's dialect can be judged on any machine; only what comes
after the layer runs again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg import __version__, cache
from edgeseg.backends.onnxruntime import AS_WRITTEN, inference_session, probe
from edgeseg.console import Console
from edgeseg.graph import Graph
from edgeseg.pipeline.search.suffix import Part, differing, emulated
from edgeseg.types import FRAME, LOGITS, MASK, Frames, OnnxModel

Int8Of = Callable[[frozenset[str]], OnnxModel]  # names of the convolutions kept in float → the network in INT8
_TOGETHER = 16  # parts opened at once
_MEMORY = 1 << 28  # bytes of one frame's tensors held at once, about


@dataclass(frozen=True, slots=True)
class Loss:
    """What a network in INT8 is off by, against FP32.

    `noise`: power of the error of the scores relative to that of the scores, 0 for none; without scores, the share of
    pixels of another class. `agreement`: share of pixels of the same class, 0 to 1.
    """

    noise: float
    agreement: float

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio in decibels; None where there is no noise."""
        return None if self.noise <= 0 else -10 * math.log10(self.noise)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One convolution. `alone`: it alone is INT8. `without`: all but it are; None where there was no time to judge."""

    node: str
    alone: Loss
    without: Loss | None

    def saved(self, everything: Loss) -> float:
        """The noise that keeping it in float takes away, at least 0.

        What it adds to a network in float and what it takes from one in INT8: the two ends of the orders in which a set
        may grow, of which the Shapley value would take all. Errors of others correlate with its own, by chance and as
        much as both are large; where they drown it, what it takes away says little, and counts little.
        """
        alone, whole = self.alone.noise, everything.noise
        if self.without is None or not (
            math.isfinite(alone) and math.isfinite(whole) and math.isfinite(self.without.noise)
        ):
            return alone
        weight = min(1.0, alone / whole) if whole > 0 else 0.0
        return (alone + weight * max(whole - self.without.noise, 0.0)) / (1 + weight)


@dataclass(frozen=True, slots=True)
class Losses:
    """`everything`: all convolutions in INT8. `rows`: those that were judged, in order of the graph."""

    everything: Loss
    rows: tuple[Sensitivity, ...]
    frames: int


def sensitivities(
    fp32: OnnxModel,
    nodes: Sequence[str],
    int8_of: Int8Of,
    frames: Iterable[Frames],
    *,
    ended: Callable[[], bool] = lambda: False,
    use_cache: bool = True,
    console: Console | None = None,
) -> Losses:
    """Judge each of the nodes on a few frames, uint8 (1, H, W, 3); `frames` is iterated several times.

    Memory does not grow with the number of frames. When `ended`, the nodes not yet judged are left out. What was judged
    is kept by the hashes of networks and frames. Raises ValueError without frames.
    """
    base = int8_of(frozenset())
    seen = [cache.key(np.ascontiguousarray(frame)) for frame in frames]
    if not seen:
        raise ValueError("sensitivity needs at least one frame")
    place = (__version__, fp32.digest, base.digest, seen)
    known: dict[tuple[str, str], Loss] = {}

    def entry(node: str, kind: str) -> str:
        return cache.key("search-loss", *place, node, kind)

    wanted = [("", "everything"), *((node, kind) for node in nodes for kind in ("alone", "without"))]
    for node, kind in wanted:
        stored = cache.load("search", entry(node, kind)) if use_cache else None
        if stored is not None:
            known[node, kind] = Loss(**json.loads(stored))
    missing = [item for item in wanted if item not in known]
    whole = frozenset(nodes)
    origin = emulated(base.graph)
    with (console or Console()).bar(len(missing), "sensitivity") as done:
        for kind, start in (("everything", fp32.graph), ("alone", fp32.graph), ("without", origin)):
            asked = [node for node, of in missing if of == kind]
            models = ((node, int8_of(_kept(node, kind, whole))) for node in asked)
            for batch in _batches(start, models, fp32.spec.input.size):
                if kind != "everything" and ended():
                    break
                for node, loss in _losses(fp32.graph, start, batch, frames).items():
                    known[node, kind] = loss
                    done()
                    if use_cache:
                        row = {"noise": loss.noise, "agreement": loss.agreement}
                        cache.store("search", entry(node, kind), json.dumps(row).encode())
    rows = tuple(
        Sensitivity(node, known[node, "alone"], known.get((node, "without")))
        for node in nodes
        if (node, "alone") in known
    )
    return Losses(known["", "everything"], rows, len(seen))


def _kept(node: str, kind: str, whole: frozenset[str]) -> frozenset[str]:
    """What stays in float."""
    return {"everything": frozenset[str](), "alone": whole - {node}, "without": frozenset({node})}[kind]


def _batches(start: bytes, models: Iterable[tuple[str, OnnxModel]], size: tuple[int, int]) -> Iterator[dict[str, Part]]:
    """Parts to be opened together: not too many, and all tensors that they start from fit the memory."""
    lengths = _lengths(start)
    unknown = 64 * 4 * size[0] * size[1]
    wanted = [tensor for tensor in (LOGITS, MASK) if Graph(start).producer(tensor) is not None]
    batch: dict[str, Part] = {}
    held: set[str] = set()
    for node, model in models:
        part = differing(start, emulated(model.graph), wanted)
        more = held | set(part.inputs)
        if batch and (len(batch) == _TOGETHER or sum(lengths.get(t, unknown) for t in more) > _MEMORY):
            yield batch
            batch, more = {}, set(part.inputs)
        batch[node] = part
        held = more
    if batch:
        yield batch


def _lengths(graph: bytes) -> dict[str, int]:
    """Bytes of each tensor of one frame, where the graph tells."""
    from math import prod

    from onnx import helper, load_from_string, shape_inference

    found = {}
    for value in shape_inference.infer_shapes(load_from_string(graph)).graph.value_info:
        kind = value.type.tensor_type
        shape = [axis.dim_value if axis.HasField("dim_value") else 1 for axis in kind.shape.dim]
        if kind.elem_type:
            found[value.name] = prod(shape) * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return found


def _losses(fp32: bytes, start: bytes, parts: Mapping[str, Part], frames: Iterable[Frames]) -> dict[str, Loss]:
    wanted = [tensor for tensor in (LOGITS, MASK) if Graph(fp32).producer(tensor) is not None]
    inputs = {tensor for part in parts.values() for tensor in part.inputs} - {FRAME}
    begun = probe(start, sorted(inputs | set(wanted)), frames)
    exact = begun if start is fp32 else probe(fp32, wanted, frames)
    sessions: dict[str, Any] = {}
    totals = {node: _Total() for node in parts}
    pairs = ((values, values) for values in begun) if exact is begun else zip(begun, exact, strict=True)
    for frame, (values, reference) in zip(frames, pairs, strict=True):
        tensors = {**values, FRAME: np.ascontiguousarray(frame)}
        for node, part in parts.items():
            found = dict(values)
            if part.outputs:
                if node not in sessions:
                    sessions[node] = inference_session(part.graph(tensors), AS_WRITTEN)
                given = {name: np.ascontiguousarray(tensors[name]) for name in part.inputs}
                found |= zip(part.outputs, sessions[node].run(list(part.outputs), given), strict=True)
            totals[node].add(reference, found)
    return {node: total.loss() for node, total in totals.items()}


class _Total:
    """Sums over frames."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.pixels = self.equal = 0

    def add(self, exact: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
        self.pixels += exact[MASK].size
        self.equal += int(np.count_nonzero(exact[MASK] == found[MASK]))
        if LOGITS in exact:
            signal = exact[LOGITS].ravel().astype(np.float64)
            error = found[LOGITS].ravel() - signal
            self.signal += float(signal @ signal)
            self.noise += float(error @ error)

    def loss(self) -> Loss:
        agreement = self.equal / self.pixels
        if self.signal > 0:
            noise = self.noise / self.signal
            return Loss(noise if math.isfinite(noise) else math.inf, agreement)
        return Loss(1 - agreement, agreement)
