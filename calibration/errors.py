"""What this package refuses, each with the reason in its message.

CalibrationError            a ValueError; never raised itself
├── BadActivations          NaN, Inf, an empty array, or a frame that lacks a tensor
├── BadWeights              NaN or Inf in weights
├── BadRecipe               a recipe that does not exist, or says something unknown
├── BadScaleTable           a file that is damaged, foreign or newer
├── StaleScaleTable         a table of another model, other data or another recipe
└── UnknownTensor           a tensor that was not seen while calibrating
"""

from __future__ import annotations


class CalibrationError(ValueError):
    pass


class BadActivations(CalibrationError):
    pass


class BadWeights(CalibrationError):
    pass


class BadRecipe(CalibrationError):
    pass


class BadScaleTable(CalibrationError):
    pass


class StaleScaleTable(CalibrationError):
    pass


class UnknownTensor(CalibrationError):
    pass
