"""Folding what is constant and what can be folded (batch norm into convolutions), with a proof that nothing changed."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import need
from edgeseg.export.graph import run, snr_db

if TYPE_CHECKING:
    import onnx

ENOUGH_DB = 80.0  # float32 rounding of a folded batch norm costs about 120 dB; a wrong fold leaves less than 40


def simplified(proto: onnx.ModelProto, sample: NDArray[Any]) -> tuple[onnx.ModelProto, str | None]:
    """`proto` simplified by onnxslim, and None; or `proto` itself and why, if the result does not hold.

    `sample` is an input to compare both on: they must agree to ENOUGH_DB decibels.
    """
    import onnx

    onnxslim = need("onnxslim", extra="build", why="Simplifying the graph")
    before = proto.SerializeToString()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            slim = onnxslim.slim(onnx.load_model_from_string(before))
        new, old = run(slim, sample), run(proto, sample)
    except Exception as error:  # whatever a simplifier trips over, the graph it was given still stands
        return proto, f"not simplified: onnxslim failed ({type(error).__name__}: {str(error).splitlines()[:1]})"
    worst = min(snr_db(old[name], new[name]) if name in new else -np.inf for name in old)
    if worst < ENOUGH_DB:
        return proto, f"not simplified: onnxslim changed the result (signal to noise {worst:.0f} dB)"
    return slim, None
