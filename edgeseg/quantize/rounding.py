"""Adaptive rounding: each weight to the integer that serves the layer's output, which is not always the nearest.

For a row w of a convolution, read as a matrix, and patches x of its quantized inputs, the error of integers q of scale
s is s² uᵀHu with u = q - w/s and H the second moments of x (edgeseg/quantize/integers.py brings it down). A layer keeps
its new integers only if frames that were held out confirm a gain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration import ScaleTable
from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.quantize.correct import Probe
from edgeseg.quantize.dialects import Dialect
from edgeseg.quantize.integers import Array, Integers, adapt, error
from edgeseg.quantize.placement import Placement, place
from edgeseg.quantize.weights import rounded
from edgeseg.quantize.write import quantize, weight_name
from edgeseg.types import Frames, OnnxModel

if TYPE_CHECKING:
    import onnx

LARGEST = 2600  # inputs of one output (channels times kernel): beyond, moments and their factor take half a GB
MEMORY = 256 * 2**20  # bytes of moments that are collected at a time
LEAST_GAIN = 0.05  # dB on held-out frames: less is chance, and not worth other integers
_PATCHES = 8  # patches wanted for each input of an output: below some 4, moments of that many inputs are noise


@dataclass(frozen=True, slots=True)
class Rounding:
    """What adaptive rounding found, by node.

    `integers`: int8 (K, C / groups, kh, kw), for `quantize(..., rounding=…)`. `gained`: how many dB less the layer's
    output errs on held-out frames than with nearest integers, for those. `left`: why a layer keeps nearest integers.
    """

    integers: dict[str, Integers] = field(default_factory=dict)
    gained: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Window:
    """The patches that one convolution reads."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    groups: int


class Moments:
    """Σ x xᵀ and Σ x over patches x (D,), for each group of a convolution: streamed, memory of groups · D²."""

    def __init__(self, groups: int, size: int) -> None:
        self.count = 0
        self._second = np.zeros((groups, size, size))
        self._first = np.zeros((groups, size))

    def update(self, patches: NDArray[np.float32]) -> None:
        """`patches`: float32 (groups, N, D)."""
        self.count += patches.shape[1]
        self._second += np.matmul(patches.transpose(0, 2, 1), patches)
        self._first += patches.sum(1, dtype=np.float64)

    def compute(self, centred: bool) -> Array:
        """E[x xᵀ], or the covariance: float64 (groups, D, D). Zeros if nothing was seen."""
        count = max(self.count, 1)
        second, mean = self._second / count, self._first / count
        return second - mean[:, :, None] * mean[:, None, :] if centred else second


def adapted(
    model: OnnxModel,
    table: ScaleTable,
    dialect: Dialect,
    probe: Probe,
    frames: Sequence[Frames],
    biases: Mapping[str, NDArray[np.float32]] | None = None,
    *,
    placement: Placement | None = None,
    centred: bool = False,
    held_out: float = 0.25,
    stages: int = 1,
    seconds: float = 600.0,
) -> Rounding:
    """Integers for the weights of the convolutions that the dialect quantizes, where they pay.

    `probe(graph, tensors, frames)` as for `corrected_biases`; the network that gives the inputs is the quantized one,
    emulated by Q/DQ, with `biases` if given. Layers of one stage see the integers found in the stages before, and
    nearest ones in their own; more stages cost more passes over the frames, and on trained networks changed gains by
    0.1 dB. `centred`: moments about the mean, for when a bias correction follows, which then must; on trained networks
    it gave 0.3 dB less than the default, which needs none.
    `held_out`: share of the frames, 0 to 1 exclusive, the last ones, that only judge. After `seconds` the layers not
    yet reached keep nearest integers. Raises ValueError for fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"adaptive rounding needs two frames at least, one of them to judge by; got {len(frames)}")
    if not (0 < held_out < 1 and stages >= 1):
        raise ValueError(f"0 < held_out < 1 and stages >= 1 were expected, got {held_out} and {stages}")
    began = time.monotonic()
    graph = Graph(model.graph)
    placement = placement or place(graph, dialect)
    emulated = replace(dialect, fake=False, integer_bias=False)
    written = Graph(quantize(model, table, emulated, placement=placement, bias=biases).graph)
    quantized = {node.name: node for node in written.nodes}
    found = Rounding()
    chosen: list[tuple[onnx.NodeProto, NDArray[np.float32], _Window]] = []
    for node in graph.nodes:
        if node.name not in placement.convolutions:
            continue
        weights = graph.constant(node.input[1])
        assert weights is not None
        size = int(np.prod(weights.shape[1:]))
        if node.op_type != "Conv" or weights.ndim != 4:
            found.left[node.name] = f"only convolutions of images are known, this is a {node.op_type}"
        elif size > LARGEST:
            found.left[node.name] = f"each output reads {size} inputs, more than the {LARGEST} that are affordable"
        elif (window := _window(node, weights)) is None:
            found.left[node.name] = "it pads by auto_pad, which a simplified graph (onnxslim) states in numbers"
        else:
            chosen.append((node, weights, window))
    judges = max(1, round(held_out * len(frames)))
    for stage in _staged(chosen, stages):
        if time.monotonic() - began > seconds:
            found.left.update({node.name: f"not reached within {seconds:.0f} s" for node, _, _ in stage})
            continue
        tensors = {node.name: quantized[node.name].input[0] for node, _, _ in stage}
        fitting, judging = _moments(written, stage, tensors, probe, frames, len(frames) - judges)
        for node, weights, window in stage:
            if time.monotonic() - began > seconds:
                found.left[node.name] = f"not reached within {seconds:.0f} s"
                continue
            integers, scales = rounded(weights, dialect.weight_bits)
            if not np.isfinite(fitting[node.name].compute(False)).all():
                raise ModelError(f"the input '{tensors[node.name]}' of '{node.name}' holds NaN or infinity")
            moments, judge = (one[node.name].compute(centred) for one in (fitting, judging))
            exact = weights.astype(np.float64) / scales.reshape(-1, 1, 1, 1)
            limit = 2 ** (dialect.weight_bits - 1) - 1
            better = adapt(exact, moments, window.groups, limit)
            was, now = (error(kind - exact, judge, window.groups, scales) for kind in (integers, better))
            gain = 10 * float(np.log10(was / now)) if now > 0 else 0.0
            if gain < LEAST_GAIN or not np.isfinite(gain):
                found.left[node.name] = f"held-out frames do not confirm a gain: {gain:+.2f} dB"
                continue
            found.integers[node.name], found.gained[node.name] = better, gain
            written.replace_constant(weight_name(node.name), better)
    return found


def _staged(
    chosen: Sequence[tuple[onnx.NodeProto, NDArray[np.float32], _Window]], stages: int
) -> Iterator[list[tuple[onnx.NodeProto, NDArray[np.float32], _Window]]]:
    """The layers, in order, in about as many parts, each with moments that fit into MEMORY."""
    each = -(-len(chosen) // stages)
    part: list[tuple[onnx.NodeProto, NDArray[np.float32], _Window]] = []
    used = 0
    for one in chosen:
        size = 2 * 8 * one[2].groups * int(np.prod(one[1].shape[1:])) ** 2
        if part and (len(part) == each or used + size > MEMORY):
            yield part
            part, used = [], 0
        part.append(one)
        used += size
    if part:
        yield part


def _moments(
    written: Graph,
    stage: Sequence[tuple[onnx.NodeProto, NDArray[np.float32], _Window]],
    tensors: Mapping[str, str],
    probe: Probe,
    frames: Sequence[Frames],
    fitting: int,
) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """The moments of each layer's patches, of the first `fitting` frames and of the others."""
    sets: tuple[dict[str, Moments], dict[str, Moments]] = ({}, {})
    for node, weights, window in stage:
        for kind in sets:
            kind[node.name] = Moments(window.groups, int(np.prod(weights.shape[1:])))
    wanted = sorted(set(tensors.values()))
    random = np.random.default_rng(0)  # of positions; the same in every run
    probed = probe(written.model.SerializeToString(), wanted, frames)
    for index, values in enumerate(probed):
        for node, weights, window in stage:
            size = int(np.prod(weights.shape[1:]))
            most = max(512, -(-_PATCHES * size // max(fitting, 1)))
            into = sets[0] if index < fitting else sets[1]
            into[node.name].update(patches(values[tensors[node.name]], window, most, random))
    return sets


def patches(
    values: NDArray[Any], window: _Window, most: int, random: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """What a convolution reads at output positions, at most so many an image: float32 (groups, N, D).

    `values`: (B, C, H, W). Padding reads as zeros. D counts channels of the group first, then rows, then columns.
    """
    (top, left, bottom, right), (kh, kw) = window.pads, window.kernel
    padded = np.pad(values.astype(np.float32, copy=False), ((0, 0), (0, 0), (top, bottom), (left, right)))
    channels, height, width = padded.shape[1:]
    rows = (height - window.dilations[0] * (kh - 1) - 1) // window.strides[0] + 1
    columns = (width - window.dilations[1] * (kw - 1) - 1) // window.strides[1] + 1
    found = []
    for image in padded:
        positions = np.arange(rows * columns)
        if len(positions) > most:
            random = random or np.random.default_rng(0)
            positions = np.sort(random.choice(len(positions), most, replace=False))
        y = (positions // columns * window.strides[0])[:, None] + window.dilations[0] * np.arange(kh)
        x = (positions % columns * window.strides[1])[:, None] + window.dilations[1] * np.arange(kw)
        read = image[:, y[:, :, None], x[:, None, :]]  # (C, N, kh, kw)
        apart = read.reshape(window.groups, channels // window.groups, len(positions), kh * kw)
        found.append(apart.transpose(0, 2, 1, 3).reshape(window.groups, len(positions), -1))
    return np.concatenate(found, axis=1)


def _window(node: onnx.NodeProto, weights: NDArray[Any]) -> _Window | None:
    given = {attribute.name: attribute for attribute in node.attribute}

    def pair(name: str) -> tuple[int, int]:
        first, second = given[name].ints if name in given else (1, 1)
        return first, second

    kernel = (int(weights.shape[2]), int(weights.shape[3]))
    automatic = given["auto_pad"].s if "auto_pad" in given else b"NOTSET"
    if automatic not in (b"NOTSET", b"VALID"):
        return None
    top, left, bottom, right = given["pads"].ints if "pads" in given and automatic != b"VALID" else (0, 0, 0, 0)
    groups = given["group"].i if "group" in given else 1
    return _Window(kernel, pair("strides"), pair("dilations"), (top, left, bottom, right), groups)
