"""The values that the stages of edgeseg hand to one another. Frozen; no behaviour beyond their own consistency.

Arrays: a frame is uint8 (H, W, 3) in the order that the spec names, a mask is uint8 (H, W) of class indices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

Pixels = NDArray[np.uint8]  # (H, W, 3), one frame
Frames = NDArray[np.uint8]  # (N, H, W, 3), a batch of frames
Mask = NDArray[np.uint8]  # (H, W), class indices
Masks = NDArray[np.uint8]  # (N, H, W)
Floats = NDArray[np.float32]

Color = Literal["rgb", "bgr"]
Interpolation = Literal["bilinear", "nearest", "area", "bicubic"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

FRAME = "frame"  # name of the graph's input: uint8 (N, H, W, 3)
LOGITS = "logits"  # name of the tensor before the decision: float32 (N, C, H, W), at the input's resolution
MASK = "mask"  # name of the graph's output: uint8 (N, H, W)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a frame becomes what the network was trained on."""

    size: tuple[int, int]  # height, width in pixels
    color: Color = "rgb"  # the order the network was trained with
    frame: Color = "bgr"  # the order frames come in: OpenCV's by default
    scale: float = 255.0  # pixels are divided by this, then normalised
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in the network's colour order
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Interpolation = "bilinear"  # a frame of another size is resized so, outside the graph


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Which output holds the scores, and what they mean."""

    index: int | str = 0  # position, or key of a dict, of the output that holds the scores
    classes: tuple[str, ...] = ()
    activation: Literal["logits", "probabilities"] = "logits"  # matters for one channel only
    threshold: float = 0.5  # one channel: probability from which a pixel is class 1
    align_corners: bool = False  # scores smaller than the frame are upsampled bilinearly in this way

    @property
    def score_threshold(self) -> float:
        """One channel: the score from which a pixel is class 1, of a probability itself or of its logit."""
        p = self.threshold
        return p if self.activation == "probabilities" else math.log(p / (1.0 - p))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What must be known about a network besides its weights; the content of SPEC.toml."""

    name: str
    input: InputSpec
    output: OutputSpec = field(default_factory=OutputSpec)
    factory: str | None = None  # "module:function", for a state dict
    factory_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Torch:
    """A trained network as torch runs it: float32, on the CPU, in eval mode; a callable of (N, 3, H, W)."""

    module: nn.Module
    form: Literal["state_dict", "torchscript", "exported", "pickle"]  # how the file held it
    exported: ExportedProgram | None = None  # the program itself, where form is "exported"


@dataclass(frozen=True, slots=True)
class Onnx:
    """A trained network as someone exported it: a serialized onnx.ModelProto with its weights inside."""

    graph: bytes


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A complete graph: uint8 frame in, uint8 mask out (FRAME, MASK), and LOGITS before the decision."""

    graph: bytes  # a serialized onnx.ModelProto
    spec: ModelSpec
    precision: Precision = "fp32"

    @property
    def digest(self) -> str:
        """SHA-256 of the graph's bytes, hexadecimal."""
        return hashlib.sha256(self.graph).hexdigest()


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame of a data set, as stored: not yet resized to the network's input."""

    name: str  # unique in its split
    pixels: Pixels
    label: Mask | None = None  # at its own resolution; ignore_index where nothing is known
