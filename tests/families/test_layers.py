"""Layers that the notes name, each alone: all up-samplings up to their borders, 1 x 1 with stride and pooling, kernels
of even size, and transposed convolution as the matrix that it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the networks are torch's")

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.backends.onnxruntime import probe
from edgeseg.export import fuse
from edgeseg.export.graph import parse
from edgeseg.export.lrn import normalized
from edgeseg.graph import Graph
from edgeseg.rewrite.exact import exact, transposed
from edgeseg.rewrite.network import capture
from edgeseg.types import LOGITS, Torch
from edgeseg.zoo.blocks import Bilinear
from edgeseg.zoo.chance import lively
from edgeseg.zoo.fcn import fcn8s, fcn16s, fcn32s, fcn_alexnet
from tests.families import making
from tests.models import Block

BACKENDS = ("onnxruntime", "openvino")
SMALL = (9, 11)  # few values: half of them are at a border
UPSAMPLINGS: dict[str, dict[str, Any]] = {
    "nearest": {"how": "nearest"},
    "replicate": {"how": "replicate"},
    "bilinear, half-pixel": {"how": "bilinear"},
    "bilinear, corners aligned": {"how": "bilinear", "align_corners": True},
    "bicubic, half-pixel": {"how": "bicubic"},
    "bicubic, corners aligned": {"how": "bicubic", "align_corners": True},
    "zeros": {"how": "zeros"},
    "unpool": {"how": "unpool"},
    "transposed": {"how": "transposed"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Enlarged(nn.Module):
    """Scores at a low resolution, enlarged by one call and nothing after: what a border gives is what comes out."""

    def __init__(self, enlarge: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score, self.enlarge = nn.Conv2d(3, len(making.NAMES), 3, 8, 1), enlarge

    def forward(self, x: Tensor) -> Tensor:
        return self.enlarge(self.score(x))


class Normalized(nn.Module):
    """Convolutions with local response normalisation between them; `of`: another whose weights it has."""

    def __init__(self, norm: nn.Module, of: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 24, 3, 2, 1), norm
        self.second, self.score = nn.Conv2d(24, 16, 3, 1, 1), nn.Conv2d(16, len(making.NAMES), 1)
        if of is not None:
            self.load_state_dict(of.state_dict())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.score(self.second(self.norm(self.first(x).relu())).relu())
        return functional.interpolate(x, size=making.SIZE, mode="bilinear")


def scores_of(model: Any, seen: Any) -> Any:
    return np.concatenate([values[LOGITS] for values in probe(model.graph, [LOGITS], (frame[None] for frame in seen))])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", UPSAMPLINGS)
def test_every_up_sampling_in_a_network(name: str, backend: str) -> None:
    found = making.made("upsampler", width=8, **UPSAMPLINGS[name])
    given = making.masks(found.model, backend, found.frames)
    assert making.agreement(given, found.expected) >= 0.9995
    edge = np.ones(making.SIZE, bool)
    edge[4:-4, 4:-4] = False
    assert making.agreement(given[:, edge], found.expected[:, edge]) >= 0.999


INTERPOLATIONS = [
    *((mode, align) for mode in ("bilinear", "bicubic") for align in (False, True)),
    ("nearest", None),
    ("nearest-exact", None),
]


@pytest.mark.parametrize(("mode", "align"), INTERPOLATIONS)
@pytest.mark.parametrize("size", [(72, 88), (71, 87), (40, 80)])
def test_borders_are_the_same_to_the_last_digits(mode: str, align: bool | None, size: tuple[int, int]) -> None:
    """Scores, not decisions: at every position, of whole and other factors, up to the outermost row and column."""
    module = Enlarged(lambda x: functional.interpolate(x, size=size, mode=mode, align_corners=align))
    module = lively(module, torch.cat(making.images(2)))
    if size != making.SIZE:  # then the rest is resized by what is under test as well
        module.enlarge = lambda x: functional.interpolate(
            functional.interpolate(x, size=size, mode=mode, align_corners=align), size=making.SIZE, mode="nearest"
        )
    found = making.exported(module)
    with torch.no_grad():
        wanted = torch.cat([module(image) for image in making.images(3, seed=9)]).numpy()
    difference = np.abs(scores_of(found.model, found.frames) - wanted)
    assert difference.shape[2:] == making.SIZE
    assert difference.max() <= 1e-4 * np.abs(wanted).max()
    assert making.agreement(making.masks(found.model, "openvino", found.frames), found.expected) >= 0.9995


def test_corners_aligned_or_not_are_told_apart() -> None:
    """The same weights with the other convention give other borders: the tests above would see it."""
    one, other = (making.made("upsampler", width=8, how="bilinear", align_corners=value) for value in (False, True))
    assert making.agreement(making.masks(one.model, "onnxruntime", one.frames), other.expected) < 0.99


def test_position_true_unpooling_puts_values_where_they_were() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 2, 6, 8)
    small, places = functional.max_pool2d(x, 2, return_indices=True)
    large = functional.max_unpool2d(small, places, [2, 2])
    for channel in range(2):
        for row in range(3):
            for column in range(4):
                window = x[0, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                back = large[0, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(back, torch.where(window == window.max(), window, torch.zeros(2, 2)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_local_response_normalization_between_convolutions(backend: str) -> None:
    """AlexNet's, so strong that what it does is seen; in INT8 it stays in float."""
    found = making.exported(lively(Normalized(nn.LocalResponseNorm(5, 4.0, 0.75, 0.5)), torch.cat(making.images(2))))
    graph = normalized(parse(found.exported.graph))
    model = fuse(graph.SerializeToString(), making.spec_of())
    assert making.kinds(model.graph).count("MatMul") == 1
    assert "AveragePool" not in making.kinds(model.graph)
    assert making.agreement(making.masks(model, backend, found.frames), found.expected) >= 0.9995
    small = making.int8(model, backend)
    assert making.agreement(making.masks(small, backend, found.frames, "int8"), found.expected) >= 0.9
    other = making.exported(Normalized(nn.Identity(), of=found.module)).expected
    assert making.agreement(other, found.expected) < 0.9, "without it other labels come out"


def matrix_of(kernel: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The convolution as a matrix: a row for each output, the kernel laid out in it among zeros."""
    size = kernel.shape[0]
    down, across = (height - size) // stride + 1, (width - size) // stride + 1
    rows = []
    for y in range(down):
        for x in range(across):
            row = torch.zeros(height, width, dtype=kernel.dtype)
            row[y * stride : y * stride + size, x * stride : x * stride + size] = kernel
            rows.append(row.flatten())
    return torch.stack(rows)


@pytest.mark.parametrize(("size", "kernel", "stride"), [((4, 4), 3, 1), ((5, 5), 3, 2), ((7, 9), 3, 2), ((8, 6), 2, 2)])
@torch.no_grad()
def test_transposed_convolution_is_the_transposed_matrix(size: tuple[int, int], kernel: int, stride: int) -> None:
    """The notes' own example among them: 4 x 4 and 3 x 3 make a matrix of 4 x 16; its transpose makes 16 of 4."""
    torch.manual_seed(0)
    weight = torch.randn(kernel, kernel, dtype=torch.float64)
    matrix = matrix_of(weight, *size, stride)
    image = torch.randn(size, dtype=torch.float64)
    small = functional.conv2d(image[None, None], weight[None, None], stride=stride)
    torch.testing.assert_close((matrix @ image.flatten()).view_as(small), small)
    large = functional.conv_transpose2d(small, weight[None, None], stride=stride)
    torch.testing.assert_close((matrix.T @ small.flatten()).view_as(large), large)
    assert size != (4, 4) or matrix.shape == (4, 16)


@pytest.mark.parametrize("factor", [2, 4, 8, 32])
@torch.no_grad()
def test_bilinear_transposed_convolutions_interpolate(factor: int) -> None:
    x = torch.rand(1, 3, 6, 5)
    given = Bilinear(3, factor)(x)
    wanted = functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    assert given.shape == wanted.shape
    inner = slice(factor // 2, -(factor // 2))
    torch.testing.assert_close(given[..., inner, inner], wanted[..., inner, inner])
    with pytest.raises(ValueError, match="even"):
        Bilinear(3, 3)


@pytest.mark.parametrize("make", [fcn32s, fcn16s, fcn8s])
@torch.no_grad()
def test_the_rewriter_makes_convolutions_of_fcns_transposed_ones(make: Any) -> None:
    torch.manual_seed(0)
    network = make(3, width=2).eval()
    small = capture(Torch(network, "pickle"), (64, 96)).network
    changes = transposed.apply(small, (64, 96))
    assert len(changes) == 1 + len(network.skips)
    assert not any(isinstance(part, nn.ConvTranspose2d) for part in small.modules())
    image = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(small(image), network(image), atol=1e-5, rtol=1e-4)


def test_caffes_crops_bring_scores_over_their_pixels() -> None:
    """The middle of what a score sees, layer by layer, against the position that it is put to."""
    networks: list[Any] = [make(2, width=4, padding="caffe") for make in (fcn32s, fcn16s, fcn8s)]
    every: list[Any] = [*networks, fcn_alexnet(2, width=12)]
    for network in every:
        step, at, seen = 1.0, 0.0, []
        for stage in network.stages:
            for part in stage:
                if isinstance(part, nn.Conv2d):
                    at += step * ((part.kernel_size[0] - 1) / 2 - int(part.padding[0]))
                    step *= part.stride[0]
                elif isinstance(part, nn.MaxPool2d):
                    at += step * (int(part.kernel_size) - 1) / 2  # type: ignore[arg-type]
                    step *= int(part.stride)  # type: ignore[arg-type]
            seen.append((step, at))
        at += step * (network.deep[0].kernel_size[0] - 1) / 2
        for number, crop in enumerate(network.crops):
            up = network.twice[number] if number < len(network.twice) else network.last
            factor = up.stride[0]
            step, at = step / factor, at - step / factor * (up.kernel_size[0] - 1) / 2
            if number < len(network.twice):  # of the skip, rows are cut off to bring it over the scores
                there, where = seen[-2 - number]
                assert there == step
                assert where + crop * there == at
            else:  # of the scores, to bring them over the image
                assert step == 1
                assert abs(at + crop) <= 0.5, "half a pixel is what whole pixels leave"


@torch.no_grad()
def test_a_skip_of_fcn8s_reaches_the_output() -> None:
    torch.manual_seed(0)
    network: Any = fcn8s(2, width=4).eval()
    image = torch.rand(1, 3, 64, 64)
    before = network(image)
    network.skips[1].weight.mul_(3)
    assert float((network(image) - before).abs().max()) > 1e-3


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "1x1 with stride": lambda: nn.Conv2d(8, 8, 1, 2),
    "1x1 with stride 3": lambda: nn.Conv2d(8, 8, 1, 3),
    "1x1, then pooling": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.MaxPool2d(2)),
    "pooling, then 1x1": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 1)),
    "1x1, then mean pooling": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.AvgPool2d(2)),
    "2x2": lambda: nn.Conv2d(8, 8, 2),
    "2x2 with stride": lambda: nn.Conv2d(8, 8, 2, 2),
    "4x4": lambda: nn.Conv2d(8, 8, 4, padding=1),
    "4x4 with stride": lambda: nn.Conv2d(8, 8, 4, 2, 1),
    "4x4, same": lambda: nn.Conv2d(8, 8, 4, padding="same"),
    "6x2": lambda: nn.Conv2d(8, 8, (6, 2), padding=(2, 0)),
    "in groups, shuffled": lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.ChannelShuffle(2)),
    "linear at every pixel": lambda: nn.Sequential(Permuted(0, 2, 3, 1), nn.Linear(8, 8), Permuted(0, 3, 1, 2)),
}


class Permuted(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_go_through(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]
    module = nn.Sequential(Block(3, 8, stride=2), layer(), nn.ReLU(), Block(8, 8), nn.Conv2d(8, len(making.NAMES), 1))
    module = lively(module, torch.cat(making.images(4)))
    found = making.exported(module)
    for backend in BACKENDS:
        assert making.agreement(making.masks(found.model, backend, found.frames), found.expected) >= 0.9995
        small = making.int8(found.model, backend)
        assert making.agreement(making.masks(small, backend, found.frames, "int8"), found.expected) >= 0.85
    network = capture(Torch(module, "pickle"), making.SIZE).network
    exact(network, making.SIZE)
    again = making.exported(network)
    assert making.agreement(again.expected, found.expected) >= 0.9995


@pytest.mark.parametrize("name", ["4x4", "4x4 with stride", "2x2"])
def test_even_kernels_are_rewritten_too(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Block(3, 16, stride=2), LAYERS_16[name](), nn.ReLU(), nn.Conv2d(16, len(making.NAMES), 1))
    module = lively(module, torch.cat(making.images(4)))
    network = making.teacher(module)
    after, count = making.rewritten_to(network, 0.9, "separable")
    assert count >= 1
    small = making.exported(after)
    assert making.agreement(small.expected, making.exported(module).expected) >= 0.8


LAYERS_16: dict[str, Callable[[], nn.Module]] = {
    "4x4": lambda: nn.Conv2d(16, 16, 4, padding=1),
    "4x4 with stride": lambda: nn.Conv2d(16, 16, 4, 2, 1),
    "2x2": lambda: nn.Conv2d(16, 16, 2),
}


@pytest.mark.parametrize("bins", [(1,), (2, 3), (1, 2, 3, 6), (7,)])
def test_pyramids_that_do_not_divide_the_map_are_two_products(bins: tuple[int, ...]) -> None:
    found = making.made("pspnet", depth=18, width=4, bins=bins)
    kinds = making.kinds(found.model.graph)
    uneven = [count for count in bins if 9 % count or 11 % count]
    assert kinds.count("MatMul") == 2 * len(uneven)
    assert len(Graph(found.model.graph).nodes) < 120
    assert making.agreement(making.masks(found.model, "onnxruntime", found.frames), found.expected) >= 0.9995
