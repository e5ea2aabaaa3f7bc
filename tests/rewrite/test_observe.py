"""What is seen of a layer is what torch's own operations would have seen there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.network import conv_of, layers
from edgeseg.rewrite.observe import POSITIONS, outputs_at, patches, positions, targets, watching
from edgeseg.rewrite.values import Conv
from tests.rewrite import teachers
from tests.rewrite.layers import kernel_of, random
from tests.rewrite.networks import HABITS

CONVS = {
    "plain": Conv(4, 5, (3, 3), padding=(1, 1)),
    "valid": Conv(4, 5, (3, 3)),
    "stride": Conv(4, 5, (3, 3), (2, 2), (1, 1)),
    "uneven stride": Conv(3, 5, (3, 3), (2, 3), (0, 1)),
    "dilation": Conv(4, 5, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "not square": Conv(2, 5, (1, 5), padding=(0, 2)),
    "all at once": Conv(3, 4, (3, 5), (2, 1), (3, 1), (2, 3)),
    "even": Conv(3, 4, (2, 4), (2, 2)),
    "much padding": Conv(2, 3, (3, 3), padding=(4, 5)),
    "pointwise": Conv(4, 5, (1, 1), (2, 1)),
}


@pytest.mark.parametrize("name", CONVS)
def test_patches_are_those_of_unfold(name: str) -> None:
    conv = CONVS[name]
    x = random(1, conv.inputs, 11, 14)
    height, width = conv.after((11, 14))
    every = torch.arange(height * width)
    unfolded = F.unfold(x, conv.kernel, conv.dilation, conv.padding, conv.stride)[0].T
    assert torch.equal(patches(x, conv, every), unfolded)
    some = torch.tensor([height * width - 1, 0, width, width])  # in any order, some twice
    assert torch.equal(patches(x, conv, some), unfolded[some])


@pytest.mark.parametrize("name", CONVS)
def test_patches_times_the_kernel_are_the_targets(name: str) -> None:
    """And so the order of a patch is that of `weight.flatten(1)`."""
    conv = CONVS[name]
    x, weight = random(1, conv.inputs, 11, 14), kernel_of(conv)
    y = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
    at = torch.randperm(y.shape[-2] * y.shape[-1])[:20]
    torch.testing.assert_close(patches(x, conv, at) @ weight.flatten(1).T, targets(y, at))


def test_patches_by_hand() -> None:
    x = torch.arange(24.0).view(1, 2, 3, 4)
    conv = Conv(2, 1, (2, 2), (1, 2), (0, 1), (2, 1))  # outputs 1 x 3
    assert patches(x, conv, torch.tensor([0, 2])).tolist() == [
        [0, 0, 0, 8, 0, 12, 0, 20],
        [3, 0, 11, 0, 15, 0, 23, 0],
    ]


def test_targets_by_hand() -> None:
    y = torch.arange(12.0).view(1, 2, 2, 3)
    assert targets(y, torch.tensor([4, 1])).tolist() == [[4, 10], [1, 7]]


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (3, 7), (1, POSITIONS)])
def test_small_maps_are_seen_whole(size: tuple[int, int]) -> None:
    for frame in (0, 5):
        assert positions("a", frame, size).tolist() == list(range(size[0] * size[1]))


def test_positions_of_large_maps_are_spread_and_depend_on_name_frame_and_seed_alone() -> None:
    size = (40, 50)
    at = positions("a", 3, size)
    assert at.dtype == torch.int64
    assert len(at) == len(set(at.tolist())) == POSITIONS
    assert int(at.min()) >= 0
    assert int(at.max()) < 2000
    for half in (at // 50 < 20, at % 50 < 25):
        assert 0.35 < float(half.double().mean()) < 0.65
    torch.manual_seed(1)  # whatever was drawn before
    assert torch.equal(at, positions("a", 3, size))
    others = (positions("b", 3, size), positions("a", 4, size), positions("a", 3, size, seed=1))
    assert all(not torch.equal(at, other) for other in others)
    assert torch.equal(positions("a", 3, size, 10), positions("a", 3, size, 10))
    assert len(positions("a", 3, size, 10)) == 10


def test_asking_for_positions_draws_nothing_from_the_callers_random_state() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    positions("a", 0, (100, 100))
    assert torch.equal(torch.rand(3), wanted)


def test_watching_sees_every_call_and_may_replace_what_it_gives() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    nn.init.constant_(network[0].weight, 2.0)  # type: ignore[arg-type]
    nn.init.constant_(network[2].weight, 3.0)  # type: ignore[arg-type]
    seen: list[tuple[str, float, float]] = []

    def see(name: str, x: Tensor, y: Tensor) -> Tensor | None:
        seen.append((name, float(x), float(y)))
        return y + 1 if name == "0" else None

    graph = torch.fx.symbolic_trace(network)
    with torch.no_grad():
        with watching(graph, ["0", "2"], see):
            assert float(graph(torch.ones(1, 1, 1, 1))) == 9
        assert seen == [("0", 1, 2), ("2", 3, 9)]
        assert float(graph(torch.ones(1, 1, 1, 1))) == 6  # it has ended
        with pytest.raises(ZeroDivisionError), watching(graph, ["0"], lambda *_: 1 / 0):  # type: ignore[arg-type]
            graph(torch.ones(1, 1, 1, 1))
        assert float(graph(torch.ones(1, 1, 1, 1))) == 6  # also where that fails


def test_teacher_and_student_are_asked_at_the_same_positions() -> None:
    """The rewritten layer's module is a chain, its inputs are others; the places are the same."""
    network, frames = teachers.unet(), teachers.images(3)
    some = teachers.rewritable(network)
    kept: list[int] = []

    def keep(part: Tensor) -> Tensor:
        kept.append(part.numel())
        return part

    found = outputs_at(network, some, frames, keep, seed=4)
    assert list(found) == [layer.name for layer in some]
    assert len(kept) == len(some) * len(frames)
    with torch.no_grad():
        for layer in some:
            module = network.get_submodule(layer.name)
            maps: list[Tensor] = []
            hook = module.register_forward_hook(lambda _m, _i, output, maps=maps: maps.append(output))
            for image in frames:
                network(image)
            hook.remove()
            for frame, y in enumerate(maps):
                at = positions(layer.name, frame, (y.shape[-2], y.shape[-1]), seed=4)
                assert torch.equal(found[layer.name][frame], y[0].flatten(1).T[at])


def test_of_a_layer_called_twice_the_first_call_is_the_target() -> None:
    network = teachers.network_of(HABITS["twice"], (20, 24))
    (layer,) = layers(network, (20, 24))
    frames = teachers.images(2, size=(20, 24))
    found = outputs_at(network, [layer], frames, lambda part: part)
    module = network.get_submodule(layer.name)
    assert isinstance(module, nn.Conv2d)
    assert conv_of(module) == layer.conv
    with torch.no_grad():
        for frame, image in enumerate(frames):
            y = module(image)
            at = positions(layer.name, frame, (y.shape[-2], y.shape[-1]))
            torch.testing.assert_close(found[layer.name][frame], targets(y, at))
