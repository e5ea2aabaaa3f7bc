"""Cross-layer equalization: what one convolution makes smaller the next makes larger, and eight bits serve both.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.1, over
every class of channels that scale together (edgeseg/quantize/channels.py) instead of over pairs only: residual sums,
concatenations and readers of one tensor take part. Given the ranges of activations on real frames, these are weighed
against the range of the columns that read them, as in Xiao et al., "SmoothQuant" (2022): weights have a scale for each
output channel in every dialect, activations only one for all channels, and a depthwise convolution takes up any factor
for nothing. High-bias absorption, their section 4.1.3, changes the function where a ReLU is off somewhere: left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.quantize.channels import Channels, Classes, by_group, from_groups, own_constant
from edgeseg.quantize.correct import Probe
from edgeseg.quantize.dialects import Dialect
from edgeseg.quantize.placement import place
from edgeseg.types import Frames, OnnxModel

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float64]
Activations = list[tuple[Classes, Array]]

LARGEST = 1024.0  # no factor is larger, nor its reciprocal: channels further apart do not matter, and FP16 may follow
ROUNDS = 60
CONVERGED = 0.02  # in log2: far below a power of two


@dataclass(frozen=True, slots=True)
class Pair:
    """Two convolutions, by node, and the largest factor (or its reciprocal) between a channel of theirs; above 1."""

    first: str
    second: str
    largest: float


@dataclass(frozen=True, slots=True)
class Equalized:
    """The same function in other weights. `skipped`: convolution → why its outputs could not be scaled."""

    model: OnnxModel
    pairs: tuple[Pair, ...]
    skipped: dict[str, str]


@dataclass(frozen=True, slots=True)
class ChannelRanges:
    """`largest`: tensor → the largest magnitude of each channel (C,). `groups`: which tensors share one scale."""

    largest: Mapping[str, NDArray[np.float32]]
    groups: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class _Layer:
    """A convolution, as far as ranges go: magnitudes (groups, outputs, inputs) and the classes on both sides."""

    node: onnx.NodeProto
    ranges: Array
    outputs: Classes  # (groups, outputs)
    inputs: Classes | None  # (groups, inputs); None where what it reads cannot be scaled


def scalable(model: OnnxModel, dialect: Dialect) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    """The tensors that the dialect quantizes and that convolutions can scale; and all groups that share one scale."""
    graph = Graph(model.graph)
    channels = Channels(graph)
    quantizers = place(graph, dialect).quantizers
    return sorted(tensor for tensor in quantizers if tensor in channels.of), tuple(dict.fromkeys(quantizers.values()))


def channel_ranges(model: OnnxModel, probe: Probe, frames: Iterable[Frames], dialect: Dialect) -> ChannelRanges:
    """What was seen of every tensor that the dialect quantizes and that convolutions can scale."""
    tensors, groups = scalable(model, dialect)
    found: dict[str, NDArray[np.float32]] = {}
    for _ in followed(probe(model.graph, tensors, frames) if tensors else (), tensors, found):
        pass
    return ChannelRanges(found, groups)


def followed(
    batches: Iterable[Mapping[str, NDArray[Any]]], tensors: Sequence[str], found: dict[str, NDArray[np.float32]]
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The batches as they come, while `found` gathers the largest magnitude of each channel of the tensors."""
    for values in batches:
        for tensor in tensors:
            value = values[tensor]
            over = (0, *range(2, value.ndim))
            largest = np.maximum(value.max(axis=over), -value.min(axis=over))
            found[tensor] = np.maximum(found[tensor], largest) if tensor in found else largest
        yield values


def equalized(
    model: OnnxModel, *, seen: ChannelRanges | None = None, bitwise: bool = False, strength: float = 1.0
) -> Equalized:
    """The model with scaled weights, which answers as before to float32 rounding.

    `seen`: from `channel_ranges`, weighs activations against weights, for one dialect. Without it rows of weights are
    weighed against the columns that read them, which serves engines with one scale for all weights of a layer and costs
    1 to 3 dB in dialects with a scale for each channel. `bitwise`: powers of two as factors, so that every score stays
    bit for bit, where nothing underflows; the ranges then fit less well. `strength`, 0 to 1: the power that factors are
    raised to; at 1 the extremes of every channel decide about a tensor's range, and frames that were not seen reach
    further in one channel or another. Raises ModelError for NaN or infinity in
    weights or ranges.
    """
    graph = Graph(model.graph)
    channels = Channels(graph)
    layers = [_layer(graph, channels, node) for node in channels.scalable]
    activations = None if seen is None else _activations(channels, seen)
    logs = strength * _factors(channels, layers, activations)
    factors = np.exp2(np.rint(logs) if bitwise else logs)
    skipped: dict[str, str] = {}
    for layer in layers:
        reasons = [channels.pinned[one] for one in layer.outputs.ravel().tolist() if one in channels.pinned]
        if len(reasons) == layer.outputs.size:
            skipped[layer.node.name] = reasons[0]
    pairs = tuple(_pairs(layers, factors))
    if not pairs:
        return Equalized(model, (), skipped)
    for layer in layers:
        _scale(graph, layer, factors)
    for shift in channels.shifts:
        value = graph.constant(shift.node.input[shift.position])
        assert value is not None
        by = factors[shift.classes]
        by = by if shift.rank == 1 else by.reshape(-1, 1, 1)
        if bool((by != 1).any()):
            own_constant(graph, shift.node, shift.position, (value.astype(np.float64) / by).astype(np.float32))
    return Equalized(replace(model, graph=graph.finish([])), pairs, skipped)


def _layer(graph: Graph, channels: Channels, node: onnx.NodeProto) -> _Layer:
    weights = graph.constant(node.input[1])
    assert weights is not None
    if not np.isfinite(weights).all():
        raise ModelError(f"the weights '{node.input[1]}' of '{node.name}' hold NaN or infinity; look at the checkpoint")
    ranges = np.abs(by_group(weights.astype(np.float64), node)).max(axis=3, initial=0.0)
    groups, outputs, inputs = ranges.shape
    read = channels.of.get(node.input[0])
    return _Layer(
        node,
        ranges,
        channels.of[node.output[0]].reshape(groups, outputs),
        None if read is None or len(read) != groups * inputs else read.reshape(groups, inputs),
    )


def _activations(channels: Channels, seen: ChannelRanges) -> Activations:
    """The classes of all tensors that share a scale, and the largest magnitude of each channel of them."""
    for tensor, ranges in seen.largest.items():
        if not np.isfinite(ranges).all():
            raise ModelError(f"the ranges of '{tensor}' hold NaN or infinity; look at the frames and at its producer")
    found: Activations = []
    for group in seen.groups:
        known = [tensor for tensor in group if tensor in seen.largest and tensor in channels.of]
        if known:
            classes = np.concatenate([channels.of[tensor] for tensor in known])
            found.append((classes, np.concatenate([seen.largest[tensor] for tensor in known]).astype(np.float64)))
    return found


def _components(channels: Channels, layers: list[_Layer]) -> list[Classes]:
    """Free classes that meet in a tensor which a convolution reads, together: a constant factor of all is no use."""
    parent: dict[int, int] = {}

    def find(one: int) -> int:
        while parent.setdefault(one, one) != one:
            one = parent[one]
        return one

    for layer in layers:
        if layer.inputs is not None:
            classes = layer.inputs.ravel().tolist()
            for other in classes[1:]:
                roots = sorted((find(classes[0]), find(other)))
                parent[roots[1]] = roots[0]
    members: dict[int, list[int]] = defaultdict(list)
    for one in sorted(parent):
        members[find(one)].append(one)
    return [np.array(found) for found in members.values() if any(one not in channels.pinned for one in found)]


def _factors(channels: Channels, layers: list[_Layer], activations: Activations | None) -> Array:
    """log2 of what each class is divided by: 0 for pinned classes and those with nothing on one side."""
    logs = np.zeros(len(channels))
    free = np.ones(len(channels), bool)
    free[list(channels.pinned)] = False
    components = _components(channels, layers)
    made = [[layer for layer in layers if np.isin(layer.outputs, classes).any()] for classes in components]
    read = [
        [one for one in layers if one.inputs is not None and np.isin(one.inputs, classes).any()]
        for classes in components
    ]
    for _ in range(ROUNDS):
        largest = 0.0
        for classes, producers, readers in zip(components, made, read, strict=True):
            first = _rows(producers, logs) if activations is None else _shares(activations, logs)
            second = _columns(readers, logs, relative=activations is not None)
            good = classes[(first[classes] > 0) & (second[classes] > 0)]
            moving = good[free[good]]
            if not len(moving):
                continue
            # A constant factor of all is no use; where some are pinned, the others are brought to the best of these,
            # which sets the range.
            fixed = good[~free[good]]
            ratios = [np.log2(first[some]) - np.log2(second[some]) for some in (moving, fixed)]
            step = 0.5 * (ratios[0] - (ratios[1].max() if len(fixed) else ratios[0].mean()))
            was = logs[moving].copy()
            bound = np.log2(LARGEST)
            logs[moving] = np.clip(was + step, -bound, bound)
            largest = max(largest, float(np.abs(logs[moving] - was).max()))
        if largest < CONVERGED:
            break
    return logs


def _scaled(layer: _Layer, logs: Array) -> Array:
    scaled: Array = layer.ranges * np.exp2(-logs[layer.outputs])[:, :, None]
    return scaled if layer.inputs is None else scaled * np.exp2(logs[layer.inputs])[:, None, :]


def _shares(activations: Activations, logs: Array) -> Array:
    """For each class its share, up to 1, in the ranges of the tensors that it is part of: their geometric mean.

    The largest of the shares would not do: classes that fill one tensor could become as small as they like in another,
    where a class that cannot be scaled sets the range.
    """
    total, count = np.zeros(len(logs)), np.zeros(len(logs))
    for classes, ranges in activations:
        scaled = ranges / np.exp2(logs[classes])
        here = np.zeros(len(logs))
        np.maximum.at(here, classes, scaled / max(float(scaled.max(initial=0.0)), 1e-300))
        seen = here > 0
        total[seen] += np.log2(here[seen])
        count[seen] += 1
    return np.where(count > 0, np.exp2(total / np.maximum(count, 1)), 0.0)


def _rows(layers: list[_Layer], logs: Array) -> Array:
    """For each class the largest weight that makes it."""
    found = np.zeros(len(logs))
    for layer in layers:
        np.maximum.at(found, layer.outputs, _scaled(layer, logs).max(axis=2, initial=0.0))
    return found


def _columns(layers: list[_Layer], logs: Array, relative: bool) -> Array:
    """For each class the largest weight that reads it; `relative`: to the largest one of the same row."""
    found = np.zeros(len(logs))
    for layer in layers:
        ranges = _scaled(layer, logs)
        if relative:
            rows = ranges.max(axis=2, keepdims=True, initial=0.0)
            ranges = ranges / np.where(rows > 0, rows, 1.0)
        assert layer.inputs is not None
        np.maximum.at(found, layer.inputs, ranges.max(axis=1, initial=0.0))
    return found


def _pairs(layers: list[_Layer], factors: Array) -> Iterable[Pair]:
    for first in layers:
        for second in layers:
            if second.inputs is None:
                continue
            common = np.intersect1d(first.outputs, second.inputs)
            largest = float(np.exp2(np.abs(np.log2(factors[common])).max(initial=0.0)))
            if largest > 1.0:
                yield Pair(first.node.name, second.node.name, largest)


def _scale(graph: Graph, layer: _Layer, factors: Array) -> None:
    node = layer.node
    out = factors[layer.outputs]
    into = np.ones(1) if layer.inputs is None else factors[layer.inputs]
    if bool((out == 1).all()) and bool((into == 1).all()):
        return
    weights = graph.constant(node.input[1])
    assert weights is not None
    by = (into[:, None, :] if layer.inputs is not None else 1.0) / out[:, :, None]
    scaled = by_group(weights.astype(np.float64), node) * by[..., None]
    own_constant(graph, node, 1, from_groups(scaled, node, weights.shape).astype(np.float32))
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        assert bias is not None
        own_constant(graph, node, 2, (bias.astype(np.float64) / out.ravel()).astype(np.float32))
