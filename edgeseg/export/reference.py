"""What the fused graph must compute, written the plain way and independently of how it is fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError
from edgeseg.export import graph as g
from edgeseg.export.foreign import layout_of, settle
from edgeseg.export.outputs import pick
from edgeseg.types import Mask, ModelSpec, Onnx, Pixels, Torch

if TYPE_CHECKING:
    import torch


def torch_reference(model: Torch, spec: ModelSpec) -> Callable[[Pixels], Mask]:
    """Frame to mask in torch: normalise, network, interpolate, decide. A frame is (H, W, 3) of the spec's size."""

    def reference(pixels: Pixels) -> Mask:
        import torch

        with torch.no_grad():
            scores, _ = pick(model.module(torch_input(pixels, spec)), spec.output.index)
            return np.asarray(torch_mask(torch_logits(scores, spec), spec).numpy()[0])

    return reference


def torch_input(pixels: Pixels, spec: ModelSpec) -> torch.Tensor:
    """A frame as the network was trained to take it: float32 (1, 3, H, W)."""
    import torch

    if pixels.shape != (*spec.input.size, 3):
        raise ModelError(f"wanted a frame of {(*spec.input.size, 3)} as the spec says, came {pixels.shape}")
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0).float()
    if spec.input.frame != spec.input.color:
        image = image.flip(1)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (spec.input.mean, spec.input.std))
    return (image / spec.input.scale - mean) / std


def torch_logits(scores: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """The network's scores at the frame's size: float32 (1, C, H, W); class maps as (1, H, W) int64."""
    from torch.nn import functional as F

    if not scores.is_floating_point():
        maps = scores.reshape(scores.shape[0], 1, *scores.shape[-2:])
        if tuple(maps.shape[-2:]) != spec.input.size:
            maps = F.interpolate(maps.float(), size=spec.input.size, mode="nearest")
        return maps[:, 0].long()
    if scores.dim() == 3:
        scores = scores.unsqueeze(1)
    if tuple(scores.shape[-2:]) == spec.input.size:
        return scores.float()
    return F.interpolate(scores.float(), size=spec.input.size, mode="bilinear", align_corners=spec.output.align_corners)


def torch_mask(logits: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    import torch

    if not logits.is_floating_point():
        return logits.to(torch.uint8)
    if logits.shape[1] > 1:
        return logits.argmax(1).to(torch.uint8)
    probability = logits if spec.output.activation == "probabilities" else torch.sigmoid(logits)
    return (probability[:, 0] >= spec.output.threshold).to(torch.uint8)


def onnx_reference(model: Onnx, spec: ModelSpec) -> Callable[[Pixels], Mask]:
    """The same for a foreign graph: NumPy around it, and the graph as it came (at the spec's size) between."""
    proto = settle(g.parse(model.graph), spec, dynamic=False, notes=[])
    call = g.opened(proto.SerializeToString())

    def reference(pixels: Pixels) -> Mask:
        (scores,) = call(onnx_input(proto, pixels, spec)).values()
        return np.asarray(numpy_mask(numpy_logits(scores, spec, layout_of(proto) == "NHWC"), spec)[0])

    return reference


def onnx_input(proto: Any, pixels: Pixels, spec: ModelSpec) -> NDArray[Any]:
    """A frame as the foreign graph `proto` takes it, in its layout and dtype."""
    from onnx import helper

    if pixels.shape != (*spec.input.size, 3):
        raise ModelError(f"wanted a frame of {(*spec.input.size, 3)} as the spec says, came {pixels.shape}")
    ordered = pixels[..., ::-1] if spec.input.frame != spec.input.color else pixels
    image: NDArray[Any] = (ordered.astype(np.float64) / spec.input.scale - spec.input.mean) / spec.input.std
    if layout_of(proto) == "NCHW":
        image = image.transpose(2, 0, 1)
    kind = helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    return np.ascontiguousarray(image[np.newaxis]).astype(kind)


def numpy_logits(scores: NDArray[Any], spec: ModelSpec, channels_last: bool) -> NDArray[Any]:
    """As torch_logits; `channels_last`: scores may be (1, h, w, C)."""
    height, width = spec.input.size
    if scores.dtype.kind in "iub":
        maps = scores.reshape(scores.shape[0], *(size for size in scores.shape[1:] if size != 1))
        rows = np.arange(height) * maps.shape[1] // height
        columns = np.arange(width) * maps.shape[2] // width
        return np.asarray(maps[:, rows][:, :, columns])
    if scores.ndim == 3:
        scores = scores[:, np.newaxis]
    elif channels_last and (scores.shape[1] != len(spec.output.classes) or scores.shape[3] == scores.shape[1]):
        scores = scores.transpose(0, 3, 1, 2)
    if scores.shape[2:] == (height, width):
        return scores.astype(np.float32)
    corners = spec.output.align_corners
    return _along(_along(scores.astype(np.float64), 2, height, corners), 3, width, corners).astype(np.float32)


def numpy_mask(logits: NDArray[Any], spec: ModelSpec) -> NDArray[np.uint8]:
    if logits.dtype.kind in "iub":
        return logits.astype(np.uint8)
    if logits.shape[1] > 1:
        return np.asarray(logits.argmax(axis=1), np.uint8)
    probability = logits if spec.output.activation == "probabilities" else 1.0 / (1.0 + np.exp(-logits))
    return np.asarray(probability[:, 0] >= spec.output.threshold, np.uint8)


def _along(values: NDArray[Any], axis: int, size: int, align_corners: bool) -> NDArray[Any]:
    """Linear interpolation of one axis to `size` samples, edges held."""
    now = values.shape[axis]
    if align_corners:
        at = np.arange(size) * ((now - 1) / (size - 1) if size > 1 else 0.0)
    else:
        at = np.clip((np.arange(size) + 0.5) * (now / size) - 0.5, 0.0, now - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, now - 1)
    part = (at - low).reshape([-1 if at_axis == axis else 1 for at_axis in range(values.ndim)])
    return np.asarray(values.take(low, axis) * (1 - part) + values.take(high, axis) * part)
