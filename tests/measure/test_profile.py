"""Counting a graph: the notes' figures, and counts that agree with loops, torch, and themselves when quantized."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edgeseg.errors import ModelError
from edgeseg.measure.profile import Profile, bottleneck, human, profile, separable, table

onnx = pytest.importorskip("onnx", reason="needs edgeseg[build]")
helper, FLOAT, UINT8, INT8, INT32 = onnx.helper, 1, 2, 3, 6


def graph(
    nodes: Sequence[Any],
    shape: Sequence[int | str],
    *,
    out: Sequence[int | str] | None = None,
    kind: int = FLOAT,
    out_kind: int = FLOAT,
    **weights: Any,
) -> bytes:
    """A model from "x" to "y"."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", out_kind, out)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.openvinotoolkit", 1)]
    serialized: bytes = helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()
    return serialized


def weight(*shape: int, dtype: type = np.float32) -> Any:
    return np.zeros(shape, dtype)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=f"n_{output}", **attributes)


# --- the notes' figures ----------------------------------------------------------------------------------------------


def test_the_separable_example_of_the_notes() -> None:
    dense = profile(graph([node("Conv", "x w")], (1, 3, 12, 12), w=weight(256, 3, 5, 5)))
    assert dense.layers[0].output == (1, 256, 8, 8)
    assert dense.macs == 1_228_800
    assert dense.layers[0].separable_macs == 53_952
    nodes = [node("Conv", "x d", "m", group=3), node("Conv", "m p")]
    split = profile(graph(nodes, (1, 3, 12, 12), d=weight(3, 1, 5, 5), p=weight(256, 3, 1, 1)))
    assert [layer.macs for layer in split.layers] == [4_800, 49_152]
    assert split.macs == 53_952
    assert [layer.separable_macs for layer in split.layers] == [None, None]
    assert split.layers[0].detail == "5x5, depthwise"


def test_the_1x1_example_of_the_notes() -> None:
    same = {"auto_pad": "SAME_UPPER"}
    dense = profile(graph([node("Conv", "x w", **same)], (1, 192, 28, 28), w=weight(32, 192, 5, 5)))
    assert dense.macs == 120_422_400
    nodes = [node("Conv", "x a", "m"), node("Conv", "m b", **same)]
    narrow = profile(graph(nodes, (1, 192, 28, 28), a=weight(16, 192, 1, 1), b=weight(32, 16, 5, 5)))
    assert [layer.macs for layer in narrow.layers] == [2_408_448, 10_035_200]
    assert narrow.macs == 12_443_648 == bottleneck(192, 16, 32, (5, 5), (28, 28), (28, 28))
    # The row shows a quarter of the channels, 48.
    assert dense.layers[0].bottleneck_macs == 28 * 28 * 192 * 48 + 28 * 28 * 48 * 32 * 25
    assert dense.layers[0].separable_macs == separable(192, 32, (5, 5), (28, 28)) == 28 * 28 * 192 * (25 + 32)


# --- against slow and independent counts -----------------------------------------------------------------------------


def products(shape: tuple[int, ...], w: tuple[int, ...], stride: int, dilation: int, group: int) -> Iterator[int]:
    """A one for each product of a convolution without padding, by the loops that define it."""
    batch, _, height, width = shape
    outputs, channels, rows, columns = w
    for _n in range(batch):
        for k in range(outputs):
            first = k // (outputs // group) * channels
            for y in range(0, height - dilation * (rows - 1), stride):
                for x in range(0, width - dilation * (columns - 1), stride):
                    for c in range(first, first + channels):
                        for i in range(rows):
                            for j in range(columns):
                                assert c < shape[1]
                                assert y + i * dilation < height
                                assert x + j * dilation < width
                                yield 1


@pytest.mark.parametrize(
    ("shape", "w", "stride", "dilation", "group"),
    [
        ((1, 3, 7, 9), (4, 3, 3, 3), 1, 1, 1),
        ((2, 4, 7, 9), (6, 2, 3, 1), 2, 1, 2),
        ((1, 4, 9, 9), (8, 1, 3, 3), 1, 2, 4),
        ((1, 2, 11, 8), (3, 2, 2, 5), 3, 1, 1),
        ((1, 6, 5, 5), (6, 1, 1, 1), 1, 1, 6),
    ],
)
def test_convolutions_count_what_loops_count(
    shape: tuple[int, ...], w: tuple[int, ...], stride: int, dilation: int, group: int
) -> None:
    conv = node("Conv", "x w b", strides=[stride] * 2, dilations=[dilation] * 2, group=group)
    found = profile(graph([conv], shape, w=weight(*w), b=weight(w[0])))
    assert found.macs == sum(products(shape, w, stride, dilation, group))
    assert found.parameters == np.prod(w) + w[0]


def test_torch_counts_the_same() -> None:
    torch = pytest.importorskip("torch", reason="needs edgeseg[torch]")
    pytest.importorskip("onnxscript", reason="needs edgeseg[torch]")
    from torch.utils.flop_counter import FlopCounterMode

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            nn = torch.nn
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
                nn.Conv2d(8, 12, 1),
                nn.MaxPool2d(2),
                nn.Conv2d(12, 12, (1, 5), padding=(0, 2), groups=3),
                nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
                nn.Upsample(scale_factor=2, mode="bilinear"),
            )
            self.head = nn.Linear(6, 5)

        def forward(self, x: Any) -> Any:
            y = self.body(x).permute(0, 2, 3, 1)
            return self.head(y) @ torch.ones(5, 4)

    net, x = Net().eval(), torch.zeros(2, 3, 24, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), dynamo=True, verbose=False).save(file)
    found = profile(file.getvalue())
    assert found.macs == counter.get_total_flops() // 2
    assert found.parameters == sum(p.numel() for p in net.parameters()) + 5 * 4  # the constant factor is one, too
    assert found.uncounted == ()


# --- other operations, each by its definition ------------------------------------------------------------------------


def test_transposed_convolution_multiplies_each_input_by_the_kernel() -> None:
    conv = node("ConvTranspose", "x w", strides=[2, 2], group=2)
    found = profile(graph([conv], (1, 4, 5, 6), w=weight(4, 3, 3, 3)))
    assert found.layers[0].output == (1, 6, 11, 13)
    assert found.macs == 4 * 5 * 6 * 3 * 3 * 3
    assert found.layers[0].separable_macs is None
    assert found.layers[0].detail == "3x3, stride 2, 2 groups"


@pytest.mark.parametrize(("turned", "shape"), [(0, (7, 5)), (1, (5, 7))])
def test_matrix_products(turned: int, shape: tuple[int, int]) -> None:
    gemm = profile(graph([node("Gemm", "x w b", transA=turned)], shape, w=weight(5, 3), b=weight(3)))
    assert (gemm.macs, gemm.parameters) == (7 * 5 * 3, 18)


def test_a_batched_matrix_product_and_its_bias() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b")]
    found = profile(graph(nodes, (2, 4, 7, 5), w=weight(5, 3), b=weight(3)))
    assert (found.macs, found.parameters) == (2 * 4 * 7 * 5 * 3, 18)


def test_what_stands_between_counts_as_activations_only() -> None:
    nodes = [
        node("Cast", "x", "f", to=FLOAT),
        node("Transpose", "f", "t", perm=[0, 3, 1, 2]),
        node("Sub", "t mean", "s"),
        node("Conv", "s w b", "c", strides=[2, 1], dilations=[1, 2]),
        node("BatchNormalization", "c g g g g", "n"),
        node("Relu", "n", "r"),
        node("Resize", "r", "u", mode="nearest"),
        node("ArgMax", "u", "y", axis=1, keepdims=0),
    ]
    nodes[6].input.extend(["", "scales"])
    scales: Any = np.array([1, 1, 2, 2], np.float32)
    weights = {"mean": weight(1, 3, 1, 1), "w": weight(4, 3, 3, 3), "b": weight(4), "g": weight(4), "scales": scales}
    found = profile(graph(nodes, (1, 9, 9, 3), kind=UINT8, out_kind=7, **weights))
    rows = {layer.op: layer for layer in found.layers}
    assert list(rows) == ["Cast", "Transpose", "Sub", "Conv", "BatchNormalization", "Relu", "Resize", "ArgMax"]
    assert rows["Conv"].output == (1, 4, 4, 5)
    assert rows["Conv"].detail == "3x3, stride 2x1, dilation 1x2"
    assert {op: layer.macs for op, layer in rows.items() if layer.macs} == {"Conv": 80 * 27}
    assert rows["Resize"].activations == 4 * 8 * 10
    assert rows["ArgMax"].activations == 8 * 10
    assert found.activations == 3 * 243 + 3 * 80 + 320 + 80
    assert found.parameters == 108 + 4 + 4  # the same tensor stands for scale and bias here, and counts once


def test_shared_weights_count_once_and_multiply_twice() -> None:
    nodes = [node("Conv", "x w", "m", pads=[1] * 4), node("Conv", "m w", pads=[1] * 4)]
    found = profile(graph(nodes, (1, 2, 4, 4), w=weight(2, 2, 3, 3)))
    assert [layer.parameters for layer in found.layers] == [36, 0]
    assert found.macs == 2 * 16 * 36


def test_the_arithmetic_of_shapes_is_no_layer() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "h"),
        node("Constant", "", "ones", value=onnx.numpy_helper.from_array(np.array([1, 3], np.int64))),
        node("Concat", "ones h h", "sizes", axis=0),
        node("Expand", "x sizes", "y"),
    ]
    nodes[2].input[:] = []
    found = profile(graph(nodes, (1, 1, 4, 4), two=np.array([2], np.int64)))
    assert [(layer.op, layer.output) for layer in found.layers] == [("Expand", (1, 3, 4, 4))]


# --- quantized forms -------------------------------------------------------------------------------------------------

FLOAT_NET = [node("Conv", "x w b", "c", pads=[1] * 4), node("Relu", "c", "y")]
WEIGHTS: dict[str, Any] = {"b": weight(8), "w": weight(8, 4, 3, 3)}
SCALE: dict[str, Any] = {"s": np.float32(0.1).reshape(()), "z": np.uint8(0).reshape(()), "zi": np.int8(0).reshape(())}


def same_cost(found: Profile, wanted: Profile) -> bool:
    rows = [[(layer.op, layer.output, layer.macs, layer.parameters) for layer in p.layers] for p in (found, wanted)]
    return rows[0] == rows[1] and found.activations == wanted.activations


def test_q_dq_changes_nothing() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("DequantizeLinear", "wq s zi", "wd"),
        node("DequantizeLinear", "bq s", "bd"),
        node("Conv", "xd wd bd", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r s z", "rq"),
        node("DequantizeLinear", "rq s z", "y"),
    ]
    weights = {"wq": weight(8, 4, 3, 3, dtype=np.int8), "bq": weight(8, dtype=np.int32), **SCALE}
    plain = profile(graph(FLOAT_NET, (1, 4, 6, 6), **WEIGHTS))
    quantized = profile(graph(nodes, (1, 4, 6, 6), **weights))
    assert same_cost(quantized, plain)
    assert plain.macs == 36 * 8 * 4 * 9
    assert plain.parameters == 296
    assert quantized.layers[0].separable_macs == plain.layers[0].separable_macs
    assert not same_cost(quantized, profile(graph(FLOAT_NET, (1, 4, 6, 7), **WEIGHTS)))


@pytest.mark.parametrize("floats", [True, False])
def test_openvino_fake_quantize_changes_nothing(floats: bool) -> None:
    fake = {"domain": "org.openvinotoolkit", "levels": 256}
    nodes = [
        node("FakeQuantize", "x lo hi lo hi", "xf", **fake),
        node("FakeQuantize", "w lo hi lo hi", "wf", **fake),
        node("Conv", "xf wf b", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("FakeQuantize", "r lo hi lo hi", "y", **fake),
    ]
    ends: dict[str, Any] = {"lo": np.float32(-1).reshape(()), "hi": np.float32(1).reshape(())} if floats else {}
    if not floats:  # ranges as constants in the graph, by channel
        for name in ("lo", "hi"):
            value = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32))
            nodes.insert(0, helper.make_node("Constant", [], [name], value=value))
    found = profile(graph(nodes, (1, 4, 6, 6), **WEIGHTS, **ends))
    assert same_cost(found, profile(graph(FLOAT_NET, (1, 4, 6, 6), **WEIGHTS)))


def test_integer_convolutions_and_products() -> None:
    quantized = {"w": weight(8, 4, 3, 3, dtype=np.int8), "b": weight(8, dtype=np.int32), **SCALE}
    conv = node("QLinearConv", "x s z w s zi s z b", pads=[1] * 4)
    found = profile(graph([conv], (1, 4, 6, 6), kind=UINT8, out_kind=UINT8, **quantized))
    assert (found.macs, found.parameters) == (36 * 8 * 36, 296)
    assert found.layers[0].separable_macs == 36 * 4 * (9 + 8)
    conv = node("ConvInteger", "x w z zi")
    found = profile(graph([conv], (1, 4, 6, 6), kind=UINT8, out_kind=INT32, **quantized))
    assert (found.macs, found.parameters) == (16 * 8 * 36, 288)
    product = node("QLinearMatMul", "x s z w s zi s z")
    square = {**SCALE, "w": weight(5, 3, dtype=np.int8)}
    found = profile(graph([product], (7, 5), kind=UINT8, out_kind=UINT8, **square))
    assert (found.macs, found.parameters) == (105, 15)
    product = node("MatMulInteger", "x w")
    found = profile(graph([product], (7, 5), kind=UINT8, out_kind=INT32, **square))
    assert (found.macs, found.parameters) == (105, 15)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_open_size_is_refused_with_the_name_of_the_node() -> None:
    with pytest.raises(ModelError, match=r"fixed shape for 'y' at the node 'n_y'.*one fixed batch and size"):
        profile(graph([node("Conv", "x w")], (1, 3, "height", 12), w=weight(4, 3, 3, 3)))
    with pytest.raises(ModelError, match="fixed shape"):
        profile(graph([node("Conv", "x w")], ("batch", 3, 12, 12), w=weight(4, 3, 3, 3)))


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ModelError, match=r"org\.openvinotoolkit Magic"):
        profile(graph([node("Magic", "x", domain="org.openvinotoolkit")], (1, 3, 4, 4)))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="these 5 bytes are none"):
        profile(b"\xff\xff\xff\xff\xff")
    with pytest.raises(ModelError, match="at least one node"):
        profile(b"")


def test_control_flow_is_refused() -> None:
    body = helper.make_graph([node("Relu", "x", "z")], "b", [], [helper.make_tensor_value_info("z", FLOAT, (1,))])
    branch = node("If", "c", then_branch=body, else_branch=body)
    with pytest.raises(ModelError, match=r"'n_y' \(If\) is control flow"):
        profile(graph([branch], (1,), c=np.array(True)))


def test_what_cannot_be_counted_is_said() -> None:
    found = profile(graph([node("Einsum", "x w", equation="ij,jk->ik")], (2, 3), out=(2, 4), w=weight(3, 4)))
    assert found.uncounted == ("Einsum",)
    assert "NOT counted" in table(found)
    assert "1 Einsum" in table(found)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_aligned_and_fits() -> None:
    long = node("Conv", "x w b", "m", strides=[2, 1], dilations=[1, 2], group=2)
    long.name = "/backbone/layer4/layer4.2/downsample/conv_with_a_very_long_name/Conv"
    nodes = [long, node("Relu", "m", "r"), node("Conv", "r v")]
    weights = {"w": weight(512, 128, 3, 3), "b": weight(512), "v": weight(1024, 512, 3, 3)}
    found = profile(graph(nodes, (1, 256, 1000, 1000), **weights))
    for width in (100, 110, 120):
        lines = table(found, width).splitlines()
        until = lines.index("")
        assert max(map(len, lines[:until])) <= width
        assert max(map(len, lines)) <= 120
        column = lines[0].index("output") + len("output")  # right-aligned there in every row
        for line in (*lines[2:5], lines[0]):
            assert line[column - 1] != " "
            assert line[column] == " "
    assert "name/Conv" in lines[2]
    assert "100.0% of the MACs in Conv" in table(found)
    shares = [float(line[: line.index("%")].split()[-1]) for line in (lines[2], lines[4])]
    assert sum(shares) == pytest.approx(100, abs=0.11)
    assert f"MACs: {found.macs:,}  parameters: {found.parameters:,}" in table(found)


def test_the_summary_says_what_rewrites_would_leave() -> None:
    text = table(profile(graph([node("Conv", "x w")], (1, 3, 12, 12), w=weight(256, 3, 5, 5))))
    assert "4.4% would remain" in text
    assert "53,952" in text
    assert "bottleneck before" not in text  # three channels have no quarter


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (9_994, "9.99k"),
        (9_995, "10.0k"),
        (53_952, "54.0k"),
        (99_950, "100k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (120_422_400, "120M"),
        (2_217_077_760, "2.22G"),
        (10**16, "10000T"),
    ],
)
def test_human_units(count: int, text: str) -> None:
    assert human(count) == text
