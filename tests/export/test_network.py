"""From torch to the plain graph: every habit of networks, by each exporter, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeseg.errors import ModelError
from edgeseg.export import compare, fuse, to_onnx, torch_reference
from edgeseg.export.graph import run
from edgeseg.export.outputs import pick
from edgeseg.export.sizes import accepted_near, advice
from edgeseg.types import InputSpec, ModelSpec, OutputSpec, Torch
from tests import models
from tests.export.making import SPEC, agreement, made, masks, ops, proto_of

FRAMES = models.frames(2, seed=5)


def scripted(net: nn.Module, *, trace: bool = True) -> Torch:
    sample = models.image(FRAMES[:1])
    script: Any = torch.jit.trace(net, sample, strict=False) if trace else torch.jit.script(net)  # type: ignore[no-untyped-call]
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    return Torch(torch.jit.load(file).eval(), "torchscript")  # type: ignore[no-untyped-call]


# Capturing costs seconds, so it is done for the networks that differ most to it; every network is exported one way.
CAPTURED = ("unet", "dict", "pyramid", "concatenated", "shadowed")
EACH = [(name, name not in CAPTURED) for name in models.ALL]


@pytest.mark.parametrize(("name", "quick"), EACH)
def test_every_network_answers_as_in_torch(name: str, quick: bool) -> None:
    it = made(name, quick)
    parity = compare(torch_reference(it.model, SPEC), it.fused, FRAMES, agreement)
    assert parity.frames == 2
    assert parity.overall >= 0.9995
    assert parity.boundary >= 0.995
    assert len(np.unique(masks(it.fused, FRAMES[:1]))) >= 3  # the comparison is of something


@pytest.mark.parametrize("name", [name for name in CAPTURED if name != "shadowed"])
def test_tracing_gives_the_same(name: str) -> None:
    it = made(name, quick=True)
    assert any("tracing" in note for note in it.exported.notes)
    assert compare(torch_reference(it.model, SPEC), it.fused, FRAMES[:1], agreement).overall >= 0.9995


def test_a_network_that_cannot_be_traced_is_captured_even_if_quick() -> None:
    model = Torch(models.seeded(models.ShadowedModules), "state_dict")
    notes = to_onnx(model, SPEC, quick=True).notes
    assert any(note.startswith("tracing failed") for note in notes)


@pytest.mark.parametrize(("name", "quick"), EACH)
def test_nothing_of_training_is_left(name: str, quick: bool) -> None:
    graph = made(name, quick).exported.graph
    proto = proto_of(graph)
    onnx.checker.check_model(proto, full_check=True)
    assert not ops(graph) & {"Dropout", "Identity", "Constant", "Shape", "Cast", "CastLike"}
    # The only batch norm that no convolution can take in is the one behind a concatenation.
    assert ("BatchNormalization" in ops(graph)) == (name == "concatenated")
    assert len(proto.graph.output) == 1
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, *models.SIZE]
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert not any(item.metadata_props or item.doc_string for item in [*proto.graph.node, *proto.graph.initializer])
    assert b"/tests/" not in graph  # nor the paths of the machine that exported


def test_training_heads_are_gone() -> None:
    weights = [tensor.name for tensor in proto_of(made("dict").exported.graph).graph.initializer]
    assert any("classifier" in name for name in weights)
    assert not any("aux" in name or name.startswith("network.") for name in weights)
    head, parameters = made("dict").model.module, 0
    for name, value in head.named_parameters():
        parameters += value.numel() if "aux" not in name else 0
    kept = sum(numpy_helper.to_array(t).size for t in proto_of(made("dict").exported.graph).graph.initializer)
    assert kept < parameters + 32  # sizes and the like


def test_outputs_are_chosen_and_guesses_noted() -> None:
    net = models.seeded(models.DictNet)
    main, aux = (
        to_onnx(Torch(net, "state_dict"), replace(SPEC, output=OutputSpec(key, SPEC.output.classes)), quick=True)
        for key in ("out", "aux")
    )
    sample = np.random.default_rng(3).standard_normal((1, 3, *models.SIZE), dtype=np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(sample))
    for exported, key in ((main, "out"), (aux, "aux")):
        (found,) = run(proto_of(exported.graph), sample).values()
        np.testing.assert_allclose(found, wanted[key].numpy(), atol=1e-3)
    assert not any("is taken" in note for note in main.notes)
    assert any("aux, out, out is taken" in note for note in made("dict").exported.notes)


@pytest.mark.parametrize(
    ("index", "size"), [(0, (48, 64)), ("1.0", (24, 32)), ("1.1", (12, 16))], ids=["first", "nested", "deep"]
)
def test_nested_outputs(index: int | str, size: tuple[int, int]) -> None:
    net = Torch(models.seeded(models.TupleNet), "state_dict")
    exported = to_onnx(net, replace(SPEC, output=OutputSpec(index)), quick=True)
    (found,) = run(proto_of(exported.graph), np.zeros((1, 3, *models.SIZE), np.float32)).values()
    assert found.shape[2:] == size


def test_pick() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert pick(a, 0) == (a, None)
    assert pick((a, b), 1)[0] is b
    assert pick({"x": a, "out": b}, 0)[0] is b
    assert pick({"x": a, "out": {"deep": b}}, "out.deep") == (b, None)
    assert pick({"a.b": b}, "a.b")[0] is b
    assert pick([[b, a]], 0)[0] is b
    for returned, index in ((a, 1), ((a, b), 2), ({"x": a}, "out"), ((a, b), "out"), ({"x": a}, "x.y")):
        with pytest.raises(ModelError, match=r"output\.index"):
            pick(returned, index)


@pytest.mark.parametrize("name", ["dict", "tuple", "unet", "depthwise"])
def test_torchscript(name: str) -> None:
    net = models.seeded(models.ALL[name])
    for model in [scripted(net)] + [scripted(net, trace=False)] * (name == "depthwise"):
        exported = to_onnx(model, SPEC)
        assert "BatchNormalization" not in ops(exported.graph)
        fused = fuse(exported.graph, SPEC)
        assert compare(torch_reference(Torch(net, "pickle"), SPEC), fused, FRAMES, agreement).overall >= 0.9995


def test_exported_program() -> None:
    net = models.seeded(models.DictNet)
    program = torch.export.export(net, (models.image(FRAMES[:1]),))
    exported = to_onnx(Torch(program.module(), "exported", program), SPEC)
    assert not any("aux" in tensor.name for tensor in proto_of(exported.graph).graph.initializer)
    fused = fuse(exported.graph, SPEC)
    assert compare(torch_reference(Torch(net, "pickle"), SPEC), fused, FRAMES, agreement).overall >= 0.9995
    with pytest.raises(ModelError, match=r"exported for 1 x 3 x 48 x 64"):
        to_onnx(Torch(program.module(), "exported", program), replace(SPEC, input=InputSpec((40, 64))))


def test_sizes_that_fit_are_named() -> None:
    net = models.seeded(models.MultiplesOf8)
    for model in (Torch(net, "state_dict"), scripted(net, trace=False)):
        with pytest.raises(ModelError, match=r"50x64.*sizes? .*multiples of 8: the nearest are 48x64 and 56x64"):
            to_onnx(model, replace(SPEC, input=InputSpec((50, 64))))


def test_the_multiple_is_found() -> None:
    def of(multiple: int, least: int = 1) -> Any:
        return lambda size: all(side % multiple == 0 and side >= least for side in size)

    assert accepted_near((100, 100), of(32)) == (32, (96, 96), (128, 128))
    assert accepted_near((180, 240), of(8)) == (8, (176, 240), (184, 240))
    assert accepted_near((20, 40), of(32)) == (32, None, (32, 64))
    assert accepted_near((100, 100), of(7)) is None
    assert accepted_near((100, 100), lambda size: False) is None
    assert "32x64" in advice((20, 40), of(32))
    assert "No size" in advice((100, 100), lambda size: False)


def test_opsets() -> None:
    assert made("unet").exported.opset == 17
    model = made("pyramid").model
    assert made("pyramid").exported.opset == 17  # though torch.export's mean is ReduceMean of 18
    sample = np.random.default_rng(3).standard_normal((1, 3, *models.SIZE), dtype=np.float32)
    (old,) = run(proto_of(made("pyramid").exported.graph), sample).values()
    newer = to_onnx(model, SPEC, opset=20, quick=True)
    assert newer.opset == 20
    np.testing.assert_allclose(next(iter(run(proto_of(newer.graph), sample).values())), old, atol=1e-4)
    with pytest.raises(ModelError, match="oldest"):
        to_onnx(model, SPEC, opset=12)


class Branching(nn.Module):
    """A branch on the values of the image: torch.export refuses it, tracing fixes it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, models.CLASSES, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if x.abs().sum() > 0 else x


class Hopeless(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.modules: list[nn.Module] = []  # type: ignore[assignment]


def test_what_torch_export_refuses_is_traced_and_said() -> None:
    exported = to_onnx(Torch(models.seeded(Branching), "state_dict"), SPEC)
    assert exported.notes[0].startswith("torch.export failed")
    assert "fixed as they were" in exported.notes[1]


def test_what_nobody_can_export_is_refused_with_both_reasons() -> None:
    with pytest.raises(ModelError, match=r"torch\.export failed .*; tracing failed .*\.onnx"):
        to_onnx(Torch(Hopeless().eval(), "state_dict"), SPEC)


def test_dropout_that_never_stops_is_refused() -> None:
    class Always(Branching):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.head(x), 0.5)  # training=True is its default

    for quick in (False, True):
        with pytest.raises(ModelError, match="still trains"):
            to_onnx(Torch(Always().eval(), "state_dict"), SPEC, quick=quick)


def test_a_simplifier_that_breaks_the_graph_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxslim

    honest = onnxslim.slim

    def spoil(proto: onnx.ModelProto) -> onnx.ModelProto:
        slim: onnx.ModelProto = honest(proto)
        tensor = next(t for t in slim.graph.initializer if len(t.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
        return slim

    def fail(proto: onnx.ModelProto) -> onnx.ModelProto:
        raise KeyError("pattern")

    model = made("low_resolution", quick=True).model
    for broken, note in ((spoil, "changed the result"), (fail, "onnxslim failed")):
        monkeypatch.setattr(onnxslim, "slim", broken)
        exported = to_onnx(model, SPEC, quick=True)
        assert any(note in said for said in exported.notes)
        fused = fuse(exported.graph, SPEC)
        assert compare(torch_reference(model, SPEC), fused, FRAMES[:1], agreement).overall == 1.0


@pytest.mark.parametrize(("name", "quick"), [("unet", False), ("low_resolution", True), ("dict", True)])
def test_dynamic_sizes_and_batches(name: str, quick: bool) -> None:
    model = made(name).model
    fused = fuse(to_onnx(model, SPEC, dynamic=True, quick=quick).graph, SPEC, dynamic=True)
    for count, size in ((1, models.SIZE), (2, (64, 48)), (3, (80, 96))):
        frames = models.frames(count, size, seed=count)
        found = masks(fused, frames)
        assert found.shape == (count, *size)
        reference = torch_reference(model, replace(SPEC, input=replace(SPEC.input, size=size)))
        for frame, mask in zip(frames, found, strict=True):
            assert (reference(frame) == mask).mean() >= 0.9995


def test_a_program_of_one_size_cannot_be_dynamic() -> None:
    net = models.seeded(models.LowResolution)
    program = torch.export.export(net, (models.image(FRAMES[:1]),))
    with pytest.raises(ModelError, match="dynamic axes"):
        to_onnx(Torch(program.module(), "exported", program), SPEC, dynamic=True)


def test_one_channel_networks() -> None:
    for sigmoid, activation in ((False, "logits"), (True, "probabilities")):
        for threshold in (0.3, 0.5, 0.9):
            output = OutputSpec(classes=("no", "yes"), activation=activation, threshold=threshold)  # type: ignore[arg-type]
            spec = ModelSpec("one", SPEC.input, output)
            model = Torch(models.seeded(models.OneChannel, sigmoid), "state_dict")
            fused = fuse(to_onnx(model, spec, quick=True).graph, spec)
            reference = torch_reference(model, spec)
            wanted = np.stack([reference(frame) for frame in FRAMES])
            found = np.concatenate([masks(fused, frame[None]) for frame in FRAMES])
            assert set(np.unique(wanted)) == {0, 1}
            assert (wanted == found).mean() >= 0.9995


def test_probabilities_taken_for_scores_are_refused() -> None:
    # A threshold of 0 for scores would call every probability class 1, and the reference would agree.
    spec = ModelSpec("one", SPEC.input, OutputSpec(classes=("no", "yes")))
    model = Torch(models.seeded(models.OneChannel, True), "state_dict")
    graph = to_onnx(model, spec, quick=True).graph
    with pytest.raises(ModelError, match='activation = "probabilities"'):
        fuse(graph, spec)
