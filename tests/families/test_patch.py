"""A classifier slid over the image, and the fully convolutional network that it is: the same numbers, once."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.rewrite.exact import linear
from edgeseg.rewrite.network import capture
from edgeseg.types import Torch
from edgeseg.zoo import patch_network
from edgeseg.zoo.patch import fully_convolutional, mirrored, window_classifier


def classifier(*, kernels: tuple[int, ...] = (4, 3), last: int = 2) -> tuple[nn.Sequential, int]:
    torch.manual_seed(0)
    made, window = window_classifier(3, 6, kernels, last, hidden=7)
    return made.double().eval(), window


def macs(call: object, image: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call(image)  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(("kernels", "last"), [((4, 3), 2), ((3,), 3), ((2, 3, 2), 1)])
@torch.no_grad()
def test_the_dense_map_is_the_sliding_window_at_every_place(kernels: tuple[int, ...], last: int) -> None:
    model, window = classifier(kernels=kernels, last=last)
    image = torch.randn(2, 3, window + 9, window + 6, dtype=torch.float64)
    dense = fully_convolutional(model, (window, window), dense=True)(image)
    assert dense.shape == (2, 3, 10, 7)
    for y in range(10):
        for x in range(7):
            torch.testing.assert_close(dense[:, :, y, x], model(image[..., y : y + window, x : x + window]))


@torch.no_grad()
def test_without_dense_windows_are_as_far_apart_as_the_strides_say() -> None:
    model, window = classifier()
    image = torch.randn(1, 3, window + 8, window + 5, dtype=torch.float64)
    coarse = fully_convolutional(model, (window, window))(image)
    assert coarse.shape[2:] == (3, 2)
    for y in range(3):
        for x in range(2):
            part = image[..., 4 * y : 4 * y + window, 4 * x : 4 * x + window]
            torch.testing.assert_close(coarse[:, :, y, x], model(part))


@torch.no_grad()
def test_7x7x512_to_4096_is_a_convolution() -> None:
    """VGG-16's own numbers: 25 088 inputs, 4096 outputs, then 1 x 1; on a larger map one result for each place."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(7 * 7 * 512, 4096), nn.ReLU(), nn.Linear(4096, 5))
    full = nn.Sequential(nn.Conv2d(3, 512, 1), *head).eval()
    found = fully_convolutional(full, (7, 7))
    kernels = [part.weight.shape for part in found if isinstance(part, nn.Conv2d)]
    assert kernels[1:] == [(4096, 512, 7, 7), (5, 4096, 1, 1)]
    image = torch.randn(1, 3, 8, 7)
    given = found(image)
    assert given.shape == (1, 5, 2, 1)
    for y in range(2):
        torch.testing.assert_close(given[:, :, y, 0], full(image[:, :, y : y + 7]), atol=1e-4, rtol=1e-4)


def test_the_double_work_is_gone() -> None:
    """Counted, not stated: the window at every pixel against all of them at once; and by hand for one layer."""
    model, window = window_classifier(2, 48)
    assert window == 95
    dense = fully_convolutional(model, (window, window), dense=True)
    height, width = 24, 24
    image = torch.zeros(1, 3, window - 1 + height, window - 1 + width)
    once, each = macs(dense, image), macs(model, image[..., :window, :window])
    assert macs(dense[0], image) == 48 * 3 * 16 * (window + height - 4) * (window + width - 4)
    ratio = each * height * width / once
    assert 5 < ratio < height * width
    larger = torch.zeros(1, 3, window - 1 + 2 * height, window - 1 + 2 * width)
    assert each * 4 * height * width / macs(dense, larger) > 1.5 * ratio, "the larger the image, the more is shared"


@torch.no_grad()
def test_the_network_says_the_class_of_the_pixel_in_the_middle() -> None:
    torch.manual_seed(0)
    network = patch_network(3, width=4, kernels=(4, 3), hidden=8).double().eval()
    model, window = window_classifier(3, 4, (4, 3), 3, 8)
    model.double().eval()
    network.load_state_dict(model.state_dict())  # of the classifier, with linear layers
    image = torch.randn(1, 3, 12, 15, dtype=torch.float64)
    scores = network(image)
    assert scores.shape == (1, 3, 12, 15)
    around = mirrored(image, window // 2, window - 1 - window // 2)
    for y, x in ((0, 0), (5, 7), (11, 14), (3, 0)):
        torch.testing.assert_close(scores[:, :, y, x], model(around[..., y : y + window, x : x + window]))
    again = patch_network(3, width=4, kernels=(4, 3), hidden=8).double().eval()
    again.load_state_dict(network.state_dict())  # and of its own
    torch.testing.assert_close(again(image), scores)


def test_mirroring_goes_on_where_the_image_is_small() -> None:
    row = torch.arange(4.0).expand(1, 1, 4, 4)
    assert mirrored(row, 3, 2)[0, 0, 0].tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1]
    assert mirrored(row, 5, 0)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="cannot be mirrored"):
        mirrored(torch.zeros(1, 1, 1, 5), 1, 1)


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2)], "pads"),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * 9, 2)], "pads"),
        ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 36, 2)], "GroupNorm cannot be"),
        ([nn.Conv2d(3, 4, 3), nn.ReLU()], "wanted one nn.Flatten"),
    ],
)
def test_what_is_not_exact_is_refused(layers: list[nn.Module], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fully_convolutional(nn.Sequential(*layers), (8, 8), dense=True)


@torch.no_grad()
def test_the_rewriter_makes_the_same_convolutions() -> None:
    """edgeseg.rewrite turns the linear layers of any network into convolutions as large as their maps."""
    model, window = classifier()
    model = model.float()
    network = capture(Torch(model, "pickle"), (window, window)).network
    linear.apply(network, (window, window))
    kernels = [part.kernel_size for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert kernels == [(4, 4), (3, 3), (2, 2), (1, 1)]
    image = torch.randn(1, 3, window, window)
    torch.testing.assert_close(network(image), model(image))
