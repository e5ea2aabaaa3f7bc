"""A classifier of windows, slid over the image, as the fully convolutional network that it is.

Cireşan et al., "Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images", NIPS 2012: a network
says the class of the pixel in the middle of a window, once for every pixel. Neighbouring windows share nearly all of
their pixels, so nearly all of that work is done many times over. Once for all windows: strides become dilations of all
that comes after (Giusti et al., "Fast Image Scanning with Deep Max-Pooling Convolutional Neural Networks", ICIP
2013; Sermanet et al., "OverFeat", ICLR 2014), and fully connected layers become convolutions as large as their maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeseg.zoo.blocks import check

POINTWISE = (nn.ReLU, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Tanh, nn.Sigmoid)


class DensePool(nn.Module):
    """Max-pooling without a stride over `kernel` x `kernel` values that lie `dilation` apart.

    As maxima of shifted maps: dilated pooling is what few engines have.
    """

    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation

    def forward(self, x: Tensor) -> Tensor:
        for axis in (2, 3):
            length = x.shape[axis] - (self.kernel - 1) * self.dilation
            shifted = [x.narrow(axis, step * self.dilation, length) for step in range(self.kernel)]
            x = shifted[0]
            for other in shifted[1:]:
                x = torch.maximum(x, other)
        return x


def fully_convolutional(classifier: nn.Sequential, size: tuple[int, int], *, dense: bool = False) -> nn.Sequential:
    """The same classifier, of images of `size` or larger: logits (N, classes, h, w), one place for each window.

    `classifier`: convolutions, max-pooling, activations, nn.Flatten, linear layers. Without `dense` windows are as far
    apart as the strides say; with it there is one at every pixel, at (H - height + 1) x (W - width + 1) places. The
    names of the parameters stay; weights of linear layers get two more dimensions. The new modules share no weights
    with the old ones. Raises ValueError for layers that cannot be converted, and with `dense` for those that pad: a
    window's border is then in the middle of the image.
    """
    made, apart, kernel = nn.Sequential(), 1, None
    dtype = next(classifier.parameters()).dtype
    with torch.no_grad():
        before = deepcopy(classifier[: _flatten(classifier)]).eval()
        sizes = before(torch.zeros(1, 3, *size, dtype=dtype)).shape
    for layer in classifier:
        new: nn.Module
        if isinstance(layer, nn.Conv2d):
            new, apart = _convolution(layer, dense, apart)
        elif isinstance(layer, nn.MaxPool2d):
            pool, stride = int(cast(int, layer.kernel_size)), int(cast(int, layer.stride))
            if dense and (layer.padding or layer.ceil_mode or layer.dilation != 1):
                raise ValueError(f"{layer} cannot be done at every pixel: it pads, rounds up or is dilated")
            new = (
                DensePool(pool, apart)
                if dense
                else nn.MaxPool2d(pool, stride, layer.padding, 1, False, layer.ceil_mode)
            )
            apart *= stride if dense else 1
        elif isinstance(layer, nn.Flatten):
            new, kernel = nn.Identity(), (int(sizes[2]), int(sizes[3]))
        elif isinstance(layer, nn.Linear):
            window = kernel or (1, 1)
            new = nn.Conv2d(
                layer.in_features // (window[0] * window[1]), layer.out_features, window, dilation=apart, dtype=dtype
            )
            with torch.no_grad():
                new.weight.copy_(layer.weight.reshape(new.weight.shape))
                assert new.bias is not None
                new.bias.copy_(torch.zeros_like(new.bias) if layer.bias is None else layer.bias)
            kernel = (1, 1)
        elif isinstance(layer, POINTWISE):
            new = deepcopy(layer)
        else:
            raise ValueError(
                f"{type(layer).__name__} cannot be converted; what can be: convolutions, max-pooling, "
                "activations, Flatten, Linear"
            )
        made.append(new)
    return made.train(classifier.training)


def _flatten(classifier: nn.Sequential) -> int:
    found = [number for number, layer in enumerate(classifier) if isinstance(layer, nn.Flatten)]
    if len(found) != 1:
        raise ValueError(f"wanted one nn.Flatten between the convolutions and the linear layers, came {len(found)}")
    return found[0]


def _convolution(layer: nn.Conv2d, dense: bool, apart: int) -> tuple[nn.Conv2d, int]:
    padding, stride = layer.padding, cast(tuple[int, int], layer.stride)
    if dense and (isinstance(padding, str) or any(padding) or stride[0] != stride[1] or layer.dilation != (1, 1)):
        raise ValueError(f"{layer} cannot be done at every pixel: it pads, is dilated, or its strides differ")
    new = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        cast(tuple[int, int], layer.kernel_size),
        1 if dense else stride,
        0 if dense else cast(Any, padding),
        apart if dense else cast(tuple[int, int], layer.dilation),
        layer.groups,
        layer.bias is not None,
        dtype=layer.weight.dtype,
    )
    new.load_state_dict(layer.state_dict())
    return new, apart * stride[0] if dense else apart


def window_classifier(
    classes: int = 2, width: int = 48, kernels: Sequence[int] = (4, 5, 4, 4), last: int = 3, hidden: int = 200
) -> tuple[nn.Sequential, int]:
    """The classifier of windows, and how many pixels high and wide they are: 95 by default, the paper's network N4.

    Each convolution is followed by 2 x 2 max-pooling; what remains of a window is `last` x `last` values a channel.
    """
    made, inputs, window = nn.Sequential(), 3, last
    for kernel in reversed(kernels):
        window = 2 * window + kernel - 1
    for kernel in kernels:
        made.extend([nn.Conv2d(inputs, width, kernel), nn.ReLU(), nn.MaxPool2d(2)])
        inputs = width
    made.extend([nn.Flatten(), nn.Linear(width * last * last, hidden), nn.ReLU(), nn.Linear(hidden, classes)])
    return made, window


class PatchNetwork(nn.Module):
    """Images float32 (N, 3, H, W) to logits (N, classes, H, W): the classifier at every pixel of the mirrored image.

    Loads the state dict of the classifier of windows as well as its own.
    """

    def __init__(self, dense: nn.Sequential, window: int) -> None:
        super().__init__()
        self.layers, self.window = dense, window
        self.register_load_state_dict_pre_hook(_reshaped)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        before = self.window // 2
        return cast(Tensor, self.layers(mirrored(x, before, self.window - 1 - before)))


def _reshaped(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Names and shapes of the classifier's parameters to those of the network."""
    own = module.state_dict()
    for name in own:
        short = f"{prefix}{name.removeprefix('layers.')}"
        if short in state and f"{prefix}{name}" not in state:
            state[f"{prefix}{name}"] = state.pop(short)
        value = state.get(f"{prefix}{name}")
        if isinstance(value, Tensor) and value.dim() == 2 and value.numel() == own[name].numel():
            state[f"{prefix}{name}"] = value.reshape(own[name].shape)


def mirrored(x: Tensor, before: int, after: int) -> Tensor:
    """Rows and columns added on both sides, mirrored at the border, again and again where the image is small."""
    while before or after:
        most = min(x.shape[-2], x.shape[-1]) - 1
        if most < 1:
            raise ValueError(f"an image of {x.shape[-2]}x{x.shape[-1]} cannot be mirrored")
        now, then = min(before, most), min(after, most)
        x = functional.pad(x, (now, then, now, then), mode="reflect")
        before, after = before - now, after - then
    return x


def patch_network(
    classes: int = 2, width: int = 48, kernels: Sequence[int] = (4, 5, 4, 4), last: int = 3, hidden: int = 200
) -> nn.Module:
    """A sliding-window classifier as a network for whole images, with none of its double work.

    Cireşan et al., NIPS 2012. Takes float32 (N, 3, H, W), returns logits (N, classes, H, W): at each pixel what the
    classifier says to the window around it, in the image mirrored at its borders. `width`: channels of a convolution;
    `kernels`: their sizes, each followed by 2 x 2 max-pooling; `last`: rows of a window's map after that; `hidden`:
    width of the fully connected layer. Raises ValueError for no kernels and for numbers that are not positive.
    """
    check(classes, width)
    if not kernels or min(*kernels, last, hidden, 1) < 1:
        raise ValueError(f"wanted positive kernels, last and hidden, came {tuple(kernels)}, {last}, {hidden}")
    classifier, window = window_classifier(classes, width, kernels, last, hidden)
    return PatchNetwork(fully_convolutional(classifier, (window, window), dense=True), window)
