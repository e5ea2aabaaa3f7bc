"""From opset 18 to 17 and from the old ones up: the same numbers, or left alone with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from edgeseg.errors import ModelError
from edgeseg.export.graph import opset_of, run
from edgeseg.export.opset import lowered, raised
from tests.export.making import graph_of, proto_of

SAMPLE = np.random.default_rng(0).standard_normal((1, 3, 8, 12), dtype=np.float32)
node = helper.make_node
INTS: dict[str, NDArray[Any]] = {
    "axes": np.array([2, 3], np.int64),
    "sizes": np.array([1, 3, 16, 20], np.int64),
    "pads": np.array([0, 0, 1, 2, 0, 0, 3, 4], np.int64),
}


def newer(nodes: list[onnx.NodeProto], opset: int = 18, **options: Any) -> onnx.ModelProto:
    return proto_of(graph_of(nodes, weights=INTS, shape=(1, 3, 8, 12), opset=opset, **options))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)],
        [node("ReduceMax", ["x", "axes"], ["y"], keepdims=0, noop_with_empty_axes=0)],
        [node("ReduceL2", ["x"], ["y"])],
        [node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", keep_aspect_ratio_policy="stretch", antialias=0)],
        [node("Pad", ["x", "pads"], ["y"], mode="reflect")],
        [
            node("Relu", ["x"], ["a"]),
            node("Split", ["a"], ["b", "c", "d"], axis=2, num_outputs=3),
            node("Concat", ["d", "b", "c"], ["y"], axis=2),
        ],
    ],
    ids=["mean", "max", "all", "resize", "pad", "split"],
)
def test_lowering_keeps_the_numbers(nodes: list[onnx.NodeProto]) -> None:
    proto = newer(nodes)
    older, reason = lowered(proto, 17)
    assert reason is None
    assert opset_of(older) == 17
    assert opset_of(proto) == 18  # the original is left as it was
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(older), full_check=True)
    np.testing.assert_array_equal(run(older, SAMPLE)["y"], run(proto, SAMPLE)["y"])


@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        ([node("Mish", ["x"], ["y"])], 18),
        ([node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=1)], 18),
        ([node("Pad", ["x", "pads", "", "axes"], ["y"])], 18),
        ([node("Gelu", ["x"], ["y"])], 20),
        ([node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], 19),
        (
            [
                node("Relu", ["x"], ["a"]),
                node("ReduceSum", ["a", "axes"], ["b"]),
                node("ReduceMean", ["x", "b"], ["y"]),
            ],
            18,
        ),
    ],
    ids=["new", "antialias", "pad axes", "gelu", "newer than 18", "computed axes"],
)
def test_what_has_no_older_form_stays(nodes: list[onnx.NodeProto], opset: int) -> None:
    proto = newer(nodes, opset)
    same, reason = lowered(proto, 17)
    assert same is proto
    assert reason is not None
    assert f"opset {opset} kept" in reason


def test_old_graphs_are_raised() -> None:
    conv = node("Conv", ["x", "w"], ["a"])
    weights: dict[str, NDArray[Any]] = {"w": np.ones((4, 3, 1, 1), np.float32)}
    pooled = node("ReduceMean", ["a"], ["b"], axes=[2, 3])
    old = proto_of(graph_of([conv, pooled, node("Softmax", ["b"], ["y"], axis=1)], weights=weights, opset=11))
    new = raised(old)
    assert opset_of(new) == 17
    np.testing.assert_allclose(run(new, SAMPLE)["y"], run(old, SAMPLE)["y"], rtol=1e-6)
    assert raised(new) is new
    stuck = proto_of(graph_of([node("Upsample", ["x", "no_such"], ["y"])], opset=9))
    with pytest.raises(ModelError, match=r"opset 9.*opset_version=17"):
        raised(stuck)
