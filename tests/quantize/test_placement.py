"""Which nodes run in INT8, on which edges, and the reason of each; on networks that quantizers trip over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeseg.backends.onnxruntime import inference_session
from edgeseg.backends.openvino import core
from edgeseg.backends.tensorrt.graph import for_tensorrt
from edgeseg.errors import ModelError
from edgeseg.quantize import DIALECTS, ONNXRUNTIME_X86, OPENVINO, TENSORRT, Dialect, Graph, corrected_biases, place
from edgeseg.quantize.edges import kind_of, output_axis
from edgeseg.quantize.half import half
from edgeseg.quantize.reasons import RULES
from edgeseg.quantize.write import quantize
from edgeseg.types import FRAME, LOGITS
from tests.quantize import hard, making
from tests.quantize.test_numbers import emulated, optimized
from tests.quantize.test_tensorrt_graphs import refused

EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
NETS = pytest.mark.parametrize("name", hard.ALL)


@EVERY
@NETS
def test_every_node_has_its_reason_and_every_edge_too(name: str, dialect: Dialect) -> None:
    graph = Graph(hard.ALL[name]().graph)
    placement = place(graph, dialect)
    every = {node.name for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose")}
    assert set(placement.convolutions) | set(placement.floats) == every
    assert every | {n.name for n in graph.nodes if kind_of(graph, n)} <= set(placement.reasons)
    assert set(placement.edges) == set(placement.quantizers) | set(placement.moves)
    assert sorted(sum(placement.groups, ())) == sorted(placement.convolutions)
    for reason in (*placement.reasons.values(), *placement.edges.values()):
        assert len(reason) > 20
        assert not reason.endswith(".")


def test_every_rule_names_known_engines() -> None:
    engines = {dialect.engine for dialect in DIALECTS.values()}
    for kind, rules in RULES.items():
        assert set(rules) <= engines | {"*"}, kind
        assert "*" in rules or set(rules) == engines, kind


def test_kinds() -> None:
    found: dict[str, str] = {}
    for make in hard.ALL.values():
        graph = Graph(make().graph)
        found |= {node.output[0]: kind_of(graph, node) for node in graph.nodes}
    wanted = {
        "first": "image", "a_reduce": "convolution", "b_d8": "convolution", "a_s4": "sum", "skip": "concatenation",
        "a_norm": "batch norm", "a_act": "prelu", "large": "transposed signed", "depthwise0": "depthwise",
        "mean0": "average",
        "squeeze0": "point", "excite1": "point", "pooled": "average", "single": "transposed depthwise",
        "grouped": "transposed groups",
        "smooth": "bilinear", "halved": "move", "up": "transposed",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted


def test_branches_that_read_one_tensor_are_one_group() -> None:
    groups = place(Graph(hard.branchy().graph), OPENVINO).groups
    assert ("node_a_d1", "node_a_d2", "node_a_d4", "node_a_d8") in groups
    assert ("node_a_reduce",) in groups


def test_who_takes_transposed_convolutions() -> None:
    graph = Graph(hard.residual().graph)
    for dialect, names in ((OPENVINO, {"node_up"}), (TENSORRT, set()), (ONNXRUNTIME_X86, set())):
        assert {
            n for n in place(graph, dialect).convolutions if n in ("node_up", "node_single", "node_grouped")
        } == names
    asked = place(graph, TENSORRT, also=["node_up", "node_single"])
    assert {"node_up", "node_single"} <= set(asked.convolutions)
    with pytest.raises(ModelError, match=r"node_up.*no INT8 kernel"):
        place(graph, ONNXRUNTIME_X86, also=["node_up"])
    with pytest.raises(ModelError, match=r"node_grouped.*no axis"):
        place(graph, TENSORRT, also=["node_grouped"])
    with pytest.raises(ModelError, match="node_nowhere"):
        place(graph, TENSORRT, keep_float=["node_nowhere"])


def test_scales_of_transposed_weights_are_those_of_outputs() -> None:
    """Scales along the other axis would lose most of what differs between outputs."""
    model = hard.residual()
    placement = place(Graph(model.graph), TENSORRT, also=["node_up", "node_single"])
    made = quantize(model, making.table_of(model), TENSORRT, placement=placement).graph
    constants, exact = making.constants(made), making.constants(model.graph)
    for node in Graph(made).nodes:
        if node.op_type == "ConvTranspose" and node.name in placement.convolutions:
            axis = output_axis(node, exact[f"{node.output[0]}.w"].shape)
            assert axis == (1 if node.name == "node_up" else 0)
            stem = f"edgeseg/{node.name}/weight"
            codes, scales = constants[f"{stem}/q"].astype(np.float64), constants[f"{stem}/scale"]
            weights = exact[f"{node.output[0]}.w"]
            assert codes.shape == weights.shape
            assert scales.shape == (weights.shape[axis],)
            for index, scale in enumerate(scales):
                channel = np.take(weights, index, axis)
                off = np.abs(np.take(codes, index, axis) * scale - channel)
                assert np.sqrt(np.mean(off**2)) < 0.01 * np.abs(channel).max()


@NETS
@EVERY
def test_hard_networks_lose_little(name: str, dialect: Dialect) -> None:
    """In every dialect, run as its graph says; and ONNX Runtime runs in INT8 what was placed."""
    model = hard.ALL[name]()
    made = quantize(model, making.table_of(model, recipe="mse"), dialect)
    graph = emulated(made.graph) if dialect.fake else made.graph
    onnx.checker.check_model(making.parsed(graph), full_check=True)
    for frame in making.frames(2, seed=5):
        exact = making.tensors_of(model.graph, [LOGITS], frame[None])[LOGITS]
        assert making.snr_db(exact, making.tensors_of(graph, [LOGITS], frame[None])[LOGITS]) > 17


@NETS
def test_onnx_runtime_runs_what_was_placed(name: str, tmp_path: Path) -> None:
    model = hard.ALL[name]()
    placed = place(Graph(model.graph), ONNXRUNTIME_X86).convolutions
    made = quantize(model, making.table_of(model, recipe="mse"), ONNXRUNTIME_X86)
    assert optimized(made.graph, "extended", tmp_path / "optimized.onnx")["QLinearConv"] == len(placed) > 2


_CHILD = """
import sys, numpy as np, openvino
core = openvino.Core()
settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
compiled = core.compile_model(core.read_model(sys.argv[1]), "CPU", settings)
facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
print(*(f["layerType"].value + ":" + f["runtimePrecision"].value for f in facts))
np.save(sys.argv[3], compiled({"frame": np.load(sys.argv[2])})[0])
"""


@NETS
def test_openvino_compiles_it_and_runs_transposed_convolutions_in_int8(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    model = hard.ALL[name]()
    made = quantize(model, making.table_of(model, recipe="mse"), OPENVINO)
    (tmp_path / "graph.onnx").write_bytes(made.graph)
    frame = making.frames(1, seed=5)
    np.save(tmp_path / "frame.npy", frame)
    paths = [str(tmp_path / part) for part in ("graph.onnx", "frame.npy", "mask.npy")]
    done = subprocess.run([sys.executable, "-c", _CHILD, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    exact = making.tensors_of(model.graph, ["mask"], frame)["mask"]
    assert np.mean(np.load(paths[2]) == exact) > 0.9
    integers = [layer for layer in done.stdout.split() if layer in ("Deconvolution:u8", "Deconvolution:i8")]
    assert len(integers) == {"branchy": 0, "separable": 0, "residual": 1}[name]


def test_openvino_leaves_other_transposed_convolutions_in_float_whatever_is_written(tmp_path: Path) -> None:
    """Why the rules do: on values of both signs, and depthwise."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    for name, nodes in (("branchy", ["node_large"]), ("residual", ["node_single"])):
        model = hard.ALL[name]()
        placement = place(Graph(model.graph), OPENVINO, also=nodes)
        made = quantize(model, making.table_of(model), OPENVINO, placement=placement)
        compiled = core().compile_model(core().read_model(made.graph), "CPU", {"INFERENCE_NUM_THREADS": 1})
        facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        kinds = [f["runtimePrecision"].value for f in facts if f["layerType"].value == "Deconvolution"]
        assert len([kind for kind in kinds if kind in ("u8", "i8")]) == len(set(placement.convolutions) & {"node_up"})


@NETS
def test_tensorrt_builds_it(name: str) -> None:
    model = hard.ALL[name]()
    graph, table = Graph(model.graph), making.table_of(model, recipe="mse")
    transposed = [
        n.name for n in graph.nodes if kind_of(graph, n) in ("transposed", "transposed signed", "transposed depthwise")
    ]
    for also in ([], ["node_first", *transposed]):
        made = quantize(model, table, TENSORRT, placement=place(graph, TENSORRT, also=also))
        for whole in (made, half(made).model):
            assert not refused(for_tensorrt(whole.graph))


def test_sums_read_integers_where_a_dialect_wants_it() -> None:
    from dataclasses import replace

    model, eager = hard.residual(), replace(TENSORRT, sums=True)
    table = making.table_of(model)
    for dialect, reads in ((TENSORRT, "block0"), (eager, "edgeseg/block0/dq")):
        made = quantize(model, table, dialect)
        (node,) = (n for n in Graph(made.graph).nodes if n.name == "node_around1")
        assert node.input[1] == reads


def test_biases_of_transposed_convolutions_are_corrected() -> None:
    from edgeseg.backends.onnxruntime import probe

    model = hard.residual()
    found = corrected_biases(model, making.table_of(model), OPENVINO, probe, [making.frames(1)])
    assert found["node_up"].shape == (12,)
    quantize(model, making.table_of(model), OPENVINO, bias=found)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kind"),
    [
        (8, 8, 8, "depthwise"),
        (8, 16, 8, "grouped narrow"),  # a channel multiplier
        (8, 8, 4, "grouped narrow"),
        (32, 32, 2, "grouped"),
        (30, 30, 2, "grouped narrow"),
        (8, 8, 1, "convolution"),
    ],
)
def test_narrow_groups_stay_in_float_where_int8_is_slower(inputs: int, outputs: int, groups: int, kind: str) -> None:
    net = making.Net(1)
    x = net.relu(net.conv(net.image(), "first", inputs), "relu1")
    x = net.relu(net.conv(x, "before", inputs), "relu2")
    x = net.relu(net.conv(x, "middle", outputs, 3, group=groups), "relu3")
    x = net.relu(net.conv(x, "after", 4), "relu4")
    model = net.model(net.conv(x, "head", 3, 1))
    graph = Graph(model.graph)
    (node,) = (node for node in graph.nodes if node.name == "node_middle")
    assert kind_of(graph, node) == kind
    for dialect in DIALECTS.values():
        placed = "node_middle" in place(graph, dialect).convolutions
        assert placed == (kind != "grouped narrow" or dialect.engine != "onnxruntime")


def test_what_is_kept_in_float_is_computed_in_float(tmp_path: Path) -> None:
    """Left to itself, ONNX Runtime rounds float weights between two quantizers, and a search would be in vain."""
    net = making.Net(1)
    x = net.relu(net.conv(net.image(), "first", 8), "relu1")
    for name in ("one", "two", "three"):
        x = net.relu(net.conv(x, name, 8), f"relu_{name}")
    model = net.model(net.conv(x, "head", 3, 1))
    graph = Graph(model.graph)
    made = quantize(
        model, making.table_of(model), ONNXRUNTIME_X86, placement=place(graph, ONNXRUNTIME_X86, keep_float=["node_two"])
    )
    found = {}
    for level in ("all", "off"):
        session = inference_session(Graph(made.graph).upto(LOGITS), level)
        found[level] = np.concatenate([session.run([LOGITS], {FRAME: f[None]})[0] for f in making.frames(3, seed=8)])
    assert making.snr_db(found["off"], found["all"]) > 45
