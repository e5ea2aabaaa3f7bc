"""The reference arithmetic against ONNX's own evaluator, and weights against brute force."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import BadWeights, Scheme, affine, dequantize_array, quantize_array, weight_scales
from tests.calibration.reference import least_symmetric_error, quantization_error


def onnx_round_trip(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero_point: NDArray[np.generic], axis: int
) -> list[NDArray[np.generic]]:
    pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    code = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
        ],
        "round_trip",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, scale.shape),
            helper.make_tensor_value_info("z", code, zero_point.shape),
        ],
        [
            helper.make_tensor_value_info("q", code, values.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    outputs = ReferenceEvaluator(model).run(None, {"x": values, "s": scale, "z": zero_point})
    return cast(list[NDArray[np.generic]], outputs)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("axis", [None, 1])
def test_round_trip_is_that_of_onnx(signed: bool, axis: int | None) -> None:
    rng = np.random.default_rng(0)
    scheme = Scheme(signed=signed, symmetric=False)
    values = (rng.standard_normal((4, 3, 50)) * 10).astype(np.float32)
    values[0, :, :20] = np.arange(-10, 10) * 0.5 * 0.125  # halves of a step: rounded to even
    scale = np.array([0.125, 0.031, 0.11] if axis else 0.125, np.float32)
    zero_point = np.array([3, 100, 0] if axis else 7, scheme.dtype)
    codes = quantize_array(values, scale, zero_point, scheme, axis)
    want_codes, want_values = onnx_round_trip(values, scale, zero_point, axis or 1)
    assert codes.dtype == want_codes.dtype
    np.testing.assert_array_equal(codes, want_codes)
    back = dequantize_array(codes, scale, zero_point, axis)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, want_values)


@pytest.mark.parametrize(
    ("scheme", "ends"),
    [
        (Scheme(signed=True, symmetric=True), (-128, 127)),
        (Scheme(signed=True, symmetric=True, narrow=True), (-127, 127)),
        (Scheme(signed=False, symmetric=False), (0, 255)),
        (Scheme(signed=False, symmetric=False, bits=4), (0, 15)),
        (Scheme(signed=True, symmetric=True, bits=4), (-8, 7)),
    ],
)
def test_codes_and_saturation(scheme: Scheme, ends: tuple[int, int]) -> None:
    assert (scheme.lowest, scheme.highest) == ends
    codes = quantize_array(np.array([-1e9, 1e9], np.float32), 1.0, 0, scheme)
    assert codes.tolist() == list(ends)


def test_impossible_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be signed"):
        Scheme(signed=False, symmetric=True)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        Scheme(signed=True, symmetric=True, bits=16)


def test_zero_survives_the_round_trip() -> None:
    rng = np.random.default_rng(1)
    for scheme in (Scheme(signed=True, symmetric=False), Scheme(signed=False, symmetric=False, narrow=True)):
        scale, zero_point = affine(-rng.random(500), rng.random(500), scheme)
        codes = quantize_array(np.zeros(500, np.float32), scale, zero_point, scheme, axis=0)
        assert not dequantize_array(codes, scale, zero_point, axis=0).any()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_weight_scales_clip_nothing(axis: int) -> None:
    weights = np.random.default_rng(2).standard_normal((6, 4, 3, 5)).astype(np.float32)
    scales = weight_scales(weights, axis)
    assert scales.shape == (weights.shape[axis],)
    assert scales.dtype == np.float32
    scheme = Scheme(signed=True, symmetric=True)
    back = dequantize_array(quantize_array(weights, scales, 0, scheme, axis % 4), scales, 0, axis % 4)
    shape = [1] * 4
    shape[axis] = -1
    assert (np.abs(back - weights) <= scales.reshape(shape) * 0.50001).all()
    for i, channel in enumerate(np.moveaxis(weights, axis, 0)):
        assert weight_scales(weights, axis, narrow=True)[i] == np.float32(float(np.abs(channel).max()) / 127)


def test_weight_scales_of_nothing_are_benign() -> None:
    weights = np.zeros((3, 2, 2), np.float32)
    weights[1] = 2.0
    for method in ("max", "mse"):
        assert weight_scales(weights, 0, method=method)[[0, 2]].tolist() == [1.0, 1.0]
        assert weight_scales(weights * np.float32(1e-30), 0, method=method)[1] > 0


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("factor", [1.0, 1e-25])
def test_mse_weight_scales_are_near_the_best(bits: int, factor: float) -> None:
    rng = np.random.default_rng(3)
    rows = np.stack([rng.standard_normal(600), rng.standard_t(3, 600), rng.uniform(-1, 1, 600)])
    weights = (rows * factor).astype(np.float32)
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    least, plain = weight_scales(weights, 0, bits, method="mse"), weight_scales(weights, 0, bits)
    for row, scale, widest in zip(weights.astype(np.float64), least, plain, strict=True):
        error = quantization_error(row, float(scale), 0, lowest, highest)
        assert error <= 1.1 * least_symmetric_error(row, lowest, highest)
        assert error <= quantization_error(row, float(widest), 0, lowest, highest) * (1 + 1e-5)
    if bits == 4:
        assert least[1] < 0.9 * plain[1]  # the heavy tail was clipped


def test_broken_weights_are_refused() -> None:
    weights = np.zeros((3, 2), np.float32)
    weights[1, 0] = np.nan
    with pytest.raises(BadWeights, match=r"channels \[1\] of 3"):
        weight_scales(weights, 0)
