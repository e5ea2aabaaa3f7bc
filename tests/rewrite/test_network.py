"""Captured networks against the originals, and what is asked of them against counts by hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from edgeseg.errors import ModelError
from edgeseg.export.outputs import pick
from edgeseg.intake import load
from edgeseg.measure.profile import profile
from edgeseg.rewrite.network import (
    Captured,
    batchable,
    capture,
    conv_of,
    layers,
    macs_of,
    parameters_of,
    refusal,
    tidy,
)
from edgeseg.rewrite.tracing import plain_values
from edgeseg.rewrite.values import Conv, Layer
from edgeseg.types import InputSpec, ModelSpec, Torch
from edgeseg.zoo import unet
from tests import models
from tests.models import seeded
from tests.rewrite.networks import HABITS, PADDINGS, SIZE, conv, of, weights

SHARED = Path(os.environ.get("EDGESEG_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def captured(make: Callable[[], nn.Module], size: tuple[int, int] = SIZE) -> tuple[nn.Module, Captured]:
    module = seeded(make)
    return module, capture(Torch(module, "pickle"), size)


def leaves(value: Any) -> list[Tensor]:
    return [part for part in _pytree.tree_leaves(plain_values(value)) if isinstance(part, Tensor)]


def picture(size: tuple[int, int], seed: int = 7, count: int = 1) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", HABITS)
def test_rare_habits_compute_the_same(name: str) -> None:
    module, found = captured(HABITS[name])
    for seed in (7, 8):
        assert same(module(picture(SIZE, seed)), found.network(picture(SIZE, seed)))
    assert found.untouched == ()
    assert not any(parameter.requires_grad for parameter in found.network.parameters())
    only_plain_layers_and_calls(found)


def only_plain_layers_and_calls(found: Captured) -> None:
    for node in found.network.graph.nodes:
        if node.op == "call_module":
            part = found.network.get_submodule(str(node.target))
            assert type(part) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
            if isinstance(part, nn.Conv2d):
                assert part.padding_mode == "zeros"
                assert all(isinstance(side, int) for side in part.padding)
        elif node.op == "call_function" and hasattr(node.target, "_schema"):
            assert not node.target._schema.is_mutable
            assert "conv" not in node.target._schema.name


@torch.no_grad()
@pytest.mark.parametrize("name", models.ALL)
def test_published_habits_compute_the_same(name: str) -> None:
    module, found = captured(models.ALL[name], models.SIZE)
    image = models.image(models.frames(1))
    returned, kept = module(image), found.network(image)
    assert same(returned, kept)
    assert type(returned) is type(kept)
    scores, rewritten = pick(returned, 0)[0], pick(kept, 0)[0]
    assert torch.equal(scores.argmax(1), rewritten.argmax(1))
    assert found.untouched == ()
    assert found.notes == ()
    assert batchable(found.network, models.SIZE)
    authors = {n for n, part in nn.Module.named_modules(module) if isinstance(part, nn.Conv2d)}
    assert {layer.name for layer in layers(found.network, models.SIZE)} == authors


@torch.no_grad()
@pytest.mark.parametrize("name", PADDINGS)
def test_the_layer_is_the_convolution_of_its_values(name: str) -> None:
    """`Conv.after` predicts what the module gives for the input that it has after the nodes that pad."""
    module, found = captured(PADDINGS[name])
    if isinstance(module, nn.ConvTranspose2d):
        assert layers(found.network, SIZE) == ()
        return
    (layer,) = layers(found.network, SIZE)
    assert layer.positions == prod(layer.conv.after(layer.size)) == prod(module(picture(SIZE)).shape[2:])
    assert layer.conv.kernel == module.kernel_size
    assert layer.conv.groups == module.groups


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "index"),
    [("dict of lists", "p.1.0"), ("named", "out"), ("named", 1), ("dataclass", "out"), ("object", "out"), ("proxy", 0)],
)
def test_the_spec_picks_the_same_output(name: str, index: int | str) -> None:
    module, found = captured(HABITS[name])
    image = picture(SIZE)
    assert torch.equal(pick(module(image), index)[0], pick(found.network(image), index)[0])


def test_weights_are_copies() -> None:
    module, found = captured(HABITS["soup"])
    before = found.network(picture(SIZE))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert same(before, found.network(picture(SIZE)))
    assert leaves(before)[0].abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("functional", ["w", "v"]),
        ("weight norm", ["a"]),
        ("old weight norm", ["a"]),
        ("spectral norm", ["a"]),
        ("standardized", ["w"]),
        ("scripted", ["0", "1.conv"]),
        ("traced", ["0", "1.conv"]),
        ("scripted part", ["0", "1.conv", "2"]),
        ("symbolic", ["0.0", "2.2"]),
        ("dataclass", ["a", "b"]),
        ("same", ["conv2d"]),
        ("taken names", ["graph_.0", "forward_", "code_"]),
    ],
)
def test_layers_have_the_authors_names(name: str, wanted: list[str]) -> None:
    _, found = captured(HABITS[name])
    assert [layer.name for layer in layers(found.network, SIZE)] == wanted


def test_a_convolution_used_twice_is_one_layer() -> None:
    _, found = captured(HABITS["twice"])
    assert layers(found.network, SIZE) == (
        Layer("a", Conv(3, 3, (3, 3)), size=SIZE, positions=18 * 22 + 7 * 9, calls=2),
    )
    _, found = captured(HABITS["weight norm"])
    assert [layer.calls for layer in layers(found.network, SIZE)] == [2]


TIED = {
    "two options": of(lambda s, x: F.conv2d(x, s.w)[..., ::2, ::2] + F.conv2d(x, s.w, stride=2), w=weights(4, 3, 3, 3)),
    "transposed": of(lambda s, x: F.conv_transpose2d(s.a(x), s.a.weight), a=conv(3, 4, 3)),
    "penalty": of(lambda s, x: s.a(x) + s.a.weight.square().sum(), a=conv(3, 4, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", TIED)
def test_tied_weights_are_left_alone(name: str) -> None:
    module, found = captured(TIED[name])
    assert same(module(picture(SIZE)), found.network(picture(SIZE)))
    assert [part for part, _ in found.untouched] == ["w" if name == "two options" else "a"]
    assert all("tied" in why for _, why in found.untouched)
    assert layers(found.network, SIZE) == ()
    assert macs_of(found.network, SIZE) > 0  # counted all the same


@torch.no_grad()
def test_what_is_no_layer_for_a_rule_is_named() -> None:
    make = of(
        lambda s, x: s.line(F.conv2d(x, s.a(x).mean((0, 2, 3)).view(4, 1, 1, 1).expand(4, 3, 3, 3)).flatten(2)),
        a=conv(3, 4, 3),
        line=lambda: nn.Conv1d(4, 2, 3),
    )
    module, found = captured(make)
    assert same(module(picture(SIZE)), found.network(picture(SIZE)))
    reasons = dict(found.untouched)
    assert reasons["line"] == "it is a convolution in 1 dimension"
    assert [why for name, why in found.untouched if name != "line"] == ["its weights are computed from the image"]
    assert [layer.name for layer in layers(found.network, SIZE)] == ["a"]


def _remembering(self: Any, x: Tensor) -> Tensor:
    self.last += x.mean()
    return self.a(x) + self.last  # type: ignore[no-any-return]


def _autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.a(x)  # type: ignore[no-any-return]


def _two_ways(self: Any, x: Tensor) -> Any:
    return self.a(x) if float(x.flatten()[0]) > float(x.flatten()[1]) else -self.a(x)


class Deaf(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"out": x, "extra": object()}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (of(_remembering, a=conv(3, 4, 3), last=torch.zeros(())), "buffer 'last'"),
        (of(_autocast, a=conv(3, 4, 3)), "autocast"),
        (of(lambda s, x: s.a(F.dropout(x)), a=conv(3, 4, 3)), "another result each time"),
        (of(_two_ways, a=conv(3, 4, 3)), "does not compute what the network computes"),
        (of(lambda s, x: s.a(x), a=conv(4, 4, 3)), "does not take an image of 20x24"),
        (Deaf, "returns a object"),
    ],
    ids=["state", "autocast", "random", "branch", "size", "returns"],
)
def test_what_cannot_be_captured_is_refused(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        captured(make)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    captured(HABITS["branch"])
    assert capfd.readouterr() == ("", "")


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs(dynamic: bool) -> None:
    module = seeded(models.UNet)
    free = torch.export.Dim.AUTO
    program = torch.export.export(
        module,
        (picture(models.SIZE, count=2 if dynamic else 1),),
        dynamic_shapes=({0: free, 2: free, 3: free},) if dynamic else None,
    )
    found = capture(Torch(program.module(), "exported", program), models.SIZE)
    assert same(module(picture(models.SIZE)), found.network(picture(models.SIZE)))
    assert "up2.0" in {layer.name for layer in layers(found.network, models.SIZE)}
    assert found.notes == ()


@torch.no_grad()
def test_a_decomposed_program_has_its_layers_back() -> None:
    module = seeded(models.UNet)
    program = torch.export.export(module, (picture(models.SIZE),)).run_decompositions()
    found = capture(Torch(program.module(), "exported", program), models.SIZE)
    assert same(module(picture(models.SIZE)), found.network(picture(models.SIZE)))
    kinds = [
        type(found.network.get_submodule(str(n.target))) for n in found.network.graph.nodes if n.op == "call_module"
    ]
    assert kinds.count(nn.Conv2d) == 6
    assert kinds.count(nn.BatchNorm2d) == 5


@torch.no_grad()
def test_a_block_without_gradients_of_an_exported_program() -> None:
    module = seeded(HABITS["no grad"])
    with torch.enable_grad():
        program = torch.export.export(module, (picture(SIZE),))
    found = capture(Torch(program.module(), "exported", program), SIZE)
    assert same(module(picture(SIZE)), found.network(picture(SIZE)))
    assert [layer.name for layer in layers(found.network, SIZE)] == ["a", "b"]


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs the trained model of EDGESEG_SHARED")
@torch.no_grad()
def test_the_trained_model_in_each_form() -> None:
    size = (64, 80)
    spec = ModelSpec("unet", InputSpec(size))
    names = []
    for file in ("unet_camvid.pt", "unet_camvid_torchscript.pt"):
        stored = SHARED / "models" / file
        spec = ModelSpec("unet", InputSpec(size), factory=_factory())
        model = load(stored, spec)
        assert isinstance(model, Torch)
        found = capture(model, size)
        assert torch.allclose(
            leaves(model.module(picture(size)))[0], leaves(found.network(picture(size)))[0], atol=1e-5
        )
        names.append([layer.name for layer in layers(found.network, size)])
    assert names[0] == names[1]
    assert "e1a.conv" in names[0]


def _factory() -> str:
    from edgeseg.spec import read_spec

    factory = read_spec(SHARED / "models" / "unet_camvid.toml").factory
    assert factory is not None
    return factory


def test_captured_again_it_is_the_same() -> None:
    _, found = captured(models.ALL["pyramid"], models.SIZE)
    again = capture(Torch(found.network, "pickle"), models.SIZE)
    assert same(found.network(picture(models.SIZE)), again.network(picture(models.SIZE)))
    assert layers(again.network, models.SIZE) == layers(found.network, models.SIZE)


def test_it_can_be_copied() -> None:
    _, found = captured(HABITS["buffers"])
    assert same(copy.deepcopy(found.network)(picture(SIZE)), found.network(picture(SIZE)))


def test_tidy_removes_what_nothing_needs() -> None:
    _, found = captured(HABITS["buffers"])
    network = found.network
    held = len(list(network.buffers()))
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    (first,) = (node for node in network.graph.nodes if node.op == "call_module")
    output.args = (first,)
    tidy(network)
    assert held > 2
    assert list(network.buffers()) == []
    assert list(dict(network.named_parameters())) == ["a.weight", "a.bias"]
    assert network(picture(SIZE)).shape == (1, 4, *SIZE)


def test_layers_come_in_call_order_with_nested_ones() -> None:
    _, found = captured(of(lambda s, x: s.a(s.b(x)), a=conv(4, 4, 3), b=conv(3, 4, 3, padding=1)))
    found.network.set_submodule("a", nn.Sequential(nn.Conv2d(4, 4, (3, 1)), nn.Conv2d(4, 4, (1, 3))))
    assert layers(found.network, SIZE) == (
        Layer("b", Conv(3, 4, (3, 3), padding=(1, 1)), SIZE, 20 * 24),
        Layer("a.0", Conv(4, 4, (3, 1)), SIZE, 18 * 24),
        Layer("a.1", Conv(4, 4, (1, 3)), (18, 24), 18 * 22),
    )
    assert macs_of(found.network, SIZE) == sum(layer.macs for layer in layers(found.network, SIZE))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Conv2d(4, 4, 3), None),
        (nn.Conv2d(4, 4, (1, 3), stride=2, dilation=(1, 3)), None),
        (nn.Conv2d(64, 32, 1), "already pointwise, and narrow"),
        (nn.Conv2d(64, 33, 1), None),
        (nn.Conv2d(4, 8, 3, groups=4), "already depthwise"),
        (nn.Conv2d(4, 8, 3, groups=2), "already in 2 groups"),
        (nn.Conv2d(9216, 1, 3), None),
        (nn.Conv2d(9217, 1, 3), "too wide: 9217 channels and 9 taps, at most 9216 and 576"),
        (nn.Conv2d(1, 1, 24), None),
        (nn.Conv2d(1, 1, (24, 25)), "too wide: 1 channels and 600 taps"),
        (nn.Conv2d(910, 1, 3), None),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), "circular"),
    ],
)
def test_refusals(module: nn.Conv2d, says: str | None) -> None:
    found = refusal(module)
    assert found is None if says is None else says in (found or "")


def test_weights_that_are_not_finite_are_refused() -> None:
    module = nn.Conv2d(2, 2, 3)
    with torch.no_grad():
        module.weight[0, 0, 1, 1] = torch.inf
    assert refusal(module) == "its weights are not finite"


def test_conv_of() -> None:
    made = nn.Conv2d(6, 4, (3, 5), (2, 1), (0, 2), (1, 2), groups=2)
    assert conv_of(made) == Conv(6, 4, (3, 5), (2, 1), (0, 2), (1, 2), 2)


PART = weights(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (HABITS["shuffle"], True),  # a batch of 1 was written into its views
        (HABITS["attention"], False),  # x.mean() is over the batch too
        (of(lambda s, x: s.a(x).reshape(4, 18, 22)[None], a=conv(3, 4, 3)), False),
        (of(lambda s, x: s.a(x) + torch.zeros(1, 4, 18, 22), a=conv(3, 4, 3)), True),
        (of(lambda s, x: torch.cat([s.a(x), torch.zeros(1, 1, 18, 22)], 1), a=conv(3, 4, 3)), False),
        (of(lambda s, x: torch.cat([s.a(x), s.p.expand(len(x), -1, 18, 22)], 1), a=conv(3, 4, 3), p=PART), False),
        (of(lambda s, x: (s.a(x), s.a(x).sum()), a=conv(3, 4, 3)), False),
        (of(lambda s, x: s.a(x) - s.a(x).mean((0, 2, 3), True), a=conv(3, 4, 3)), False),
    ],
)  # fmt: skip
def test_batchable(make: Callable[[], nn.Module], wanted: bool) -> None:
    _, found = captured(make)
    assert batchable(found.network, SIZE) is wanted
    if wanted:
        images = picture(SIZE, count=3)
        together = leaves(found.network(images))[0]
        alone = torch.cat([leaves(found.network(image[None]))[0] for image in images])
        assert torch.allclose(together, alone, atol=1e-5)


def test_multiplications_are_those_of_the_exported_graph() -> None:
    from edgeseg.export import to_onnx

    for make in (models.ALL["depthwise"], models.ALL["transposed"]):
        module, found = captured(make, models.SIZE)
        graph = to_onnx(Torch(module, "pickle"), ModelSpec("m", InputSpec(models.SIZE)), quick=True).graph
        assert macs_of(found.network, models.SIZE) == profile(graph).macs


def test_multiplications_by_hand() -> None:
    _, found = captured(HABITS["fully connected"])
    assert macs_of(found.network, SIZE) == 18 * 22 * 4 * 3 * 9 + 4 * 5
    assert parameters_of(found.network) == 4 * 27 + 4 + 20 + 5
    _, found = captured(HABITS["transposed"])
    assert macs_of(found.network, SIZE) == 20 * 24 * 3 * 2 * 6
    _, found = captured(HABITS["standardized"])
    assert parameters_of(found.network) == 4 * 27


def test_the_reference_network() -> None:
    module, found = captured(lambda: unet(widths=(8, 12, 16)), (30, 44))
    assert [layer.name for layer in layers(found.network, (30, 44))][:2] == ["down.0.0", "down.0.3"]
    assert parameters_of(found.network) == sum(parameter.numel() for parameter in module.parameters())
