"""Local response normalisation, found again in what both exporters write, against its definition in loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="the networks are torch's")

import torch
from torch import nn

from edgeseg.export import to_onnx
from edgeseg.export.graph import run, run_all
from edgeseg.export.lrn import normalized
from edgeseg.types import InputSpec, ModelSpec, OutputSpec, Torch

SIZE = (10, 14)
SPEC = ModelSpec("norm", InputSpec(SIZE), OutputSpec(classes=tuple("abcde")))


def defined(x: NDArray[Any], size: int, alpha: float, beta: float, k: float) -> NDArray[np.float64]:
    """As torch documents it, channel by channel."""
    x = x.astype(np.float64)
    result = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        result[:, c] = x[:, c] / (k + alpha / size * (near**2).sum(1)) ** beta
    return result


def network(*norms: nn.Module, channels: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *norms).eval()


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.fixture(params=[True, False], ids=["traced", "torch.export"])
def quick(request: Any) -> bool:
    return bool(request.param)


CHEAP = {"Mul", "Reshape", "MatMul", "Add", "Sqrt", "Div", "Pow"}
PARAMETERS = [
    (5, 1e-4, 0.75, 2.0),
    (3, 0.5, 0.75, 1.0),
    (1, 2.0, 1.0, 1.5),
    (7, 1.0, 0.5, 0.25),
    (4, 0.3, 0.75, 2.0),
    (2, 0.3, 2.0, 2.0),
    (9, 0.7, 0.6, 1.0),  # more than there are channels
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@torch.no_grad()
def test_what_both_exporters_write_becomes_a_product(quick: bool, parameters: tuple[int, float, float, float]) -> None:
    module = network(nn.LocalResponseNorm(*parameters))
    made = onnx.load_from_string(to_onnx(Torch(module, "state_dict"), SPEC, quick=quick).graph)
    found = normalized(made)
    onnx.checker.check_model(found, full_check=True)
    assert kinds(found).count("MatMul") == 1
    assert set(kinds(found)) <= {"Conv", "Relu"} | CHEAP
    assert ("Pow" in kinds(found)) == (parameters[2] not in (0.5, 0.75, 1))
    image = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32) * 30
    (given,) = run(found, image).values()
    wanted = defined(module[:2](torch.from_numpy(image)).numpy(), *parameters)  # type: ignore[index]
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)  # the convolution's rounding
    assert [value.name for value in found.graph.output] == [value.name for value in made.graph.output]
    assert normalized(found) == found


def test_two_of_them_and_what_else_reads_the_parts(quick: bool) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.LocalResponseNorm(5, 0.1, 0.75, 2.0)
            self.second = nn.Conv2d(6, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            normed: torch.Tensor = self.norm(self.second(self.norm(x)))
            return normed + x * x

    torch.manual_seed(0)
    made = onnx.load_from_string(to_onnx(Torch(Twice().eval(), "state_dict"), SPEC, quick=quick).graph)
    found = normalized(made)
    assert kinds(found).count("MatMul") == 2
    assert not {"AveragePool", "Pad"} & set(kinds(found))
    image = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32)
    for old, new in zip(run(made, image).values(), run(found, image).values(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_a_free_size_is_no_obstacle(quick: bool) -> None:
    module = network(nn.LocalResponseNorm(5, 0.1, 0.75, 2.0))
    made = onnx.load_from_string(to_onnx(Torch(module, "state_dict"), SPEC, quick=quick, dynamic=True).graph)
    found = normalized(made)
    assert kinds(found).count("MatMul") == 1
    for shape in ((2, 3, 12, 9), (1, 3, 8, 8)):
        image = np.random.default_rng(0).standard_normal(shape, np.float32)
        for old, new in zip(run(made, image).values(), run(found, image).values(), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "k"), [(5, 2.0), (3, 0.5), (1, 1.0)])
def test_the_operator_of_other_exporters(size: int, k: float) -> None:
    x = np.random.default_rng(0).standard_normal((1, 9, 4, 5), np.float32) * 3
    made = alone(helper.make_node("LRN", ["x"], ["y"], size=size, alpha=2.0, bias=k), x.shape)
    found = normalized(made)
    assert set(kinds(found)) <= CHEAP
    (old,), (new,) = run(made, x).values(), run(found, x).values()
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new, defined(x, size, 2.0, 0.75, k), rtol=1e-5, atol=1e-6)


def test_onnxs_window_of_an_even_size_reaches_further_up() -> None:
    """As its definition has it: from c - floor((size - 1) / 2) to c + ceil((size - 1) / 2); torch's further down."""
    x = np.random.default_rng(0).standard_normal((1, 9, 4, 5), np.float32) * 3
    found = normalized(alone(helper.make_node("LRN", ["x"], ["y"], size=4, alpha=2.0, bias=1.0), x.shape))
    (given,) = run(found, x).values()
    np.testing.assert_allclose(given, defined(x[:, ::-1], 4, 2.0, 0.75, 1.0)[:, ::-1], rtol=1e-5, atol=1e-6)
    assert float(np.abs(given - defined(x, 4, 2.0, 0.75, 1.0)).max()) > 0.01


def test_what_float16_could_not_square_it_normalizes() -> None:
    """Values of a thousand: their squares are over what float16 holds, what is squared here is not."""
    x = np.random.default_rng(0).uniform(500, 2000, (1, 9, 4, 5)).astype(np.float32)
    found = normalized(alone(helper.make_node("LRN", ["x"], ["y"], size=5, alpha=1e-4, bias=2.0), x.shape))
    assert max(float(np.abs(value).max()) for value in run_all(found, x).values()) < 65504
    assert float((x * x).max()) > 65504


def alone(node: onnx.NodeProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([node], "alone", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(**changes: Any) -> onnx.ModelProto:
    """The traced form by hand, with something about it changed."""
    how: dict[str, Any] = {
        "pads": [0, 0, 2, 0, 0, 0, 0, 2, 0, 0],
        "value": 0.0,
        "kernel": [5, 1, 1],
        "strides": [1, 1, 1],
        "apart": [1, 1, 6, 4, -1],
        "together": [1, 6, 4, 5],
        "other": "x",
        "exponent": [0.75],
        "k": [2.0],
        "alpha": [0.1],
    } | changes
    nodes = [
        helper.make_node("Mul", ["x", how["other"]], ["square"]),
        helper.make_node("Reshape", ["square", "apart"], ["deep"]),
        helper.make_node("Pad", ["deep", "pads", "value"], ["padded"]),
        helper.make_node("AveragePool", ["padded"], ["mean"], kernel_shape=how["kernel"], strides=how["strides"]),
        helper.make_node("Reshape", ["mean", "together"], ["flat"]),
        helper.make_node("Mul", ["flat", "alpha"], ["scaled"]),
        helper.make_node("Add", ["k", "scaled"], ["sum"]),
        helper.make_node("Pow", ["sum", "exponent"], ["power"]),
        helper.make_node("Div", ["x", "power"], ["y"]),
    ]
    constants = {
        **{name: np.array(how[name], np.int64) for name in ("apart", "pads", "together")},
        **{name: np.array(how[name], np.float32) for name in ("value", "exponent", "k", "alpha")},
        "z": np.array([3.0], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_it_is_found_and_what_only_looks_like_it_is_not() -> None:
    assert set(kinds(normalized(written()))) <= CHEAP
    for changes in (
        {"pads": [0, 0, 1, 0, 0, 0, 0, 3, 0, 0]},
        {"value": 1.0},
        {"other": "z"},
        {"alpha": [-0.1]},
        {"exponent": [[[[0.1]], [[0.2]], [[0.3]], [[0.4]], [[0.5]], [[0.6]]]]},
        {"apart": [1, 1, 4, 6, 5]},
        {"apart": [1, 1, 6, 5, 4]},
    ):
        proto = written(**changes)
        assert normalized(proto) == proto, changes
