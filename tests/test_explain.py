"""Where the accuracy went: planted faults come first in every dialect, figures agree with other ways to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import to_json
from edgeseg.backends import openvino
from edgeseg.backends.onnxruntime import inference_session, probe
from edgeseg.bundle import FP32, Bundle, Reference, Variant, read_bundle, write_bundle
from edgeseg.errors import BadInput, BundleError, MissingOnMachine, ModelError
from edgeseg.evaluation import evaluate
from edgeseg.graph import Graph
from edgeseg.measure.agreement import boundary_band
from edgeseg.pipeline.explain import explain, run
from edgeseg.pipeline.explain.damage import Ends, alone, damages
from edgeseg.pipeline.explain.masks import Judged
from edgeseg.pipeline.explain.transplant import Deployed
from edgeseg.pipeline.search.suffix import emulated
from edgeseg.quantize import DIALECTS, half, place, quantize
from edgeseg.types import LOGITS, MASK, OnnxModel, Sample
from tests.quantize import making

DIALECT = {"x86": "onnxruntime-x86", "arm": "onnxruntime-arm", "openvino": "openvino", "tensorrt": "tensorrt"}
FRAMES = [frame[None] for frame in making.frames(3, seed=5)]
Plant = Callable[[Graph], None]


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[OnnxModel, Any]]:
    return {make.__name__: (model := make(), making.table_of(model)) for make in (making.unet, making.everything)}


def deployed_graph(network: tuple[OnnxModel, Any], dialect: str) -> bytes:
    """As a build writes it: for TensorRT with half precision around INT8."""
    made = quantize(*network, DIALECTS[DIALECT[dialect]])
    return half(made).model.graph if dialect == "tensorrt" else made.graph


def bundle_of(fp32: OnnxModel, path: Path, graph: bytes, *, name: str = "onnxruntime-int8", **changes: Any) -> Path:
    """A bundle with two variants and three reference frames."""
    backend = name.partition("-")[0]
    files = {FP32: fp32.graph, **(openvino.convert(graph) if backend == "openvino" else {"graph.onnx": graph})}
    precision = name.partition("-")[2]
    masks = [found[MASK][0] for found in probe(fp32.graph, [MASK], FRAMES)]
    bundle = Bundle(
        fp32.spec,
        (
            Variant("onnxruntime-fp32", "onnxruntime", "fp32", (FP32,), {"optimization": "basic"}),
            Variant(name, backend, precision, tuple(f for f in files if f != FP32), changes.pop("settings", {})),  # type: ignore[arg-type]
        ),
        changes.pop("chosen", name),
        {**files, **changes.pop("files", {})},
        tuple(Reference(f"{at}", f[0], mask) for at, (f, mask) in enumerate(zip(FRAMES, masks, strict=True))),
    )
    return write_bundle(replace(bundle, **changes), path)


def scale_of_input(node: str, factor: float) -> Plant:
    """Multiply the scale of the quantizer next to a convolution, moves between them or not; or its range."""

    def plant(graph: Graph) -> None:
        tensor = next(n for n in graph.nodes if n.name == node).input[0]
        while (made := graph.producer(tensor)) is not None and made.op_type not in ("DequantizeLinear", "FakeQuantize"):
            tensor = made.input[0]
        assert made is not None
        for name in made.input[1:2] if made.op_type == "DequantizeLinear" else made.input[1:3]:
            value = graph.constant(name)
            assert value is not None
            graph.replace_constant(name, (value.astype(np.float32) * factor).astype(value.dtype))

    return plant


def scale_of_channel(node: str, channel: int, factor: float) -> Plant:
    """Multiply the scale of the weights of one output channel."""

    def plant(graph: Graph) -> None:
        made = graph.producer(next(n for n in graph.nodes if n.name == node).input[1])
        assert made is not None
        value = graph.constant(made.input[1])
        assert value is not None
        changed = value.copy()
        changed[channel] *= value.dtype.type(factor)
        graph.replace_constant(made.input[1], changed)

    return plant


def planted(graph: bytes, plant: Plant) -> bytes:
    opened = Graph(graph)
    plant(opened)
    changed: bytes = opened.model.SerializeToString()
    assert changed != graph
    return changed


FAULTS = [
    ("x86", "unet", "node_conv3", scale_of_input("node_conv3", 20)),
    ("x86", "everything", "node_residual", scale_of_input("node_residual", 20)),
    ("x86", "everything", "node_gate", scale_of_channel("node_gate", 1, 20)),
    ("arm", "everything", "node_conv4", scale_of_input("node_conv4", 20)),
    ("arm", "everything", "node_depthwise", scale_of_channel("node_depthwise", 3, 20)),
    ("arm", "unet", "node_conv2", scale_of_input("node_conv2", 1 / 20)),
    ("tensorrt", "unet", "node_head", scale_of_input("node_head", 20)),
    ("tensorrt", "everything", "node_gate", scale_of_input("node_gate", 20)),
    ("tensorrt", "everything", "node_residual", scale_of_channel("node_residual", 2, 20)),
    ("tensorrt", "everything", "node_conv5", scale_of_input("node_conv5", 1 / 20)),
]


@pytest.mark.parametrize(("dialect", "net", "node", "plant"), FAULTS)
def test_a_planted_fault_comes_first(
    networks: Any, tmp_path: Path, dialect: str, net: str, node: str, plant: Plant
) -> None:
    fp32, whole = networks[net][0], deployed_graph(networks[net], dialect)
    # TensorRT's graph in ONNX Runtime as it is written, since no engine can be made of it here.
    path = bundle_of(fp32, tmp_path / "faulty.edgeseg", planted(whole, plant), settings={"optimization": "off"})
    document = explain(path)
    first, second = document["layers"][:2]
    assert first["node"] == node
    assert [row["fault"] for row in document["layers"]].count(True) == 1
    assert first["own"]["snr_db"] < second["own"]["snr_db"] - 6
    assert node in " ".join(document["says"])
    assert "wrong scale" in first["why"] or "cut off" in first["why"] or "too coarse" in first["why"]
    # and without the fault it is no such case
    sound = explain(bundle_of(fp32, tmp_path / "sound.edgeseg", whole, settings={"optimization": "off"}))
    assert not any(row["fault"] for row in sound["layers"])
    row = next(row for row in sound["layers"] if row["node"] == node)
    assert row["own"]["snr_db"] > first["own"]["snr_db"] + 10
    assert not any(word in row["why"] for word in ("wrong scale", "cut off", "too coarse"))


@pytest.mark.parametrize("plant", [scale_of_input("node_conv5", 20), scale_of_channel("node_conv5", 0, 20)])
def test_a_fault_in_openvinos_ir_comes_first(networks: Any, tmp_path: Path, plant: Plant) -> None:
    pytest.importorskip("openvino", reason="its IR is read by its own interface")
    fp32, table = networks["everything"]
    graph = planted(quantize(fp32, table, DIALECTS["openvino"]).graph, plant)
    scales = {"scales.json": to_json(table).encode()}  # which know nothing of the fault
    path = bundle_of(fp32, tmp_path / "a.edgeseg", graph, name="openvino-int8", settings={"arithmetic": "f32"})
    with_scales = write_bundle(replace(read_bundle(path), files={**read_bundle(path).files, **scales}), path)
    document = explain(with_scales)
    assert document["layers"][0]["node"] == "node_conv5"
    assert "IR in the bundle" in document["emulation"]["how"]
    assert document["emulation"]["agreement"] > 0.97


def test_a_fault_comes_before_layers_that_matter_more(tmp_path: Path) -> None:
    net = making.Net(3)
    body = net.relu(net.conv(net.image(), "first", 8), "relu1")
    strong = net.relu(net.conv(body, "strong", 8), "relu2")
    weak = net.relu(net.conv(net.relu(net.conv(body, "before", 8), "relu3"), "weak", 8, gain=0.01), "relu4")
    both = net.op("Add", [strong, weak], "sum")
    model = net.model(net.conv(net.relu(net.conv(both, "last", 8), "relu5"), "head", 4, 1, gain=3.0))
    graph = quantize(model, making.table_of(model), DIALECTS["tensorrt"]).graph
    faulty = planted(graph, scale_of_input("node_weak", 20))
    first, second = explain(bundle_of(model, tmp_path / "a.edgeseg", faulty, settings={"optimization": "off"}))[
        "layers"
    ][:2]
    assert (first["node"], first["fault"], second["fault"]) == ("node_weak", True, False)
    assert first["own"]["snr_db"] > second["own"]["snr_db"]  # it does less than mere rounding does elsewhere
    assert first["inputs"][0]["best_factor"] == pytest.approx(1 / 20, rel=0.5)


def test_other_weights_everywhere_are_no_fault_of_each_layer(networks: Any, tmp_path: Path) -> None:
    fp32, table = networks["everything"]
    opened = Graph(quantize(fp32, table, DIALECTS["tensorrt"]).graph)
    for node in place(Graph(fp32.graph), DIALECTS["tensorrt"]).convolutions:
        scale_of_channel(node, slice(None), 2.0)(opened)  # type: ignore[arg-type]
    path = bundle_of(fp32, tmp_path / "a.edgeseg", opened.model.SerializeToString())
    assert any("as after equalization" in note for note in explain(path)["notes"])


def test_a_tensor_shared_by_two_layers_puts_both_in_front(networks: Any, tmp_path: Path) -> None:
    plant = scale_of_input("node_conv2", 20)  # relu1 is read behind a pooling, and again at the concatenation
    graph = planted(emulated(deployed_graph(networks["unet"], "openvino")), plant)
    document = explain(bundle_of(networks["unet"][0], tmp_path / "a.edgeseg", graph, settings={"optimization": "off"}))
    assert {row["node"] for row in document["layers"][:2]} == {"node_conv2", "node_conv3"}
    assert all("'relu1'" in row["why"] for row in document["layers"][:2])


def scores_of(graph: bytes) -> list[Any]:
    session = inference_session(Graph(graph).upto(LOGITS), "off", threads=1)
    return [session.run([LOGITS], {"frame": frame})[0] for frame in FRAMES]


@pytest.mark.parametrize("net", ["unet", "everything"])
@pytest.mark.parametrize("dialect", ["x86", "arm", "openvino", "tensorrt"])
def test_all_layers_transplanted_are_the_deployed_graph(networks: Any, net: str, dialect: str) -> None:
    fp32, table = networks[net]
    graph = emulated(quantize(fp32, table, DIALECTS[DIALECT[dialect]]).graph)  # FP16 around it would round once more
    deployed = Deployed(fp32.graph, graph)
    all_of_it = scores_of(deployed.graph({layer.node for layer in deployed.layers}))
    for found, wanted, exact in zip(all_of_it, scores_of(graph), scores_of(fp32.graph), strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert np.abs(found - exact).max() > 1e-3  # the checker sees quantization at all
    for found, wanted in zip(scores_of(deployed.graph(())), scores_of(fp32.graph), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dialect", ["openvino", "tensorrt"])
def test_a_layer_alone_is_what_the_writer_makes_of_it_alone(networks: Any, dialect: str) -> None:
    fp32, table = networks["unet"]
    written = replace(DIALECTS[dialect], fake=False)
    deployed = Deployed(fp32.graph, quantize(fp32, table, written).graph)
    others = {layer.node for layer in deployed.layers} - {"node_conv3"}
    single = place(Graph(fp32.graph), written, keep_float=others)
    for one, other in zip(
        scores_of(deployed.graph({"node_conv3"})),
        scores_of(quantize(fp32, table, written, placement=single).graph),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_damage_is_computed_behind_the_change_only_and_is_the_same(networks: Any) -> None:
    fp32, _ = networks["everything"]
    deployed = Deployed(fp32.graph, emulated(deployed_graph(networks["everything"], "x86")))
    nodes = [layer.node for layer in deployed.layers]
    exact = np.concatenate(scores_of(fp32.graph)).astype(np.float64)
    for node, damage in damages(fp32.graph, fp32.graph, alone(deployed, nodes), FRAMES, Ends()):
        found = np.concatenate(scores_of(deployed.graph({node})))
        assert damage.scores is not None
        assert damage.scores.snr_db == pytest.approx(making.snr_db(exact, found), abs=0.05)
        assert damage.agreement == pytest.approx(np.mean(exact.argmax(1) == found.argmax(1)), abs=1e-3)


def test_a_quantizer_that_only_float_nodes_read_counts_with_what_made_it(networks: Any) -> None:
    deployed = Deployed(networks["everything"][0].graph, deployed_graph(networks["everything"], "x86"))
    owned = {edge.node: edge.owners for edge in deployed._others}
    assert owned["node_sum"] >= {"node_residual"}  # the sum reads what the residual branch gives, through its pair
    every = {quantizer.node for edge in deployed._others for quantizer in edge.quantizers}
    every |= {quantizer.node for layer in deployed.layers for quantizer in layer.quantizers}
    there = {n.name for n in deployed._graph.nodes if n.op_type == "QuantizeLinear"}
    assert every == there  # none is forgotten


def test_the_document_of_a_sound_bundle(networks: Any, tmp_path: Path) -> None:
    fp32, _ = networks["everything"]
    graph = deployed_graph(networks["everything"], "x86")
    document = explain(bundle_of(fp32, tmp_path / "a.edgeseg", graph, settings={"optimization": "off"}))
    json.dumps(document, allow_nan=False)
    assert document["schema"] == "edgeseg.explain/1"
    assert document["emulation"]["agreement"] == 1.0  # the engine runs the same nodes as the emulation
    assert document["miou"] is None
    assert document["flicker"] is None
    own = [row["own"]["snr_db"] for row in document["layers"]]
    assert own == sorted(own)
    assert sum(row["share"] for row in document["layers"]) == pytest.approx(1)
    whole = document["whole"]["snr_db"]
    assert min(own) > whole - 1  # no layer alone is much worse than all together
    worst = document["layers"][0]
    assert worst["without"]["snr_db"] > whole  # and without the worst it is better
    assert worst["inputs"][-1]["from"] is not None
    assert set(document["float_layers"]) == {"node_conv1", "node_up2", "node_head"}
    exact, found = (np.concatenate(scores_of(g)) for g in (fp32.graph, graph))
    assert whole == pytest.approx(making.snr_db(exact, found), abs=0.1)
    assert document["agreement"]["overall"] == pytest.approx(np.mean(exact.argmax(1) == found.argmax(1)), abs=1e-4)
    tensors = [t for row in document["layers"] for t in [deployed_output(graph, row["node"])]]
    for row, tensor in zip(document["layers"], tensors, strict=True):
        pairs = [making.tensors_of(g, [tensor], FRAMES[0])[tensor] for g in (fp32.graph, graph)]
        assert row["snr_db"] == pytest.approx(making.snr_db(*pairs), abs=2)  # over three frames, not one


def deployed_output(graph: bytes, node: str) -> str:
    return next(str(n.output[0]) for n in Graph(graph).nodes if n.name == node)


def test_the_engine_in_fp32_has_no_quantization(networks: Any, tmp_path: Path) -> None:
    path = bundle_of(networks["unet"][0], tmp_path / "a.edgeseg", deployed_graph(networks["unet"], "x86"))
    document = explain(path, variant="onnxruntime-fp32")
    assert document["layers"] == []
    assert "no quantization" in document["emulation"]["how"]
    assert document["agreement"]["overall"] == 1.0
    assert document["gallery"] == []
    handed_over = write_bundle(replace(read_bundle(path), chosen="onnxruntime-fp32"), tmp_path / "b.edgeseg")
    assert explain(handed_over)["variant"] == "onnxruntime-int8"  # there is nothing to ask of the other


def test_half_precision_by_layer(networks: Any, tmp_path: Path) -> None:
    fp32, _ = networks["everything"]
    path = bundle_of(fp32, tmp_path / "a.edgeseg", half(fp32).model.graph, name="onnxruntime-fp16")
    document = explain(path)
    snr = [row["snr_db"] for row in document["layers"]]
    assert snr == sorted(snr)
    assert 50 < snr[0] < 90  # eleven bits
    assert all(row["own"] is None for row in document["layers"])
    assert document["agreement"]["overall"] > 0.999


def test_an_engine_that_cannot_run_here_is_emulated(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise MissingOnMachine("there is no such device here")

    monkeypatch.setattr(run, "open_engine", absent)
    path = bundle_of(networks["unet"][0], tmp_path / "a.edgeseg", deployed_graph(networks["unet"], "tensorrt"))
    document = explain(path)
    assert any("no such device" in note for note in document["notes"])
    assert document["emulation"]["agreement"] is None
    assert 0.9 < document["agreement"]["overall"] < 1
    with pytest.raises(MissingOnMachine, match="no such device"):
        explain(path, variant="onnxruntime-fp32")


def test_an_ir_that_cannot_be_read_is_made_again_from_the_scales(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="a bundle with its IR is made")
    from edgeseg.pipeline.explain import emulate

    def unreadable(*_: object) -> None:
        raise ModelError("odd operations")

    fp32, table = networks["unet"]
    graph = quantize(fp32, table, DIALECTS["openvino"]).graph
    path = bundle_of(fp32, tmp_path / "a.edgeseg", graph, name="openvino-int8", settings={"arithmetic": "f32"})
    read = explain(path)
    monkeypatch.setattr(emulate, "from_ir", unreadable)
    assert explain(path)["layers"] == []  # no scales in it
    opened = read_bundle(path)
    write_bundle(replace(opened, files={**opened.files, "scales.json": to_json(table).encode()}), path)
    document = explain(path)
    assert "made again" in document["emulation"]["how"]
    assert "odd operations" in document["notes"]
    assert [row["node"] for row in document["layers"]] == [row["node"] for row in read["layers"]]
    for one, two in zip(document["layers"], read["layers"], strict=True):
        assert one["own"]["snr_db"] == pytest.approx(two["own"]["snr_db"], abs=0.2)
    assert document["emulation"]["agreement"] > 0.99


@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_broken_numbers_come_first_and_leave_good_json(networks: Any, tmp_path: Path, factor: float) -> None:
    graph = planted(deployed_graph(networks["unet"], "x86"), scale_of_channel("node_conv2", 0, factor))
    document = explain(bundle_of(networks["unet"][0], tmp_path / "a.edgeseg", graph, settings={"optimization": "off"}))
    json.dumps(document, allow_nan=False)
    assert document["layers"][0]["node"] == "node_conv2"
    assert "NaN or infinite" in document["layers"][0]["why"]


def test_labels_give_what_eval_gives(built: Path, street: Path) -> None:
    document = explain(built, data=street / "dataset.toml", variant="onnxruntime-int8", gallery=2)
    other = evaluate(built, street / "dataset.toml", variant="onnxruntime-int8")
    before = evaluate(built, street / "dataset.toml", variant="onnxruntime-fp32")
    assert document["frames"] == document["labelled"] == other["frames"]
    assert document["miou"]["after"] == pytest.approx(other["miou"])
    assert document["miou"]["before"] == pytest.approx(before["miou"], abs=1e-4)  # another runtime may round once
    assert {name: row["after"] for name, row in document["miou"]["iou"].items()} == pytest.approx(other["iou"])
    assert document["flicker"]["pairs"] == 3
    assert len(document["gallery"]) <= 2
    assert document["gallery"] == sorted(document["gallery"], key=lambda one: one["agreement"])


def test_a_video_gives_flicker(built: Path) -> None:
    document = explain(built, video="street:64x48@15?seed=3&frames=7", gallery=0)
    assert document["flicker"]["pairs"] == 6
    assert set(document["flicker"]["changed"]) == {"fp32", "deployed"}
    assert document["gallery"] == []
    with pytest.raises(BadInput):
        explain(built, video="no-such-file.mp4")


def test_time_that_is_up_leaves_a_whole_document(built: Path, street: Path) -> None:
    document = explain(built, data=street / "dataset.toml", split="train", variant="onnxruntime-int8", seconds=1e-3)
    json.dumps(document, allow_nan=False)
    assert document["frames"] == 4
    assert any("time was up after 4 of 12 frames" in note for note in document["notes"])
    assert document["layers"][0]["own"] is not None
    assert document["layers"][0]["without"] is None


def test_agreement_by_class_and_band_against_counting_by_hand() -> None:
    rng = np.random.default_rng(0)
    one = np.kron(rng.integers(0, 3, (6, 8)), np.ones((6, 6))).astype(np.uint8)
    two = one.copy()
    two[rng.random(one.shape) < 0.1] = 2
    judged = Judged(4, None, worst=1)
    for name in ("a", "b"):
        judged.add(Sample(name, np.zeros((36, 48, 3), np.uint8)), np.zeros((36, 48, 3), np.uint8), one, two)
    document = judged.agreement_document(["x", "y", "z", "never"])
    assert document["overall"] == pytest.approx(np.mean(one == two))
    for width in (1, 2, 5):
        band = boundary_band(one, width)
        assert document["bands"][str(width)] == pytest.approx(np.mean((one == two)[band]))
        assert document["band_share"][str(width)] == pytest.approx(band.mean())
    for index, name in enumerate("xyz"):
        assert document["classes"][name]["agreement"] == pytest.approx(np.mean(two[one == index] == index))
        assert document["classes"][name]["pixels"] == 2 * np.count_nonzero(one == index)
    assert [document["classes"][name]["becomes"] for name in "xyz"] == ["z", "z", None]
    assert document["classes"]["never"] == {"agreement": None, "pixels": 0, "becomes": None}
    assert [shown.name for shown in judged.gallery] == ["a"]
    assert judged.trimmed() == 3
    assert judged.miou_document(["x", "y", "z"]) is None


def test_what_cannot_be_explained_is_said(networks: Any, tmp_path: Path) -> None:
    fp32 = networks["unet"][0]
    graph = deployed_graph(networks["unet"], "x86")
    path = bundle_of(fp32, tmp_path / "a.edgeseg", graph)
    with pytest.raises(BundleError, match="no variant 'other'"):
        explain(path, variant="other")
    with pytest.raises(BadInput, match="seconds above 0"):
        explain(path, seconds=0)
    with pytest.raises(BadInput, match="no reference frames"):
        explain(bundle_of(fp32, tmp_path / "b.edgeseg", graph, references=()))
    opened = read_bundle(path)
    alien = networks["everything"][0].graph  # the graph of another network
    swapped = write_bundle(replace(opened, files={**opened.files, FP32: alien}), tmp_path / "c.edgeseg")
    document = explain(swapped)
    assert document["layers"] == []
    assert any("not made from the FP32 graph" in note for note in document["notes"])
    only = replace(opened, variants=opened.variants[1:], files={"graph.onnx": graph})
    with pytest.raises(BundleError, match="no FP32 graph"):
        explain(write_bundle(only, tmp_path / "d.edgeseg"))
