"""What an engine is really made of: its layers, the precision each runs in, and where that was measured, its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerPrecision = Literal["int8", "fp16", "bf16", "fp8", "fp32", "other"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a built engine, as its inspector tells it."""

    name: str
    kind: str  # the inspector's word: "CaskConvolution", "gemm", "Reformat", …
    precision: LayerPrecision  # that it computes in
    convolution: bool  # whether it does the multiplications of one or more convolutions
    reformat: bool  # whether it only changes layout or type between others
    nodes: tuple[str, ...] = ()  # names of the ONNX nodes in it, where the inspector tells them
    ms: float | None = None  # median time of one run, where the engine was profiled
