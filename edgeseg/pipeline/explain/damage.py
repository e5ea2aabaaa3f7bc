"""What each layer costs, on real frames: at its own output as deployed, and at the scores when it alone is deployed.

Runs on ONNX Runtime. Of a transplanted graph only the part behind what changed runs, from tensors of the graph that it
was changed from, for one frame after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.backends.decide import decide
from edgeseg.backends.onnxruntime import AS_WRITTEN, inference_session
from edgeseg.graph import Graph
from edgeseg.measure.layers import Clipping, Difference, Rounding, clipping, difference, rounding
from edgeseg.pipeline.explain.copies import Quantizer
from edgeseg.pipeline.explain.transplant import Deployed
from edgeseg.pipeline.search.suffix import Part, differing
from edgeseg.types import FRAME, LOGITS, MASK, Frames, Masks

Tensors = dict[str, NDArray[Any]]
_TOGETHER = 8  # graphs opened at once
_MEMORY = 1 << 28  # bytes of one frame's tensors held at once, about


@dataclass(frozen=True, slots=True)
class Damage:
    """At the end of the network, against FP32. `scores` is None for a network that gives a class map and no scores."""

    scores: Difference | None
    pixels: int
    equal: int

    @property
    def agreement(self) -> float:
        return self.equal / self.pixels if self.pixels else 1.0

    @property
    def rank(self) -> float:
        """The larger the worse: noise power relative to the signal; without scores, the share of labels that differ."""
        if self.scores is None:
            return 1.0 - self.agreement
        if self.scores.broken:
            return float("inf")
        return self.scores.noise / self.scores.signal if self.scores.signal else self.scores.noise


@dataclass(slots=True)
class Ends:
    """What is compared at the end of the network, and how masks are made where a graph ends with scores."""

    threshold: float = 0.0

    def of(self, tensors: Mapping[str, NDArray[Any]]) -> Masks:
        if MASK in tensors:
            return np.asarray(tensors[MASK])
        return decide(np.ascontiguousarray(tensors[LOGITS], np.float32), self.threshold)

    def damage(self, exact: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> Damage:
        scores = difference(exact[LOGITS], found[LOGITS]) if LOGITS in exact and LOGITS in found else None
        one, two = self.of(exact), self.of(found)
        return Damage(scores, one.size, int(np.count_nonzero(one == two)))


def added(one: Damage | None, two: Damage) -> Damage:
    """Of two sets of frames together."""
    if one is None:
        return two
    scores = one.scores + two.scores if one.scores is not None and two.scores is not None else None
    return Damage(scores, one.pixels + two.pixels, one.equal + two.equal)


def ends_of(graph: bytes) -> list[str]:
    """Of LOGITS and MASK what a graph has."""
    opened = Graph(graph)
    return [tensor for tensor in (LOGITS, MASK) if opened.producer(tensor) is not None]


def tensors_of(
    graph: bytes, wanted: Sequence[str], frames: Iterable[Frames], optimization: str = "all"
) -> Iterator[Tensors]:
    """The named tensors of a graph for one frame after the other. "off" for graphs with quantizers, see AS_WRITTEN."""
    import onnx

    model = onnx.load_from_string(graph)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name != FRAME)
    session = inference_session(model.SerializeToString(), optimization)
    asked = [name for name in wanted if name != FRAME]
    for frame in frames:
        frame = np.ascontiguousarray(frame)
        found = dict(zip(asked, session.run(asked, {FRAME: frame}), strict=True)) if asked else {}
        yield {**found, FRAME: frame} if FRAME in wanted else found


@dataclass(slots=True)
class Outputs:
    """Of the deployed graph against FP32: each layer's output, each quantizer's input, and the end of the network."""

    layers: dict[str, Difference] = field(default_factory=dict)
    quantizers: dict[str, Clipping] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)  # by quantizer, as the next
    together: dict[str, Rounding] = field(default_factory=dict)  # with all that have the same scale
    whole: Damage | None = None
    masks: list[Masks] = field(default_factory=list)  # the deployed graph's, emulated


def outputs(
    fp32: bytes,
    deployed: bytes,
    named: Mapping[str, tuple[str, str]],
    quantizers: Sequence[Quantizer],
    frames: Sequence[Frames],
    ends: Ends,
    optimization: str,
) -> Outputs:
    """Compare tensors of two graphs, `named` by layer: the FP32 graph's and the deployed graph's name.

    What a quantizer clips is counted on the tensors of the FP32 graph, which nothing has clipped before.
    """
    made = Outputs()
    common = [end for end in ends_of(fp32) if end in ends_of(deployed)]
    for layers in _portions(named, frames[0].shape[1:3]):
        first = not made.layers
        of = {q.node: q for q in quantizers} if first else {}
        wanted = {tensor for tensor, _ in layers.values()} | {q.tensor for q in of.values()}
        exact = tensors_of(fp32, sorted(wanted | set(common if first else ())), frames)
        asked = {tensor for _, tensor in layers.values()} | set(common if first else ())
        found = tensors_of(deployed, sorted(asked), frames, optimization)
        for one, two in zip(exact, found, strict=True):
            for node, (tensor, other) in layers.items():
                made.layers[node] = made.layers.get(node, Difference()) + difference(one[tensor], two[other])
            for node, q in of.items():
                seen = clipping(one[q.tensor], q.low, q.high, q.scale)
                made.quantizers[node] = made.quantizers.get(node, Clipping()) + seen
                tried = rounding(one[q.tensor], q.low, q.high, q.scale)
                made.rounding[node] = made.rounding.get(node, Rounding()) + tried
            if first:
                ended = {end: two[end].astype(np.float32) if end == LOGITS else two[end] for end in common}
                made.whole = added(made.whole, ends.damage({end: one[end] for end in common}, ended))
                made.masks.append(ends.of(ended))
    shared: dict[tuple[float, int], Rounding] = {}
    for q in quantizers:
        key = (q.scale, q.zero_point)
        shared[key] = shared.get(key, Rounding()) + made.rounding.get(q.node, Rounding())
    made.together = {q.node: shared[q.scale, q.zero_point] for q in quantizers}
    return made


def _portions(named: Mapping[str, tuple[str, str]], size: tuple[int, int]) -> Iterator[dict[str, tuple[str, str]]]:
    """Layers in portions whose outputs fit the memory, taken as 32 channels of a frame's size each."""
    at_once = max(4, _MEMORY // (2 * 32 * 4 * size[0] * size[1]))
    items = list(named.items())
    for start in range(0, max(len(items), 1), at_once):
        yield dict(items[start : start + at_once])


def damages(
    fp32: bytes,
    start: bytes,
    graphs: Iterable[tuple[str, bytes]],
    frames: Sequence[Frames],
    ends: Ends,
    *,
    ended: Callable[[], bool] = lambda: False,
    done: Callable[[], object] = lambda: None,
) -> Iterator[tuple[str, Damage]]:
    """What each of the graphs loses against FP32, in their order. All were made from `start`, FP32 itself or not.

    When `ended`, the rest is left out; the first few are always there.
    """
    wanted = ends_of(fp32)
    exact = [dict(found) for found in tensors_of(fp32, wanted, frames)]
    optimization = "all" if start is fp32 else AS_WRITTEN
    for at, batch in enumerate(_batches((name, differing(start, graph, wanted)) for name, graph in graphs)):
        if at and ended():
            return
        reads = sorted({tensor for part in batch.values() for tensor in part.inputs} | set(wanted))
        sessions: dict[str, Any] = {}
        totals: dict[str, Damage] = {}
        for reference, values in zip(exact, tensors_of(start, reads, frames, optimization), strict=True):
            for name, part in batch.items():
                found = {end: values[end] for end in wanted}
                if part.outputs:
                    if name not in sessions:
                        sessions[name] = inference_session(part.graph(values), AS_WRITTEN)
                    given = {tensor: np.ascontiguousarray(values[tensor]) for tensor in part.inputs}
                    found |= zip(part.outputs, sessions[name].run(list(part.outputs), given), strict=True)
                totals[name] = added(totals.get(name), ends.damage(reference, found))
        for name, damage in totals.items():
            done()
            yield name, damage


def _batches(parts: Iterable[tuple[str, Part]]) -> Iterator[dict[str, Part]]:
    batch: dict[str, Part] = {}
    for name, part in parts:
        batch[name] = part
        if len(batch) == _TOGETHER:
            yield batch
            batch = {}
    if batch:
        yield batch


def alone(deployed: Deployed, nodes: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The FP32 graph with one layer's quantization, for each of the nodes."""
    return ((node, deployed.graph({node})) for node in nodes)


def parts_alone(deployed: Deployed, nodes: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The same with its weights alone, named NODE/weights, and with the tensors that it reads alone, NODE/inputs."""
    for node in nodes:
        yield f"{node}/weights", deployed.graph({node}, inputs=False)
        yield f"{node}/inputs", deployed.graph({node}, weights=False)


def without(deployed: Deployed, nodes: Sequence[str], whole: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The FP32 graph with the quantization of all layers but one."""
    return ((node, deployed.graph(set(whole) - {node})) for node in nodes)


class Budget:
    """Seconds that may pass, by a clock; parts of the work get shares of it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin, self.seconds = clock, clock(), seconds

    def spent(self, share: float) -> bool:
        """Whether this share, 0 to 1, of the seconds has passed since the beginning."""
        return self._clock() - self._begin >= share * self.seconds
