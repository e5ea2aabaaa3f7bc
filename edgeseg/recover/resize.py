"""ONNX Resize in torch: nearest, linear and cubic, with every rule for coordinates but that of regions.

An output position is a sum of a few input positions along each axis; which ones, and how much of each, is computed as
the operator's definition says, in float32. Where torch has the same operation, torch's is used: it is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Taps = list[tuple[NDArray[np.int64], NDArray[np.float32]]]  # (positions, weights), each (length of the output,)
_ROUNDED: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x.astype(np.float64) - 0.5),  # of float32, exact only in float64
    "round_prefer_ceil": lambda x: np.floor(x.astype(np.float64) + 0.5),
}


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] = (),
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Resize of (N, C, ...); the batch keeps its size whatever `sizes` says of it."""
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise ValueError("Resize with antialias, exclude_outside or a kept aspect ratio is not translated")
    if coordinate_transformation_mode == "tf_crop_and_resize" or mode not in ("nearest", "linear", "cubic"):
        raise ValueError(f"Resize with mode {mode} and {coordinate_transformation_mode} is not translated")
    along = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
    if sizes is not None and sizes.numel():
        lengths = dict(zip(along, (int(size) for size in sizes.tolist()), strict=True))
        factors = {axis: np.float32(length / x.shape[axis]) for axis, length in lengths.items()}
    elif scales is not None and scales.numel():
        factors = dict(zip(along, scales.cpu().numpy().astype(np.float32), strict=True))
        lengths = {axis: int(np.floor(x.shape[axis] * factor)) for axis, factor in factors.items()}
    else:
        raise ValueError("Resize needs scales or sizes")
    changed = [axis for axis in along if axis != 0 and (lengths[axis] != x.shape[axis] or factors[axis] != 1)]
    fast = _by_torch(x, lengths, factors, changed, mode, coordinate_transformation_mode, nearest_mode)
    if fast is not None:
        return fast
    for axis in changed:
        length, factor = x.shape[axis], factors[axis]
        places = _places(length, lengths[axis], factor, coordinate_transformation_mode)
        x = _gathered(x, axis, _taps(places, length, mode, nearest_mode, cubic_coeff_a))
    return x


def _by_torch(
    x: Tensor, lengths: dict[int, int], factors: dict[int, np.float32], changed: list[int], mode: str, rule: str,
    nearest: str,
) -> Tensor | None:  # fmt: skip
    if x.dim() != 4 or not changed or not set(changed) <= {2, 3} or not x.is_floating_point():
        return None
    size = [lengths.get(axis, x.shape[axis]) for axis in (2, 3)]
    if any(x.shape[axis] * float(factors[axis]) != lengths[axis] for axis in changed):
        return None  # torch takes the ratio of the lengths for the factor
    whole = all(lengths[axis] % x.shape[axis] == 0 for axis in changed)
    if mode == "nearest" and rule == "asymmetric" and nearest == "floor" and whole:
        return functional.interpolate(x, size=size, mode="nearest")
    larger = min(size) > 1
    if mode == "linear" and (rule == "half_pixel" or (rule == "pytorch_half_pixel" and larger)):
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    if mode == "linear" and rule == "align_corners" and larger:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return None


def _places(length: int, wanted: int, factor: np.float32, rule: str) -> NDArray[np.float32]:
    """Where in the input each position of the output lies: float32 (wanted,)."""
    x = np.arange(wanted, dtype=np.float32)
    one = np.float32(1)
    half = np.float32(0.5)
    if rule == "asymmetric":
        return x / factor
    if rule == "align_corners":
        return x * np.float32(length - 1) / np.float32(wanted - 1) if wanted > 1 else np.zeros(1, np.float32)
    if rule == "pytorch_half_pixel" and wanted == 1:
        return np.zeros(1, np.float32)
    if rule in ("half_pixel", "pytorch_half_pixel"):
        return (x + half) / factor - half
    if rule == "half_pixel_symmetric":
        adjustment = np.float32(wanted) / (factor * np.float32(length))
        offset = np.float32(length) / np.float32(2) * (one - adjustment)
        return offset + ((x + half) / factor - half)
    raise ValueError(f"Resize with coordinates after {rule} is not translated")


def _taps(places: NDArray[np.float32], length: int, mode: str, nearest: str, a: float) -> Taps:
    if mode == "nearest":
        if nearest not in _ROUNDED:
            raise ValueError(f"Resize with nearest_mode {nearest} is not translated")
        chosen = np.clip(_ROUNDED[nearest](places), 0, length - 1).astype(np.int64)
        return [(chosen, np.ones(len(places), np.float32))]
    if mode == "linear":
        places = np.clip(places, 0, length - 1)
        low = np.floor(places).astype(np.int64)
        part = (places - low).astype(np.float32)
        return [(low, 1 - part), (np.minimum(low + 1, length - 1), part)]
    low = np.floor(places).astype(np.int64)
    part = (places - low).astype(np.float64)
    found: Taps = []
    for step in (-1, 0, 1, 2):  # Keys, "Cubic convolution interpolation" (1981)
        d = np.abs(part - step)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weight = np.where(d <= 1, near, far)
        found.append((np.clip(low + step, 0, length - 1), weight.astype(np.float32)))
    return found


def _gathered(x: Tensor, axis: int, taps: Taps) -> Tensor:
    shape = [-1 if place == axis else 1 for place in range(x.dim())]
    found: Tensor | None = None
    for positions, weights in taps:
        part = x.index_select(axis, torch.from_numpy(positions).to(x.device))
        if len(taps) > 1:
            part = part * torch.from_numpy(weights).to(x.device).view(shape)
        found = part if found is None else found + part
    assert found is not None
    return found
