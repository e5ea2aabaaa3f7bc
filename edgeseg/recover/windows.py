"""ONNX operators that look at windows of an image, (N, C, H, W): convolutions and pooling, as torch functions.

Conventions as in ops.py. Padding may differ between the sides of an image, as ONNX allows and torch does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Pads = tuple[int, int, int, int]  # top, left, bottom, right


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0), dilations: Sequence[int] = (1, 1), group: int = 1, auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    _image(x, "Conv")
    edges = padding(x, weight.shape[2:], strides, dilations, pads, auto_pad)
    x, even = _padded(x, edges, 0.0)
    return functional.conv2d(x, weight, bias, tuple(strides), even, tuple(dilations), group)


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0), dilations: Sequence[int] = (1, 1), group: int = 1, auto_pad: str = "NOTSET",
    output_padding: Sequence[int] = (0, 0), output_shape: Sequence[int] = (), kernel_shape: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    _image(x, "ConvTranspose")
    if output_shape or auto_pad not in ("NOTSET", "VALID"):
        raise ValueError("ConvTranspose with output_shape or auto_pad is not translated: it wants pads")
    top, left, bottom, right = pads if auto_pad == "NOTSET" else (0, 0, 0, 0)
    even = (top, left) if (top, left) == (bottom, right) else (0, 0)
    found = functional.conv_transpose2d(
        x, weight, bias, tuple(strides), even, tuple(output_padding), group, tuple(dilations)
    )
    if (top, left) == (bottom, right):
        return found
    return found[:, :, top : found.shape[2] - bottom, left : found.shape[3] - right]


def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1), ceil_mode: int = 0, auto_pad: str = "NOTSET", storage_order: int = 0,
) -> Tensor:  # fmt: skip
    _image(x, "MaxPool")
    edges = padding(x, kernel_shape, strides, dilations, pads, auto_pad)
    least = -torch.inf if x.is_floating_point() else int(torch.iinfo(x.dtype).min)
    half = tuple(size // 2 for size in kernel_shape)
    x, even = _padded(x, edges, least, most=half)
    return functional.max_pool2d(x, tuple(kernel_shape), tuple(strides), even, tuple(dilations), bool(ceil_mode))


def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1), ceil_mode: int = 0, auto_pad: str = "NOTSET", count_include_pad: int = 0,
) -> Tensor:  # fmt: skip
    _image(x, "AveragePool")
    if tuple(dilations) != (1, 1):
        raise ValueError("AveragePool with dilations is not translated")
    edges = padding(x, kernel_shape, strides, dilations, pads, auto_pad)
    kernel, steps = tuple(kernel_shape), tuple(strides)
    if not any(edges) or (
        edges[:2] == edges[2:] and not ceil_mode and all(2 * e <= k for e, k in zip(edges, kernel, strict=False))
    ):
        return functional.avg_pool2d(x, kernel, steps, edges[:2], bool(ceil_mode), bool(count_include_pad))
    if ceil_mode:
        raise ValueError("AveragePool with pads and ceil_mode is not translated")
    wide = _all_padded(x, edges, 0.0)
    found = functional.avg_pool2d(wide, kernel, steps)
    if count_include_pad:
        return found
    inside = _all_padded(torch.ones_like(x[:1, :1]), edges, 0.0)
    return found / functional.avg_pool2d(inside, kernel, steps)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def padding(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], auto: str
) -> Pads:
    """Pixels to be added to each side."""
    if auto in ("NOTSET", ""):
        top, left, bottom, right = pads
        return top, left, bottom, right
    if auto == "VALID":
        return 0, 0, 0, 0
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {auto} is not translated")
    first, last = [], []
    for size, window, step, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        needed = max(0, (-(-size // step) - 1) * step + dilation * (window - 1) + 1 - size)
        small, large = needed // 2, needed - needed // 2
        first.append(small if auto == "SAME_UPPER" else large)
        last.append(large if auto == "SAME_UPPER" else small)
    return first[0], first[1], last[0], last[1]


def _padded(x: Tensor, edges: Pads, value: float, most: Sequence[int] | None = None) -> tuple[Tensor, tuple[int, int]]:
    """The image with what torch's own padding cannot do done, and what is left for it."""
    top, left, bottom, right = edges
    fits = most is None or (top <= most[0] and left <= most[1])
    if (top, left) == (bottom, right) and fits:
        return x, (top, left)
    return _all_padded(x, edges, value), (0, 0)


def _all_padded(x: Tensor, edges: Pads, value: float) -> Tensor:
    top, left, bottom, right = edges
    return functional.pad(x, (left, right, top, bottom), value=value)


def _image(x: Tensor, what: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"{what} is translated for images (N, C, H, W), and got {tuple(x.shape)}")


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool, "Conv": conv, "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool, "GlobalMaxPool": global_max_pool, "MaxPool": max_pool,
}  # fmt: skip
