"""The real parser and the real builder of TensorRT-RTX on every family of network, in FP32, FP16 and INT8.

Without a GPU, which they do not need. EDGESEG_RTX_ALL=1 builds each for every GPU that it builds for: some minutes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest

pytest.importorskip("torch", reason="the networks are torch's")

from edgeseg import quantize
from edgeseg.backends.tensorrt import worker
from edgeseg.backends.tensorrt.build import BuildFailed, build
from edgeseg.backends.tensorrt.graph import for_tensorrt
from edgeseg.backends.tensorrt.options import Options, shapes_from
from edgeseg.errors import BadInput, ModelError
from edgeseg.quantize.half import half
from edgeseg.types import OnnxModel, Precision
from tests import models
from tests.quantize import making
from tests.tensorrt.families import FAMILIES, exported

Capability = tuple[int, int]
Variant = tuple[str, Precision, bytes]
CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0))
NO_TURING = ("fp32", "int8")  # of what multiplies matrices: these variants keep FP32 between the convolutions
ELSEWHERE = ("unet", "depthwise", "student: separable", "segnet", "layer: transposed, dilated and in groups")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@functools.cache
def _rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13, which builds without a GPU")


@functools.cache
def model_of(name: str) -> OnnxModel:
    return FAMILIES[name]()


def variants(model: OnnxModel) -> Iterator[Variant]:
    """Every precision as a build writes it for TensorRT: what, its precision, the graph."""
    yield "fp32", "fp32", for_tensorrt(model.graph)
    yield "fp16", "fp16", for_tensorrt(half(model).model.graph)
    view = quantize.Graph(model.graph)
    placement = quantize.place(view, quantize.TENSORRT)
    if not placement.convolutions:  # one convolution, of the image: the builder takes it in INT8 all the same
        placement = quantize.place(view, quantize.TENSORRT, also=placement.floats)
    int8 = quantize.quantize(model, making.table_of(model, 2), quantize.TENSORRT, placement=placement)
    yield "int8", "int8", for_tensorrt(int8.graph)
    yield "int8+fp16", "int8", for_tensorrt(half(int8).model.graph)


def refused(graph: bytes, precision: Precision, capability: Capability = (8, 6), options: Options | None = None) -> str:
    """What TensorRT-RTX has against it, nothing where it builds."""
    try:
        product = build(_rtx(), graph, precision, options or Options(), capability=capability)
    except BuildFailed as error:
        return str(error)
    assert len(product.engine) > 1000
    return ""


def kinds(graph: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(graph).graph.node}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_builds_in_every_precision(name: str) -> None:
    _rtx()
    for what, precision, graph in variants(model_of(name)):
        assert not refused(graph, precision), what
        assert ("DequantizeLinear" in kinds(graph)) <= (precision == "int8"), what
        if what == "int8+fp16" and name != "class map":
            assert "DequantizeLinear" in kinds(graph), "nothing was quantized: this says nothing about INT8"


@pytest.mark.parametrize("capability", [(12, 0), (7, 5)], ids=["12.0", "7.5"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_for_other_gpus_too(name: str, capability: Capability) -> None:
    _rtx()
    for what, precision, graph in variants(model_of(name)):
        assert not refused(graph, precision, capability), what


@pytest.mark.parametrize("name", ["unet", "depthwise", "pyramid"])
def test_dynamic_shapes(name: str) -> None:
    trt = _rtx()
    model = exported(models.ALL[name], dynamic=True)
    height, width = models.SIZE
    options = Options(shapes=shapes_from(f"1x{height}x{width}:2x{height}x{width}:4x{2 * height}x{2 * width}"))
    for what, precision, graph in variants(model):
        assert not refused(graph, precision, options=options), what
    with pytest.raises(BadInput, match="--trt shapes=LEAST:BEST:MOST"):
        build(trt, for_tensorrt(model.graph), "fp32", Options(), capability=(8, 6))


@pytest.mark.parametrize(
    "options",
    [
        Options(workspace_mb=64, level=0, tf32=False, sparse=True, no_external_tactics=True),
        Options(level=5, cuda_graph=False, arithmetic="f16"),
    ],
)
def test_options_are_taken(options: Options) -> None:
    graph = for_tensorrt(making.unet().graph)
    assert not refused(graph, "fp32", options=options)


def test_matrix_products_in_fp32_are_not_for_turing() -> None:
    """A refusal of TensorRT-RTX 1.7 by design; it is answered with the precision that builds."""
    graphs = {what: (precision, graph) for what, precision, graph in variants(model_of("attention"))}
    for what, (precision, graph) in graphs.items():
        if what in NO_TURING:
            with pytest.raises(BuildFailed, match="Build with --fp16") as refusal:
                build(_rtx(), graph, precision, Options(), capability=(7, 5))
            assert "/MatMul" in refusal.value.nodes
        else:
            assert not refused(graph, precision, (7, 5)), what


def dilated_pool(graph: onnx.ModelProto) -> None:
    pool = next(node for node in graph.graph.node if node.op_type == "MaxPool")
    pool.attribute.append(onnx.helper.make_attribute("dilations", [2, 2]))
    kernel = next(attribute for attribute in pool.attribute if attribute.name == "kernel_shape")
    pads = onnx.helper.make_attribute("pads", [0, 0, 1, 1])  # so that the size stays half
    kernel.ints[:] = [2, 2]
    pool.attribute.append(pads)


def unknown(graph: onnx.ModelProto) -> None:
    node = next(node for node in graph.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "NobodyKnowsThis", "example.org"
    graph.opset_import.append(onnx.helper.make_opsetid("example.org", 1))


def mixed_types(graph: onnx.ModelProto) -> None:
    node = next(node for node in graph.graph.node if node.op_type == "Concat")
    cast = onnx.helper.make_node("Cast", [node.input[1]], ["narrow"], "node_narrow", to=onnx.TensorProto.FLOAT16)
    node.input[1] = "narrow"
    graph.graph.node.insert(list(graph.graph.node).index(node), cast)


@pytest.mark.parametrize(
    ("spoil", "kind"), [(dilated_pool, "MaxPool"), (unknown, "NobodyKnowsThis"), (mixed_types, "Concat")]
)
def test_what_it_refuses_names_the_node_and_what_to_do(spoil: Callable[[onnx.ModelProto], None], kind: str) -> None:
    trt = _rtx()
    proto = onnx.load_from_string(making.unet().graph)
    spoil(proto)
    node = next(node for node in proto.graph.node if node.op_type == kind)
    with pytest.raises(BuildFailed) as refusal:
        build(trt, proto.SerializeToString(), "fp32", Options(), capability=(8, 6))
    assert node.name in str(refusal.value)
    assert node.name in refusal.value.nodes
    assert "--backend onnxruntime" in str(refusal.value)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(BuildFailed):
        build(_rtx(), b"this is no graph", "fp32", Options(), capability=(8, 6))


def test_a_gpu_that_it_does_not_build_for_is_refused() -> None:
    with pytest.raises(BadInput, match=r"9\.0.*it builds for SM120.*--backend tensorrt"):
        build(_rtx(), for_tensorrt(making.unet().graph), "fp32", Options(), capability=(9, 0))


def test_a_build_in_a_child_process() -> None:
    trt = _rtx()
    graph = for_tensorrt(half(making.unet()).model.graph)
    steps: list[tuple[str, int, int]] = []
    found = worker.made(
        "tensorrt-rtx",
        graph,
        "fp16",
        Options(),
        capability=(8, 6),
        inspect=False,
        on_progress=lambda phase, done, total: steps.append((phase, done, total)),
    )
    assert len(found.engine) > 1000
    assert (found.information, found.times, found.repairs) == ("", {}, ())
    assert steps
    assert all(0 <= done <= total for _, done, total in steps)
    here = build(trt, graph, "fp16", Options(), capability=(8, 6)).engine
    assert abs(len(here) - len(found.engine)) < 0.1 * len(here)


def test_what_the_child_is_refused_is_told_here() -> None:
    _rtx()
    proto = onnx.load_from_string(making.unet().graph)
    unknown(proto)
    with pytest.raises(ModelError, match="NobodyKnowsThis"):
        worker.made("tensorrt-rtx", proto.SerializeToString(), "fp32", Options(), capability=(8, 6), inspect=False)


@pytest.mark.skipif(not os.environ.get("EDGESEG_RTX_ALL"), reason="some minutes: with EDGESEG_RTX_ALL=1")
@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"{c[0]}.{c[1]}")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_for_every_gpu(name: str, capability: Capability) -> None:
    _rtx()
    for what, precision, graph in variants(model_of(name)):
        if (name, capability) == ("attention", (7, 5)) and what in NO_TURING:
            continue  # test_matrix_products_in_fp32_are_not_for_turing
        assert not refused(graph, precision, capability), what
