"""ONNX operators that move values and compute shapes, as torch functions; conventions as in ops.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeseg.recover.resize import resize


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    wanted = [int(size) for size in shape.tolist()]
    if not allowzero:  # 0 keeps the input's size there
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


def transpose(x: Tensor, *, perm: Sequence[int] = ()) -> Tensor:
    return x.permute(*(perm or reversed(range(x.dim()))))


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis % x.dim() if axis < 0 else axis
    first = 1
    for size in x.shape[:axis]:
        first *= size
    return x.reshape(first, -1)


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(int(axis) for axis in axes.tolist()))


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(int(axis) % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def split(x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    """Without sizes into `num_outputs` parts of one size, the last of which may be smaller."""
    if sizes is not None:
        return torch.split(x, [int(size) for size in sizes.tolist()], axis)
    if num_outputs < 1:
        raise ValueError("Split needs its sizes or num_outputs")
    return torch.split(x, -(-x.shape[axis] // num_outputs), axis)


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.dim()
    flat = indices.reshape(-1).long()
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    along = axes.tolist() if axes is not None else list(range(starts.numel()))
    strides = steps.tolist() if steps is not None else [1] * starts.numel()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), along, strides, strict=True):
        axis, length = axis % x.dim(), x.shape[axis]
        start, end, step = slice(int(start), int(end), int(step)).indices(length)  # as Python's own slices
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, max(start, end), step),)]
        else:
            x = x.index_select(axis, torch.arange(start, end, step, device=x.device))
    return x


def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    sizes = [int(size) for size in pads.tolist()]
    count = len(sizes) // 2
    along = [int(axis) % x.dim() for axis in axes.tolist()] if axes is not None else list(range(count))
    edges = {axis: (sizes[place], sizes[count + place]) for place, axis in enumerate(along)}
    flat = [size for axis in reversed(range(x.dim())) for size in edges.get(axis, (0, 0))]
    if mode == "constant":
        return functional.pad(x, flat, value=float(value) if value is not None and value.numel() else 0.0)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        raise ValueError(f"Pad with mode {mode} is not translated")
    while len(flat) > 4 and flat[-2:] == [0, 0]:  # torch pads the last axes by these modes, two of them here
        flat = flat[:-2]
    if len(flat) > 4 or x.dim() != 4:
        raise ValueError(f"Pad with mode {mode} is translated for rows and columns of (N, C, H, W)")
    return functional.pad(x, flat, mode=names[mode])


def expand(x: Tensor, shape: Tensor) -> Tensor:
    return torch.broadcast_to(x, _common(list(x.shape), [int(size) for size in shape.tolist()]))


def _common(a: list[int], b: list[int]) -> list[int]:
    """The shape that both are broadcast to."""
    return list(np.broadcast_shapes(tuple(a), tuple(b)))


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat([int(count) for count in repeats.tolist()])


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    value = torch.zeros(1) if value is None else value
    return torch.full([int(size) for size in shape.tolist()], value.item(), dtype=value.dtype)


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    inner = c // blocksize**2
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    apart = x.reshape(n, blocksize, blocksize, inner, h, w).permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(n, inner, h * blocksize, w * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    apart = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": concat, "ConstantOfShape": constant_of_shape, "DepthToSpace": depth_to_space, "Expand": expand,
    "Flatten": flatten, "Gather": gather, "Pad": pad, "Range": range_, "Reshape": reshape, "Resize": resize,
    "Shape": shape_of, "Size": size_of, "Slice": slice_, "SpaceToDepth": space_to_depth, "Split": split,
    "Squeeze": squeeze, "Tile": tile, "Transpose": transpose, "Unsqueeze": unsqueeze,
}  # fmt: skip
