"""The first stage: a model file becomes a network in memory (`Torch`) or a graph (`Onnx`).

What a file holds is told by its content; the suffix is only a name. Nothing in the file runs code unless the
user trusts it (`trust_pickle`), and an ONNX file needs no torch.
"""

from __future__ import annotations

from edgeseg.intake.fingerprint import fingerprint
from edgeseg.intake.load import load
from edgeseg.types import Onnx, Torch

__all__ = ["Onnx", "Torch", "fingerprint", "load"]
