"""Every operator that is translated, against ONNX Runtime on random inputs, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeseg.backends.onnxruntime import inference_session
from edgeseg.errors import ModelError
from edgeseg.recover.interpreter import known_operators, network, try_out
from edgeseg.types import FRAME

Array = NDArray[Any]
IMAGE = (2, 6, 7, 9)
CASES: list[tuple[str, str, Sequence[Any], dict[str, Any]]] = []  # name, operator, further inputs, attributes


def case(operator: str, *more: Any, label: str = "", **attributes: Any) -> None:
    CASES.append((f"{operator}{'-' if label else ''}{label}", operator, more, attributes))


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def number(value: float) -> Array:
    return np.array(value, np.float32)


for kind in (
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin",
    "Softmax", "Softplus", "Tanh", "Clip", "Dropout", "Squeeze", "Flatten", "Transpose", "Size", "Shape", "Mish",
):  # fmt: skip
    case(kind)
for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Sum"):
    case(kind, floats(6, 1, 1))
case("Sum", floats(6, 1, 1), floats(9), label="three")
case("Elu", label="alpha", alpha=0.3)
case("HardSigmoid", label="sixth", alpha=1 / 6, beta=0.5)
case("LeakyRelu", label="alpha", alpha=0.2)
case("Softmax", label="channels", axis=1)
case("LogSoftmax", label="channels", axis=1)
case("Clip", number(-0.3), number(0.6), label="both")
case("Clip", None, number(0.5), label="high")
case("Clip", number(0.1), label="low")
case("CastLike", np.array([1], np.int32))
for kind in ("Cast",):
    for target in (TensorProto.INT64, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.FLOAT):
        case(kind, label=str(target), to=target)
case("Gelu")
case("Gelu", label="tanh", approximate="tanh")
for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"):
    case(kind)
    case(kind, ints(2, -1), label="space", keepdims=0)
case("ReduceSum", ints(1), label="channels")
case("ReduceMean", label="none", noop_with_empty_axes=1)
case("ArgMax", label="channels", axis=1, keepdims=0)
case("ArgMax", label="last", axis=-1, select_last_index=1)
case("MatMul", floats(9, 4))
case("Einsum", floats(6, 5), equation="nchw,ck->nkhw")
case(
    "BatchNormalization", floats(6), floats(6, seed=2), floats(6, seed=3), np.abs(floats(6, seed=4)) + 0.1, epsilon=1e-3
)
case("InstanceNormalization", floats(6), floats(6, seed=2), epsilon=1e-3)
case("LayerNormalization", floats(9), floats(9, seed=2))
case("LayerNormalization", floats(7, 9), label="two", axis=2)
case("Reshape", ints(0, 3, -1))
case("Transpose", label="nhwc", perm=[0, 2, 3, 1])
case("Flatten", label="two", axis=2)
case("Unsqueeze", ints(0, -1))
case("Concat", floats(2, 3, 7, 9), axis=1)
case("Concat", floats(2, 6, 7, 2), label="last", axis=-1)
case("Gather", ints(2, 1, 0), axis=1)
case("Gather", np.array([[0, -1], [2, 2]], np.int64), label="square", axis=2)
case("Gather", np.array(3, np.int64), label="one", axis=-1)
case("Slice", ints(1, -4), ints(5, 9223372036854775807), ints(1, 3))
case("Slice", ints(-1), ints(-9223372036854775807), ints(2), ints(-2), label="backwards")
case("Slice", ints(0, 0), ints(6, 9), ints(1, -1), ints(2, 3), label="steps")
case("Slice", ints(4), ints(2), ints(1), label="empty")
case("Pad", ints(0, 0, 1, 2, 0, 1, 0, 3), number(-1.5))
case("Pad", ints(0, 0, 1, 2, 0, 0, 3, 1), label="reflect", mode="reflect")
case("Pad", ints(0, 0, 1, 2, 0, 0, 3, 1), label="edge", mode="edge")
case("Pad", ints(1, 2, -1, 0), None, ints(2, 3), label="axes")
case("Expand", ints(3, 1, 6, 1, 1))
case("Tile", ints(1, 2, 1, 3))
case("Shape", label="part", start=1, end=-1)
case("SpaceToDepth", label="none", blocksize=1)
case("DepthToSpace", label="none", blocksize=1)
case("Split", ints(1, 5), label="sizes", axis=1)
case("Split", label="parts", axis=1, num_outputs=2)
case("Conv", floats(4, 6, 3, 3), floats(4))
case("Conv", floats(4, 6, 3, 3), label="uneven", pads=[1, 2, 0, 1], strides=[2, 1], dilations=[1, 2])
case("Conv", floats(6, 1, 3, 3), floats(6), label="depthwise", pads=[2] * 4, dilations=[2, 2], group=6)
case("Conv", floats(4, 6, 3, 3), label="upper", auto_pad="SAME_UPPER", strides=[2, 2])
case("Conv", floats(4, 6, 2, 2), label="lower", auto_pad="SAME_LOWER")
case("Conv", floats(4, 6, 2, 3), label="valid", auto_pad="VALID")
case("ConvTranspose", floats(6, 4, 3, 3), floats(4))
case("ConvTranspose", floats(6, 4, 3, 3), label="usual", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])
case("ConvTranspose", floats(6, 2, 4, 4), label="uneven", strides=[2, 2], pads=[0, 1, 2, 1], group=3)
case("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
case("MaxPool", label="uneven", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0])
case("MaxPool", label="wide", kernel_shape=[5, 5], pads=[2, 2, 2, 2], dilations=[1, 1], ceil_mode=1, strides=[3, 3])
case("MaxPool", label="same", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("AveragePool", kernel_shape=[2, 3], strides=[2, 2])
case("AveragePool", label="pads", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
case("AveragePool", label="counted", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
case("AveragePool", label="uneven", kernel_shape=[3, 3], pads=[0, 1, 2, 1], strides=[2, 1])
case("AveragePool", label="ceil", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
RULES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
for rule in RULES:
    for name, scales, sizes in (
        ("double", np.array([1, 1, 2, 2], np.float32), None),
        ("smaller", np.array([1, 1, 0.62, 0.35], np.float32), None),
        ("sizes", None, ints(2, 6, 10, 31)),
        ("point", None, ints(2, 6, 1, 9)),
    ):
        for mode in ("linear", "cubic"):
            # Of a single point, rules for its place differ between releases of ONNX Runtime.
            if not (name == "point" and rule == "half_pixel_symmetric"):
                case(
                    "Resize", None, scales, sizes, label=f"{mode}-{rule}-{name}", mode=mode,
                    coordinate_transformation_mode=rule,
                )  # fmt: skip
        for near in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            case(
                "Resize", None, scales, sizes, label=f"{near}-{rule}-{name}", mode="nearest", nearest_mode=near,
                coordinate_transformation_mode=rule,
            )  # fmt: skip
case("Resize", None, np.array([2, 3], np.float32), label="axes", mode="linear", axes=[2, 3])


def graph_of(operator: str, more: Sequence[Any], attributes: dict[str, Any], outputs: int, **how: Any) -> bytes:
    """A graph that applies the operator to what a frame says: uint8 (N, H, W, 6) as floats (N, 6, H, W)."""
    nodes = [
        helper.make_node("Cast", [FRAME], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["x"]),
    ]
    constants = {"factor": number(4 / 255), "shift": number(-2)}
    given = [how.get("reads", "x")]
    for place, value in enumerate(more):
        given.append("" if value is None else f"given{place}")
        if value is not None:
            constants[f"given{place}"] = value
    made = [f"y{place}" for place in range(outputs)]
    nodes.append(helper.make_node(operator, given, made, f"node_{operator}", domain=how.get("domain"), **attributes))
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "one",
            [helper.make_tensor_value_info(FRAME, TensorProto.UINT8, (2, 7, 9, 6))],
            [onnx.ValueInfoProto(name=name) for name in made],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", how.get("opset", 20)), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    serialized: bytes = proto.SerializeToString()
    return serialized


def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, 7, 9, 6)).astype(np.uint8)


def both(graph: bytes, outputs: int = 1) -> list[tuple[Array, Array]]:
    session = inference_session(graph, "off", threads=1)
    wanted = session.run([f"y{place}" for place in range(outputs)], {FRAME: frames()})
    given = []
    for place in range(outputs):
        found = network(graph, f"y{place}")
        given.append(try_out(found, torch.from_numpy(frames())).numpy())
        with torch.no_grad():  # node by node, and as the Python that fx writes
            np.testing.assert_array_equal(found(torch.from_numpy(frames())).numpy(), given[-1])
    return list(zip(wanted, given, strict=True))


@pytest.mark.parametrize(("operator", "more", "attributes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_an_operator_gives_what_onnx_runtime_gives(
    operator: str, more: Sequence[Any], attributes: dict[str, Any]
) -> None:
    outputs = 2 if operator == "Split" else 1
    for wanted, given in both(graph_of(operator, more, attributes, outputs), outputs):
        assert given.shape == wanted.shape
        assert given.dtype == wanted.dtype
        np.testing.assert_allclose(given, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    nodes = graph_of("DepthToSpace", [], {"blocksize": 2, "mode": mode}, 1)
    proto = onnx.load_from_string(nodes)  # of 8 channels: two more of ones
    proto.graph.initializer.append(numpy_helper.from_array(floats(2, 2, 7, 9), "two"))
    proto.graph.node[-1].input[0] = "eight"
    last = onnx.NodeProto.FromString(proto.graph.node.pop().SerializeToString())
    proto.graph.node.extend([helper.make_node("Concat", ["x", "two"], ["eight"], axis=1), last])
    ((wanted, given),) = both(proto.SerializeToString())
    np.testing.assert_allclose(given, wanted, atol=1e-6)


def chain(nodes: Sequence[onnx.NodeProto], constants: dict[str, Array]) -> bytes:
    proto = onnx.load_from_string(graph_of("Identity", [], {}, 1))
    del proto.graph.node[-1:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    serialized: bytes = proto.SerializeToString()
    return serialized


def test_shapes_are_computed_as_in_onnx() -> None:
    """What exporters write for a view of half the width, by whole numbers alone."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "three"], ["width"], axis=0),
        helper.make_node("Div", ["width", "minus_two"], ["negative"]),  # 9 / -2 = -4, towards zero
        helper.make_node("Mul", ["negative", "minus_one"], ["half"]),
        helper.make_node("Unsqueeze", ["half", "zero"], ["ends"]),
        helper.make_node("Slice", ["x", "zero", "ends", "axis"], ["cut"]),
        helper.make_node("Constant", [], ["tail"], value_ints=[-1]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["head"]),
        helper.make_node("Concat", ["head", "tail"], ["target"], axis=0),
        helper.make_node("Reshape", ["cut", "target"], ["y0"]),
    ]
    constants = {"three": np.array(3, np.int64), "minus_two": np.array(-2, np.int64), "zero": ints(0), "two": ints(2)}
    constants |= {"minus_one": np.array(-1, np.int64), "axis": ints(3)}
    ((wanted, given),) = both(chain(nodes, constants))
    assert given.shape == wanted.shape == (2, 6, 28)
    np.testing.assert_array_equal(given, wanted)


def test_comparisons_choices_and_made_tensors() -> None:
    fill = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        helper.make_node("Greater", ["x", "level"], ["g"]),
        helper.make_node("LessOrEqual", ["x", "high"], ["le"]),
        helper.make_node("And", ["g", "le"], ["inside"]),
        helper.make_node("Less", ["x", "low"], ["l"]),
        helper.make_node("GreaterOrEqual", ["x", "high"], ["ge"]),
        helper.make_node("Or", ["l", "ge"], ["outside"]),
        helper.make_node("Not", ["outside"], ["other"]),
        helper.make_node("Equal", ["inside", "other"], ["equal"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["filled"], value=fill),
        helper.make_node("Range", ["start", "limit", "delta"], ["range"]),
        helper.make_node("Pow", ["range", "exponent"], ["power"]),
        helper.make_node("Sqrt", ["power"], ["root"]),
        helper.make_node("Log", ["root"], ["log"]),
        helper.make_node("Mul", ["filled", "log"], ["logs"]),
        helper.make_node("Where", ["equal", "x", "logs"], ["y0"]),
    ]
    constants = {"level": number(0), "high": number(1), "low": number(-1), "start": number(1), "limit": number(10)}
    constants |= {"delta": number(1), "exponent": number(3)}
    ((wanted, given),) = both(chain(nodes, constants))
    np.testing.assert_allclose(given, wanted, atol=1e-6)


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned: int) -> None:
    b = floats(4, 378) if turned else floats(378, 4)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "b", "c"], ["y0"], alpha=0.5, beta=2.0, transB=turned),
    ]
    ((wanted, given),) = both(chain(nodes, {"b": b, "c": floats(4)}))
    np.testing.assert_allclose(given, wanted, atol=1e-5)


def test_equal_maxima_go_to_the_first() -> None:
    nodes = [
        helper.make_node("Round", ["x"], ["whole"]),  # few values, so that many are equal
        helper.make_node("ArgMax", ["whole"], ["y0"], axis=1),
    ]
    ((wanted, given),) = both(chain(nodes, {}))
    np.testing.assert_array_equal(given, wanted)


def test_every_operator_known_is_tried_here() -> None:
    """A new operator without a case makes this fail."""
    source = Path(__file__).read_text(encoding="utf-8")
    tried = {name for _, name, _, _ in CASES}
    elsewhere = {"QuantizeLinear", "DequantizeLinear"}  # test_fake.py
    missing = [
        name
        for name in known_operators()
        if name not in tried | elsewhere and f'make_node("{name}"' not in source and f'graph_of("{name}"' not in source
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("operator", "more", "attributes", "how", "told"),
    [
        ("NonZero", [], {}, {}, "does not know the operator NonZero of node node_NonZero"),
        ("Inverse", [], {}, {"domain": "com.microsoft"}, "com.microsoft:Inverse of node node_Inverse"),
        ("MaxPool", [], {"kernel_shape": [2, 2], "of_old": 1}, {}, "does not know of_old of MaxPool, node node_Max"),
        ("Relu", [], {}, {"opset": 12}, "opset 13 or newer"),
        ("Relu", [], {}, {"reads": "nothing"}, "reads 'nothing'"),
    ],
)
def test_what_is_not_translated_is_named(
    operator: str, more: Sequence[Any], attributes: dict[str, Any], how: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        network(graph_of(operator, more, attributes, 1, **how), "y0")


@pytest.mark.parametrize(
    ("operator", "more", "attributes"),
    [
        ("Resize", [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear", "antialias": 1}),
        (
            "Resize",
            [None, np.array([1, 1, 2, 2], np.float32)],
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
        ),
        ("ConvTranspose", [floats(6, 4, 3, 3)], {"output_shape": [9, 9]}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "dilations": [2, 2]}),
        ("Conv", [floats(4, 5, 3, 3)], {}),  # five channels of six
    ],
)
def test_what_fails_when_it_runs_is_named(operator: str, more: Sequence[Any], attributes: dict[str, Any]) -> None:
    found = network(graph_of(operator, more, attributes, 1), "y0")
    with pytest.raises(ModelError, match=f"cannot run its node node_{operator}"):
        try_out(found, torch.from_numpy(frames()))


def test_a_missing_output_is_named() -> None:
    with pytest.raises(ModelError, match="no tensor 'scores'"):
        network(graph_of("Relu", [], {}, 1), "scores")


def test_second_outputs_are_refused() -> None:
    with pytest.raises(ModelError, match="further outputs of MaxPool"):
        network(graph_of("MaxPool", [], {"kernel_shape": [2, 2]}, 2), "y0")
