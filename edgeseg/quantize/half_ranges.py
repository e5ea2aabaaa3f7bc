"""What half precision can hold, and what a network needs: the largest magnitudes seen, constants, sums.

float16 ends at 65504, has 11 significant bits from 2^-14 up, and steps of 2^-24 below that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeseg.quantize.half_types import TypedGraph
from edgeseg.types import Frames, OnnxModel

Array = NDArray[Any]
Probe = Callable[[bytes, Sequence[str], Iterable[Frames]], Iterator[Mapping[str, NDArray[Any]]]]
Rounding = Literal["nearest", "up", "down", "saturate"]

MOST = 65504.0
NORMAL = 2.0**-14
HEADROOM = 4.0  # frames not seen may give this many times more than those that were
_LEAST_SNR = 50.0  # dB; float16 has 75 and more for numbers that fit
_GROUP_BYTES = 256 << 20
_UNKNOWN_BYTES = 64 << 20


def largest_seen(model: OnnxModel, probe: Probe, frames: Sequence[Frames]) -> dict[str, float]:
    """The largest magnitude of every real tensor that depends on the frame; inf where one was not finite.

    `probe(graph, tensors, frames)` gives the named tensors for one batch of frames, uint8 (N, H, W, 3), after the
    other. Tensors are asked for in groups of about 256 MB (by their static shapes), so that memory grows neither with
    the number of frames nor with the depth of the network; each group runs the network over all frames once more.
    Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("the largest values need at least one frame")
    typed = TypedGraph(model.graph)
    wanted = [t for node in typed.graph.nodes for t in node.output if t in typed.data and typed.real(t)]
    found: dict[str, float] = {}
    for group in _groups(typed, wanted, max(len(batch) for batch in frames)):
        for values in probe(model.graph, group, frames):
            for tensor, value in values.items():
                found[tensor] = max(found.get(tensor, 0.0), _largest(value))
    return found


def _largest(value: Array) -> float:
    if not value.size:
        return 0.0
    most = max(float(value.max()), -float(value.min()))  # no array of magnitudes: tensors are large
    return most if np.isfinite(most) else float("inf")


def _groups(typed: TypedGraph, tensors: list[str], batch: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for tensor in tensors:
        count = typed.elements(tensor, None)
        fixed = (typed.shapes.get(tensor) or (None,))[:1] == (batch,)
        need = _UNKNOWN_BYTES if count is None else 4 * count * (1 if fixed else batch)
        if group and size + need > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += need
    if group:
        yield group


def to_half(value: Array, rounding: Rounding = "nearest") -> NDArray[np.float16]:
    """The numbers as float16.

    "up" and "down" give the nearest float16 that is not below, not above: a float16 s is >= t exactly if it is
    >= t rounded up. "saturate" keeps finite numbers finite. NaN and infinities stay what they are.
    """
    exact = np.asarray(value, np.float64)
    with np.errstate(over="ignore"):  # what is beyond becomes infinite, and is meant to
        half = np.asarray(np.clip(exact, -MOST, MOST) if rounding == "saturate" else exact).astype(np.float16)
        above, below = np.nextafter(half, np.float16(np.inf)), np.nextafter(half, np.float16(-np.inf))
    if rounding == "saturate":
        return np.where(np.isinf(exact), exact, half).astype(np.float16)
    if rounding == "up":
        return np.where(half.astype(np.float64) < exact, above, half)
    if rounding == "down":
        return np.where(half.astype(np.float64) > exact, below, half)
    return half


def constant_needs_float(value: Array) -> str | None:
    """Why a constant cannot be rounded to float16 without harm; None if it can."""
    exact = np.asarray(value, np.float64)
    finite = exact[np.isfinite(exact)]
    if not finite.size or not finite.any():
        return None
    most = float(np.abs(finite).max())
    half = to_half(finite).astype(np.float64)
    if not np.isfinite(half).all():
        return f"a constant of {most:.3g} is beyond the {MOST:.0f} of half precision"
    snr = snr_db(finite, half)
    if snr >= _LEAST_SNR:
        return None
    lost = float(np.mean((half == 0) & (finite != 0)))
    return (
        f"constants of at most {most:.3g} keep {snr:.0f} dB in half precision, {100 * lost:.0f} % of them become zero"
    )


def partial_sums(weights: Array, axis: int | None, largest_input: float) -> float:
    """What the sums of products of a convolution or matrix product may reach on the way.

    For independent terms of mean zero, each at most largest_input · |w|, Hoeffding's inequality (1963) leaves 7 in
    10 000 outputs a sum beyond 4 · largest_input · the norm of the weights. `axis`: of the outputs; None: one output.
    """
    axes = tuple(a for a in range(weights.ndim) if axis is None or a != axis % weights.ndim)
    norms = np.sqrt(np.sum(np.asarray(weights, np.float64) ** 2, axis=axes))
    return float(4.0 * largest_input * np.max(norms)) if np.size(norms) else 0.0


def half_scales(integers: Array, scales: Array) -> tuple[Array, NDArray[np.float16], str | None]:
    """Weights int8 (K, …) and their scales (K,) or () with scales of float16, and why these will not do, if so.

    Rounding a scale moves no weight by more than 127 / 2048 of a step, so the integers stay. A scale below the
    smallest normal float16 is raised to it, and its channel rounded again: harmless to a channel that batch norm
    switched off, and refused where it costs the tensor more than 50 dB.
    """
    exact = np.asarray(scales, np.float64)
    raised = np.maximum(exact, NORMAL)
    half = to_half(raised)
    if not np.isfinite(half).all():
        return integers, half, f"its steps of up to {float(exact.max()):.3g} are beyond half precision"
    shape = (-1, *[1] * (integers.ndim - 1)) if exact.ndim else ()
    step = exact.reshape(shape)
    made = np.where(
        (exact < NORMAL).reshape(shape), np.rint(integers * step / half.astype(np.float64).reshape(shape)), integers
    )
    values, new = integers * step, made * half.astype(np.float64).reshape(shape)
    if values.any() and snr_db(values, new) < _LEAST_SNR:
        least = float(exact.min())
        return integers, half, f"its weights' steps of {least:.3g} are below the normal numbers of half precision"
    return made.astype(integers.dtype), half, None


def snr_db(reference: Array, other: Array) -> float:
    """10 log10(sum r² / sum (r - o)²) in float64; inf where they are equal."""
    noise = float(np.sum((np.asarray(reference, np.float64) - other) ** 2))
    power = float(np.sum(np.asarray(reference, np.float64) ** 2))
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(power / noise)) if power else -float("inf")
