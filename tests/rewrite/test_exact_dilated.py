"""Dilated convolutions as plain ones of their phases: the same outputs, and moves that are shared where they can be."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeseg.export import to_onnx
from edgeseg.export.graph import opened
from edgeseg.graph import Graph
from edgeseg.intake import load
from edgeseg.rewrite.exact import OFFERED, dilated, exact
from edgeseg.rewrite.network import batchable, capture, macs_of
from edgeseg.rewrite.save import save
from edgeseg.types import InputSpec, ModelSpec, OutputSpec, Torch
from tests.rewrite import nets

SAME: dict[str, Any] = {"kernel_size": 3, "padding": 2, "dilation": 2}
ALONE: list[dict[str, Any]] = [
    SAME,
    {"kernel_size": 3, "padding": "same", "dilation": 3, "bias": False},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "dilation": 4},
    {"kernel_size": 3, "padding": 7, "dilation": 3},
    {"kernel_size": 2, "padding": (1, 3), "dilation": 2},
    {"kernel_size": (2, 4), "padding": (5, 3), "dilation": (3, 2)},
    {"kernel_size": 3, "padding": (4, 1), "dilation": (4, 1)},
    {"kernel_size": (1, 3), "padding": (0, 6), "dilation": (5, 6)},
    {"kernel_size": 5, "padding": 12, "dilation": 6, "groups": 2},
    {"kernel_size": 3, "padding": 4, "dilation": 4, "groups": 4},
    {"kernel_size": 3, "padding": 18, "dilation": 18},
]


def transposed(network: nn.Module) -> int:
    return nets.operations(network).count("permute")  # type: ignore[arg-type]


def plain(network: nn.Module) -> bool:
    return all(part.dilation == (1, 1) for part in network.modules() if isinstance(part, nn.Conv2d))


@pytest.mark.parametrize("size", [(19, 26), (24, 36)])
@pytest.mark.parametrize("how", ALONE, ids=str)
def test_one_layer(how: dict[str, Any], size: tuple[int, int]) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, **how), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    network, changes = nets.unchanged(module, dilated.apply, size)
    assert [change.layers[0] for change in changes] == ["2"]
    assert plain(network) or how["kernel_size"] == (1, 3)
    assert transposed(network) == 2


@pytest.mark.parametrize("seed", range(30))
def test_any_layer(seed: int) -> None:
    """Random kernels, dilations, padding, groups and sizes, several images at once."""
    chance = random.Random(seed)
    size = chance.randint(9, 24), chance.randint(9, 24)
    groups, bias = chance.choice([1, 2, 4]), chance.random() < 0.5
    kernel = chance.choice([1, 2, 3, 4]), chance.choice([2, 3, 5])
    rate = chance.choice([1, 2, 3]), chance.choice([2, 3])
    least = [max(0, -((size[axis] - rate[axis] * (kernel[axis] - 1) - 1) // 2)) for axis in (0, 1)]
    padding = least[0] + chance.randint(0, 6), least[1] + chance.randint(0, 6)
    conv = nn.Conv2d(4, 8, kernel, 1, padding, rate, groups, bias)
    network, changes = nets.unchanged(nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU()), dilated.apply, size)
    assert len(changes) == 1
    assert batchable(network.float(), size)


class Stage(nn.Module):
    """Residual blocks of a dilated ResNet with four channels inside and `outer` outside, between plain convolutions."""

    def __init__(self, count: int = 2, outer: int = 4, dilation: int = 2, inner: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, outer, 3, padding=1), inner()
        self.reduce = nn.ModuleList([nn.Conv2d(outer, 4, 1) for _ in range(count)])
        self.wide = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=dilation, dilation=dilation) for _ in range(count)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(count)])
        self.grow = nn.ModuleList([nn.Conv2d(4, outer, 1) for _ in range(count)])
        self.head = nn.Conv2d(outer, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for reduce, wide, norm, grow in zip(self.reduce, self.wide, self.norms, self.grow, strict=True):
            x = (x + grow(self.inner(norm(wide(reduce(x).relu()))))).relu_()
        out: Tensor = self.head(x)
        return out


def convolutions(change: Any) -> int:
    return sum(layer.startswith("wide") for layer in change.layers)


def test_a_stage_shares_the_moves_where_that_moves_less() -> None:
    """Shared: what enters, once in each direction; alone: what every dilated convolution reads and gives."""
    for count, outer, size, runs, moves, masks in [
        (2, 4, (24, 32), [2], 2, 0),
        (2, 16, (24, 32), [1, 1], 4, 0),  # 2 moves of 16 channels against 4 of 4
        (6, 16, (24, 32), [6], 2, 0),  # against 12 of 4
        (6, 16, (23, 30), [1] * 6, 12, 0),  # with 6 masks of 4 that would be as much as the 12
        (10, 16, (23, 30), [10], 3, 9),  # the first reads what is padded anyway
    ]:
        network, changes = nets.unchanged(Stage(count, outer), dilated.apply, size)
        assert [convolutions(change) for change in changes] == runs
        assert transposed(network) == moves
        assert nets.operations(network).count("mul") == masks
        assert plain(network)
        assert batchable(network.float(), size)


def test_macs_are_those_of_what_is_there() -> None:
    for size, grown in (((24, 32), 1.0), ((23, 30), 24 * 30 / (23 * 30))):
        network = nets.captured(nets.lively(Stage(3)), size)
        exact(network, size)
        whole = macs_of(network.float(), size)
        (change,) = nets.same(network.double(), dilated.apply, size)
        weights = sum(weights_of(name) for name in change.layers)
        assert change.macs_before == weights * size[0] * size[1]
        assert change.macs_after == round(change.macs_before * grown)
        assert macs_of(network.float(), size) - whole == change.macs_after - change.macs_before


def weights_of(name: str) -> int:
    return 4 * 4 * (9 if name.startswith("wide") else 1)


def test_a_mask_is_needed_where_the_size_does_not_divide() -> None:
    """Without it the bias behind the last row is seen by the next convolution: the tests above would see it."""
    size = (23, 30)
    network = nets.captured(nets.lively(Stage(3)), size)
    before = nets.outputs(network, size)
    dilated.apply(network, size)
    (name,) = [name for name, _ in network.named_buffers() if name.startswith("mask")]
    mask = network.get_buffer(name)
    assert mask.shape == (4, 1, 12, 15)
    assert int(mask.sum()) == 23 * 30
    mask.fill_(1.0)
    after = nets.outputs(network, size)
    difference = max(float((old - new).abs().max()) for old, new in zip(before, after, strict=True))
    assert difference > 1e-3 * float(before[0].abs().max())


def test_what_could_become_infinite_behind_the_map_ends_a_run() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt()

    for size in ((24, 32), (23, 30)):
        network, changes = nets.unchanged(Stage(inner=Root), dilated.apply, size)
        assert [change.layers for change in changes] == [("wide.0",), ("wide.1",)]
        assert "mul" not in nets.operations(network)


def test_runs_of_other_dilations_or_sizes_are_their_own() -> None:
    def run(self: Any, x: Tensor) -> Any:
        x = self.b(self.a(x).relu()).sigmoid()
        y = self.d(self.c(x).relu())
        return torch.cat([self.e(nn.functional.max_pool2d(x, 2)).flatten(), y.flatten(), x.flatten()])[None]

    def conv(rate: int) -> nn.Module:
        return nn.Conv2d(4, 4, 3, padding=rate, dilation=rate)

    parts = {"a": nn.Conv2d(3, 4, 3, padding=2, dilation=2), "b": conv(2), "c": conv(3), "d": conv(3), "e": conv(2)}
    _, changes = nets.unchanged(nets.net(run, **parts), dilated.apply, (24, 30))
    assert [change.layers for change in changes] == [("a", "b"), ("c", "d"), ("e",)]


def test_concatenations_and_a_layer_called_twice_are_shared() -> None:
    def run(self: Any, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.a(x).relu()
        return self.b(torch.cat([self.a(y), y, x], 1)), y

    parts = {"stem": nn.Conv2d(3, 4, 1), "a": nn.Conv2d(4, 4, **SAME), "b": nn.Conv2d(12, 5, **SAME)}
    network, changes = nets.unchanged(nets.net(run, **parts), dilated.apply, (22, 27))
    assert [change.layers for change in changes] == [("a", "b")]
    assert nets.kinds(network) == ["Conv2d"] * 4
    assert len([name for name, _ in network.named_parameters()]) == 6, "the kernel of the one called twice is one"
    assert nets.operations(network).count("mul") == 2, "what the map gave is masked by its padding"


LEFT: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "dilation": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2},
    {"kernel_size": 3, "padding": 24, "dilation": 24},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("how", LEFT, ids=str)
def test_what_is_left_alone(how: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, **how))
    network, changes = nets.unchanged(module, dilated.apply, (19, 26))
    assert not changes or how.get("padding_mode")
    assert how.get("padding_mode") or transposed(network) == 0


def test_only_what_may_be_touched_and_it_is_on_offer() -> None:
    _, changes = nets.unchanged(Stage(), lambda network, size: dilated.apply(network, size, only=["wide.1"]))
    assert [change.layers for change in changes] == [("wide.1",)]
    assert OFFERED["dilated"] is dilated.apply


def test_from_file_to_graph(tmp_path: Path) -> None:
    """Saved, read again, exported: moves alone stand where the exporter wrote them, and the scores are the same."""
    size = (23, 30)
    spec = ModelSpec("stage", InputSpec(size), OutputSpec(classes=tuple("abcde")))
    network = capture(Torch(nets.lively(Stage(3)), "state_dict"), size).network
    exact(network, size)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        wanted = deepcopy(network)(image)
        dilated.apply(network, size)
    save(network, spec, tmp_path / "stage.pt2")
    read = load(tmp_path / "stage.pt2", spec)
    assert isinstance(read, Torch)
    for given, quick in ((read, False), (Torch(network, "state_dict"), True)):
        made = to_onnx(given, spec, quick=quick)
        kinds = [node.op_type for node in Graph(made.graph).nodes]
        assert kinds.count("Transpose") == 3
        assert kinds.count("Mul") == 2
        assert set(kinds) == {"Conv", "Relu", "Add", "Mul", "Pad", "Slice", "Reshape", "Transpose"}
        (scores,) = opened(made.graph)(image.numpy()).values()
        assert float(np.abs(scores - wanted.numpy()).max()) <= 1e-4 * float(wanted.abs().max())
