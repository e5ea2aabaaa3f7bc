"""What networks and frames can hold at their worst: a usable quantizer or an error that names the tensor."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import (
    METHODS,
    BadActivations,
    BadWeights,
    Method,
    Recipe,
    Scheme,
    calibrate,
    dequantize_array,
    from_json,
    load_recipe,
    quantize_array,
    quantizer,
    see,
    to_json,
    update,
    weight_scales,
)
from calibration.scheme import SMALLEST_SCALE
from tests.calibration.reference import least_symmetric_error, quantization_error

Values = NDArray[np.float32]
SCHEMES = [
    Scheme(signed=True, symmetric=True),
    Scheme(signed=False, symmetric=False),
    Scheme(signed=True, symmetric=False),
    Scheme(signed=True, symmetric=True, bits=4, narrow=True),
]


def worst() -> dict[str, Values]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(4000)
    values = {
        "zeros": np.zeros(50),
        "negative zeros": -np.zeros(50),
        "one value": np.array([0.25]),
        "constant": np.full(500, -3.7),
        "one of many is not zero": np.append(np.zeros(9999), 1.0),
        "tiny": normal * 1e-30,
        "huge": normal * 1e30,
        "largest": np.append(normal, [3.4028234e38, -3.4028234e38]),
        "subnormal": normal * 1e-40,
        "least": np.array([1e-45, 0.0]),
        "tiny and huge": np.append(normal * 1e-30, 1e30),
        "two values": np.append(np.full(3000, 1.0), np.full(3000, -1.0)),
        "a step above": np.array([1.0, np.nextafter(np.float32(1), np.float32(2))]),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", worst())
def test_every_method_gives_a_usable_quantizer(kind: str, method: Method, scheme: Scheme) -> None:
    values = worst()[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quantizer(see(values), method, scheme)
        again = quantizer(update(see(values), values), method, scheme)
    for one in (found, again):
        assert math.isfinite(one.scale)
        assert SMALLEST_SCALE <= one.scale <= np.finfo(np.float32).max
        assert np.isfinite(np.float32(1) / np.float32(one.scale))
        assert scheme.lowest <= one.zero_point <= scheme.highest
    codes = quantize_array(values, found.scale, found.zero_point, scheme)
    zero = dequantize_array(
        quantize_array(np.zeros(1, np.float32), found.scale, found.zero_point, scheme), found.scale, found.zero_point
    )
    assert zero[0] == 0
    with np.errstate(over="ignore"):  # of the largest float32 by half a step
        back = dequantize_array(codes, found.scale, found.zero_point).astype(np.float64)
    if method == "minmax" and kind != "largest":
        assert np.abs(back - values).max() <= found.scale * 1.0001
    if method == "mse" and kind != "largest":  # never worse than clipping nothing
        whole = quantizer(see(values), "minmax", scheme)
        errors = [
            quantization_error(values.astype(np.float64), q.scale, q.zero_point, scheme.lowest, scheme.highest)
            for q in (found, whole)
        ]
        # from a histogram: a value that lies apart is known to its bin only
        assert errors[0] <= errors[1] * 1.05 + see(values).width ** 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", worst())
def test_tables_of_them_survive_their_file(kind: str, method: Method) -> None:
    recipe = Recipe("r", method)
    table = calibrate(({"t": worst()[kind]} for _ in range(3)), recipe, model="m", data="d")
    assert from_json(to_json(table)) == table


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_tensor_and_the_frame_are_named(bad: float) -> None:
    good = np.ones((1, 2, 3), np.float32)
    broken = good.copy()
    broken[0, 1, 2] = bad
    frames = [{"conv1": good, "relu7": good}, {"conv1": good, "relu7": broken}]
    with pytest.raises(BadActivations, match=r"tensor 'relu7', frame 1: .*1 of 6 are NaN or Inf.*\[0, 1, 2\]"):
        calibrate(frames, load_recipe("mse"), model="m", data="d")
    with pytest.raises(BadActivations, match=r"conv9"):
        see(np.full(4, bad, np.float16), "conv9")


def test_one_frame_is_enough_for_every_method() -> None:
    values = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    for method in METHODS:
        table = calibrate([{"t": values}], Recipe("r", method), model="m", data="d")
        found = table.quantizer("t", SCHEMES[1])
        assert 0.2 < found.high - found.low < 9


@pytest.mark.parametrize("method", ["max", "mse"])
@pytest.mark.parametrize("factor", [1e-45, 1e-40, 1e-30, 1.0, 1e30, 3e38])
def test_weights_of_any_size(method: str, factor: float) -> None:
    rows = np.random.default_rng(2).uniform(-1, 1, (4, 60))
    rows[0], rows[1] = 0.0, -1.0  # a channel that is off, and one of a single value
    weights = (rows * factor).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scales = weight_scales(weights, 0, narrow=True, method=method)  # type: ignore[arg-type]
    assert np.isfinite(scales).all()
    assert (scales >= SMALLEST_SCALE).all()
    assert scales[0] == 1
    for row, scale in zip(weights[1:].astype(np.float64), scales[1:], strict=True):
        codes = np.clip(np.rint(row / float(scale)), -127, 127)
        assert np.abs(codes * float(scale) - row).max() <= 1.5 * float(scale)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 7, 4])
def test_clipping_of_weights_is_near_the_best_in_every_channel(axis: int, bits: int) -> None:
    """Channels of very different sizes and tails, along either axis, against 250 clippings of each."""
    rng = np.random.default_rng(4)
    sizes = np.geomspace(1e-6, 1e4, 8)
    channels = np.stack([rng.standard_t(2 + i, 300) * size for i, size in enumerate(sizes)]).astype(np.float32)
    weights = channels.reshape(8, 30, 10) if axis == 0 else channels.reshape(8, 30, 10).transpose(1, 0, 2)
    scales = weight_scales(weights, axis, bits, narrow=True, method="mse")
    limit = (1 << (bits - 1)) - 1
    for channel, scale in zip(channels.astype(np.float64), scales, strict=True):
        error = quantization_error(channel, float(scale), 0, -limit, limit)
        assert error <= 1.1 * least_symmetric_error(channel, -limit, limit)


def test_broken_weights_are_named() -> None:
    weights = np.ones((3, 2), np.float32)
    weights[2, 1] = np.inf
    with pytest.raises(BadWeights, match=r"conv3.weight: finite weights.*channels \[2\] of 3"):
        weight_scales(weights, 0, name="conv3.weight")
