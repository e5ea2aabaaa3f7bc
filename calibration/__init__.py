"""Calibration: from activations, frame by frame, to the scales of integer tensors. NumPy only; of use without edgeseg.

`calibrate` sees every tensor once and keeps statistics of fixed size. The table it returns says what was seen;
a `Scheme` says what integers an engine wants, and the table derives scale and zero point from both.

>>> import numpy as np
>>> from calibration import Scheme, calibrate, from_json, load_recipe, to_json
>>> frames = ({"relu": np.linspace(0, n, 1001, dtype=np.float32)} for n in (1, 2, 4))
>>> table = calibrate(frames, load_recipe("minmax"), model="a model's hash", data="the frames' hash")
>>> table.frames, table.seen("relu").maximum
(3, 4.0)
>>> table.quantizer("relu", Scheme(signed=False, symmetric=False))  # ONNX Runtime on x86
Quantizer(scale=0.01568627543747425, zero_point=0, low=0.0, high=4.000000236555934)
>>> table.quantizer("relu", Scheme(signed=True, symmetric=True)).zero_point  # TensorRT
0
>>> from_json(to_json(table)) == table
True

Modules, in the order in which they build on each other: errors, extremes and seen (statistics), scheme (integers),
entropy and error (two ways to find a range), ranges (all five, and `quantizer`), weights, recipe, table, files (JSON).
"""

from calibration.entropy import entropy
from calibration.error import expected_error, mse
from calibration.errors import (
    BadActivations,
    BadRecipe,
    BadScaleTable,
    BadWeights,
    CalibrationError,
    StaleScaleTable,
    UnknownTensor,
)
from calibration.extremes import Extremes
from calibration.files import from_json, to_json
from calibration.ranges import METHODS, Method, Range, minmax, moving_average, percentile, quantizer
from calibration.recipe import Recipe, load_recipe, recipe_names
from calibration.scheme import Quantizer, Scheme, affine, dequantize_array, quantize_array
from calibration.seen import Seen, merge, see, unite, update
from calibration.table import SCHEMA, ScaleTable, calibrate, check, merge_tables
from calibration.weights import weight_scales

__all__ = [
    "METHODS",
    "SCHEMA",
    "BadActivations",
    "BadRecipe",
    "BadScaleTable",
    "BadWeights",
    "CalibrationError",
    "Extremes",
    "Method",
    "Quantizer",
    "Range",
    "Recipe",
    "ScaleTable",
    "Scheme",
    "Seen",
    "StaleScaleTable",
    "UnknownTensor",
    "affine",
    "calibrate",
    "check",
    "dequantize_array",
    "entropy",
    "expected_error",
    "from_json",
    "load_recipe",
    "merge",
    "merge_tables",
    "minmax",
    "moving_average",
    "mse",
    "percentile",
    "quantize_array",
    "quantizer",
    "recipe_names",
    "see",
    "to_json",
    "unite",
    "update",
    "weight_scales",
]
