"""Tiny networks in code that every test may use: one for each habit of published segmentation networks.

All are seeded, in eval mode, with batch-norm statistics that are far from (0, 1) and with scores far enough apart
that label maps do not hang on rounding. Each takes float32 (N, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

CLASSES = 5
SIZE = (48, 64)  # height, width; every network here takes it


def seeded(make: Callable[..., nn.Module], *args: Any, seed: int = 0, **kwargs: Any) -> nn.Module:
    """`make(...)` with reproducible weights, as after training, in eval mode; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(*args, **kwargs)
        with torch.no_grad():
            for part in nn.Module.modules(model):
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_(0.0, 0.3)  # type: ignore[union-attr]
                    part.running_var.uniform_(0.3, 2.0)  # type: ignore[union-attr]
                    part.weight.uniform_(0.6, 1.6)
                    part.bias.normal_(0.0, 0.3)
                elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                elif isinstance(part, nn.PReLU):
                    part.weight.uniform_(0.05, 0.4)
            _balance(model.eval())
    return model


def image(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Frames (N, H, W, 3) as these networks like them: (x / 255 - 0.5) / 0.25, float32 (N, 3, H, W)."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def _balance(model: nn.Module) -> None:
    """Shift and scale each class's scores to mean 0 and deviation 3, so that every class wins somewhere."""
    head = getattr(model, "head", None) or getattr(model, "classifier", None)
    if not isinstance(head, nn.Conv2d):
        return
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(image(frames(8)))
    hook.remove()
    mean, deviation = seen[0].mean((0, 2, 3)), seen[0].std((0, 2, 3))
    head.weight *= (3 / deviation).view(-1, 1, 1, 1)
    assert head.bias is not None
    head.bias.copy_((head.bias - mean) * 3 / deviation)


def frames(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth coloured blobs and hard-edged boxes, uint8 (count, H, W, 3): unlike noise, they have regions."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    result = np.empty((count, height, width, 3), np.uint8)
    for frame in result:
        image = np.full((height, width, 3), rng.uniform(40, 200, 3))
        for _ in range(6):
            at = rng.uniform((0, 0), (height, width))
            spread = rng.uniform(0.1, 0.4) * min(size)
            weight = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * spread**2))[..., None]
            image = image * (1 - weight) + rng.uniform(0, 255, 3) * weight
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        image[top : top + height // 3, left : left + width // 4] = rng.uniform(0, 255, 3)
        frame[:] = np.clip(np.rint(image + rng.normal(0, 3, image.shape)), 0, 255)
    return result


class Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **kwargs: Any) -> None:
        padding = kwargs.pop("padding", kernel // 2 * kwargs.get("dilation", 1))
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, **kwargs),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Skips and nearest up-sampling to the skip's size: any size from 8."""

    def __init__(self, classes: int = CLASSES, width: int = 8) -> None:
        super().__init__()
        self.first = Block(3, width)
        self.middle = Block(width, 2 * width)
        self.bottom = Block(2 * width, 2 * width)
        self.up2 = Block(4 * width, width)
        self.up1 = Block(2 * width, width)
        self.drop = nn.Dropout2d(0.3)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = self.middle(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        y = self.up2(torch.cat([F.interpolate(c, size=b.shape[-2:], mode="nearest"), b], 1))
        y = self.up1(torch.cat([F.interpolate(y, size=a.shape[-2:], mode="nearest"), a], 1))
        return self.head(self.drop(y))  # type: ignore[no-any-return]


class DictNet(nn.Module):
    """As torchvision's: a dict of "out" and "aux", both at the input's size; "aux" comes first."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = Block(3, 8, stride=2)
        self.body = Block(8, 8)
        self.classifier = nn.Conv2d(8, classes, 1)
        self.aux_classifier = nn.Sequential(Block(8, 6), nn.Dropout(0.2), nn.Conv2d(6, classes, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        size = x.shape[-2:]
        low = self.stem(x)
        aux = F.interpolate(self.aux_classifier(low), size=size, mode="bilinear", align_corners=False)
        out = F.interpolate(self.classifier(self.body(low)), size=size, mode="bilinear", align_corners=False)
        return {"aux": aux, "out": out}


class TupleNet(nn.Module):
    """Deep supervision: (scores, [scores at half, at a quarter])."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.a, self.b = Block(3, 8), Block(8, 8, stride=2)
        self.head, self.side = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        a = self.a(x)
        b = self.b(a)
        side = self.side(b)
        return self.head(a) + F.interpolate(side, scale_factor=2.0, mode="nearest"), [side, F.avg_pool2d(side, 2)]


class LowResolution(nn.Module):
    """Scores at a quarter of the input's size."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(3, 8, stride=2), Block(8, 16, stride=2), Block(16, 16))
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


class OneChannel(nn.Module):
    """Foreground or not: one channel, logits or (sigmoid=True) probabilities."""

    def __init__(self, sigmoid: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(3, 8), Block(8, 8))
        self.head = nn.Conv2d(8, 1, 1)
        self.sigmoid = sigmoid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.body(x))
        return torch.sigmoid(scores) if self.sigmoid else scores


class MultiplesOf8(nn.Module):
    """Down three times, up three times, added to what was there: only multiples of 8 fit."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem, self.down, self.head = Block(3, 8), Block(8, 8), nn.Conv2d(16, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.stem(x)
        y = self.down(F.max_pool2d(F.max_pool2d(F.max_pool2d(a, 2), 2), 2))
        return self.head(torch.cat([F.interpolate(y, scale_factor=8.0, mode="nearest"), a], 1))  # type: ignore[no-any-return]


class Concatenated(nn.Module):
    """PReLU, dilated branches, and a batch norm after their concatenation, which no convolution can take in."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.branches = nn.ModuleList([nn.Conv2d(8, 4, 3, 1, rate, dilation=rate, bias=False) for rate in (1, 2, 4)])
        self.norm, self.act = nn.BatchNorm2d(12), nn.PReLU(12)
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        parts, total = [], None
        for branch in self.branches:
            part = branch(y)
            total = part if total is None else total + part
            parts.append(total)
        return self.head(self.act(self.norm(torch.cat(parts, 1))))  # type: ignore[no-any-return]


class Transposed(nn.Module):
    """Up by transposed convolutions with their batch norm."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.down = nn.Sequential(Block(3, 8, stride=2), Block(8, 16, stride=2))
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, padding=1, output_padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.ConvTranspose2d(8, classes, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.up(self.down(x)))))  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """Atrous spatial pyramid with image pooling, as DeepLab has it; scores at a quarter of the size."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 8, stride=2), Block(8, 12, stride=2))
        self.near, self.far = Block(12, 6, 1), Block(12, 6, dilation=3)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 6, 1), nn.ReLU())
        self.project, self.drop = Block(18, 12, 1), nn.Dropout(0.5)
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        pooled = F.interpolate(self.pool(y), size=y.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.drop(self.project(torch.cat([self.near(y), self.far(y), pooled], 1))))  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """Inverted residuals: 1x1, depthwise 3x3, 1x1, ReLU6, hard swish."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = Block(3, 8, stride=2)
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.Hardswish()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y + self.project(self.depthwise(self.expand(y)))
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear", align_corners=True)


class ShadowedModules(nn.Module):
    """Keeps its layers in an attribute called `modules`, which hides nn.Module.modules(); a published network does."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.modules: list[nn.Module] = []  # type: ignore[assignment]
        for index, (inputs, outputs) in enumerate(((3, 8), (8, 8))):
            block = Block(inputs, outputs)
            self.add_module(f"level{index}", block)
            self.modules.append(block)
        self.drop, self.head = nn.Dropout2d(0.5), nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.modules:
            x = block(x)
        return self.head(self.drop(x))  # type: ignore[no-any-return]


# The networks whose output is, or holds, scores over CLASSES classes.
ALL: dict[str, Callable[[], nn.Module]] = {
    "unet": UNet,
    "dict": DictNet,
    "tuple": TupleNet,
    "low_resolution": LowResolution,
    "multiples_of_8": MultiplesOf8,
    "concatenated": Concatenated,
    "transposed": Transposed,
    "pyramid": Pyramid,
    "depthwise": Depthwise,
    "shadowed": ShadowedModules,
}
