"""What was fitted to real frames for the INT8 graph of one dialect, beside the ranges that all dialects share."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

SCHEMA = "edgeseg.fitted/1"
Number = TypeVar("Number", np.int8, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """By name of convolution; those that are not named keep nearest integers and the biases that they have.

    `integers`: int8 weights of the weights' shape, from adaptive rounding. `biases`: float32 (K,), corrected.
    `learned`: an FP32 graph with the weights that recovery found for this dialect, in the place of the network's own.
    """

    integers: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    learned: bytes | None = None


def to_json(fitted: Fitted) -> str:
    """Integers and biases as a document edgeseg.fitted/1; `learned` is a graph, and is kept beside it."""
    parts: dict[str, Mapping[str, NDArray[Any]]] = {"integers": fitted.integers, "biases": fitted.biases}
    rows = {kind: {node: _row(value) for node, value in sorted(part.items())} for kind, part in parts.items()}
    return json.dumps({"schema": SCHEMA, **rows}, indent=1)


def from_json(text: str, learned: bytes | None = None) -> Fitted:
    """The opposite of `to_json`. Raises ValueError for anything else than such a document."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        came = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"a document {SCHEMA} was expected, got {came!r}")
    integers = {node: _array(row, np.int8, node) for node, row in _rows(document, "integers").items()}
    biases = {node: _array(row, np.float32, node) for node, row in _rows(document, "biases").items()}
    if wrong := [node for node, value in biases.items() if value.ndim != 1 or not np.isfinite(value).all()]:
        raise ValueError(f"the bias of '{wrong[0]}' is no row of finite numbers")
    return Fitted(integers, biases, learned)


def _rows(document: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    rows = document.get(kind)
    if not isinstance(rows, dict):
        raise ValueError(f"'{kind}' was expected to be an object")
    return rows


def _row(value: NDArray[Any]) -> dict[str, Any]:
    stored = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    return {"shape": list(value.shape), "data": base64.b64encode(stored.tobytes()).decode()}


def _array(row: Any, kind: type[Number], node: str) -> NDArray[Number]:
    try:
        shape, data = tuple(row["shape"]), base64.b64decode(row["data"], validate=True)
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"{shape} is no shape")
        return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).astype(kind).reshape(shape)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"the numbers of '{node}' are damaged: {error}") from error
