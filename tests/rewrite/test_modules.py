"""The pieces as modules: against naive sums, and through ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite import values
from edgeseg.rewrite.modules import Fork, Shuffle, Take, assemble, blank
from edgeseg.rewrite.rules import RULES
from edgeseg.rewrite.values import Choice, Conv, Fitted
from tests.rewrite.effective import run
from tests.rewrite.layers import random

EVERYTHING = Choice(
    "everything",
    (12,),
    (
        values.Take(12),
        Conv(12, 24, (3, 3), (2, 1), (1, 1), (1, 1), groups=4),
        values.Shuffle(4),
        values.Fork((Conv(24, 8, (3, 3), padding=(2, 2), dilation=(2, 2)), Conv(24, 5, (1, 3), padding=(0, 1)))),
        Conv(13, 10),
    ),
)
LAYERS = {
    "3 x 3": Conv(32, 32, (3, 3), (2, 1), (1, 1)),
    "5 x 5": Conv(32, 32, (5, 5), padding=(2, 2)),
}
EVERY = [
    pytest.param(layer, choice, id=f"{name}, {choice.label}")
    for name, layer in LAYERS.items()
    for rule in RULES.values()
    for choice in rule.choices(layer, 8)
]


def fitted() -> Fitted:
    return Fitted(
        (
            torch.randperm(16, generator=torch.Generator().manual_seed(2))[:12],
            random(24, 3, 3, 3),
            None,
            (random(8, 24, 3, 3, seed=1), random(5, 24, 1, 3, seed=2)),
            random(10, 13, 1, 1, seed=3).double(),
        ),
        torch.zeros(10, 1, dtype=torch.float64),
    )


def exported(module: nn.Module, x: Tensor, file: Path, *, dynamo: bool) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(file), dynamo=dynamo, verbose=False)
    return onnx.load(file)


def answer(proto: onnx.ModelProto, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]))


def test_shuffle() -> None:
    x = random(3, 12, 2, 5)
    y = Shuffle(4)(x)
    assert y.shape == x.shape
    for group in range(4):
        for channel in range(3):
            assert torch.equal(y[:, channel * 4 + group], x[:, group * 3 + channel])
    assert torch.equal(y, F.channel_shuffle(x, 4))


def test_take() -> None:
    x = random(3, 6, 4, 5)
    index = torch.tensor([4, 0, 0])
    take = Take(index)
    index[0] = 1
    assert torch.equal(take(x), torch.stack([x[:, 4], x[:, 0], x[:, 0]], 1))
    assert take.state_dict()["index"].dtype == torch.int64
    assert Take(torch.tensor([1], dtype=torch.int32)).index.dtype == torch.int64


def test_fork() -> None:
    convs = [nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 2, 1)]
    x = random(2, 4, 5, 7)
    y = Fork(convs)(x)
    assert torch.equal(y[:, :3], convs[0](x))
    assert torch.equal(y[:, 3:], convs[1](x))


@pytest.mark.parametrize("count", [1, 3])
def test_assemble(count: int) -> None:
    made, bias = fitted(), random(10, seed=8).double()
    module = assemble(EVERYTHING, made, bias)
    x = random(count, 16, 9, 14, seed=4)
    wanted = run(EVERYTHING, made, x) + bias[:, None, None]
    assert module(x).shape == wanted.shape == (count, 10, 5, 14)
    assert torch.allclose(module(x).double(), wanted, atol=1e-5 * float(wanted.abs().max()))
    assert not module.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())
    with_bias = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and part.bias is not None]
    assert with_bias == ["4"]


def test_assembled_modules_share_nothing_with_what_they_were_made_of() -> None:
    made, bias = fitted(), torch.zeros(10)
    module = assemble(EVERYTHING, made, bias)
    x = random(1, 16, 8, 8)
    before = module(x).clone()
    for weight in (made.weights[0], made.weights[1], made.weights[4]):
        assert isinstance(weight, Tensor)
        weight.zero_()
    bias += 1
    assert torch.equal(module(x), before)


def test_wrong_weights_are_refused() -> None:
    made = fitted()
    with pytest.raises(AssertionError):
        assemble(EVERYTHING, Fitted(made.weights[:-1], made.effective), torch.zeros(10))
    with pytest.raises(AssertionError, match="kernel"):
        assemble(EVERYTHING, Fitted((*made.weights[:-1], torch.zeros(13, 10, 1, 1)), made.effective), torch.zeros(10))


@pytest.mark.parametrize(("layer", "choice"), EVERY)
def test_blank(layer: Conv, choice: Choice) -> None:
    """Of the layer's own shape, alive, no denormal numbers, and the same at every call."""
    state = torch.get_rng_state()
    module = blank(choice)
    assert torch.equal(torch.get_rng_state(), state)
    x = random(2, layer.inputs, 12, 15)
    y = module(x)
    assert y.shape == (2, layer.outputs, *layer.after((12, 15)))
    assert 0.01 < float(y.std()) < 100
    assert torch.equal(blank(choice)(x), y)


@pytest.mark.parametrize("dynamo", [True, False], ids=["program", "traced"])
def test_onnx(dynamo: bool, tmp_path: Path) -> None:
    module = assemble(EVERYTHING, fitted(), random(10, seed=8))
    x = random(1, 16, 9, 14, seed=4)
    proto = exported(module, x, tmp_path / "all.onnx", dynamo=dynamo)
    kinds = [node.op_type for node in proto.graph.node if node.op_type != "Constant"]
    assert kinds == ["Gather", "Conv", "Reshape", "Transpose", "Reshape", "Conv", "Conv", "Concat", "Conv"]
    assert torch.allclose(answer(proto, x), module(x), atol=1e-4)
    # Made from one image, it holds for three.
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    x = random(3, 16, 9, 14, seed=5)
    assert torch.allclose(answer(proto, x), module(x), atol=1e-4)


@pytest.mark.parametrize("rule", ["stacked", "grouped", "pruned"])
def test_onnx_of_rules(rule: str, tmp_path: Path) -> None:
    layer = LAYERS["5 x 5"]
    for number, choice in enumerate(RULES[rule].choices(layer, 8)):
        module = blank(choice)
        x = random(1, layer.inputs, 7, 10)
        proto = exported(module, x, tmp_path / f"{number}.onnx", dynamo=False)
        assert torch.allclose(answer(proto, x), module(x), atol=1e-4)


def test_dynamic_sizes(tmp_path: Path) -> None:
    module = nn.Sequential(Shuffle(2), Take(torch.tensor([3, 1])))
    dim = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (random(2, 4, 6, 8),),
            str(tmp_path / "dynamic.onnx"),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: dim, 2: dim, 3: dim},),
        )
    x = random(3, 4, 5, 11)
    assert torch.equal(answer(onnx.load(tmp_path / "dynamic.onnx"), x), module(x))
