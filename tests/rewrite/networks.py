"""Tiny networks of rarer habits than those of tests.models: what capture() must bear. Each takes (1, 3, H, W)."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

SIZE = (20, 24)


def of(forward: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    """A network from its parts (modules, parameters, tensors as buffers, or functions making one) and its forward."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, make in parts.items():
                part = make() if callable(make) and not isinstance(make, nn.Module) else make
                if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                    self.register_buffer(name, part)
                else:
                    setattr(self, name, part)

        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    return Net


def conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kwargs)


def weights(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape) / 3)


class Named(NamedTuple):
    aux: Tensor
    out: Tensor


@dataclass
class Fields:
    aux: Tensor
    out: Tensor


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x.clamp(-1, 1)

    @classmethod
    def of(cls, x: Tensor) -> Tensor:
        return cls.apply(x)  # type: ignore[no-any-return,no-untyped-call]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def soup() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(True))),
        nn.Identity(),
        nn.Sequential(nn.Dropout2d(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 5, 1)),
    )


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    net[0].register_forward_hook(lambda module, inputs, output: output * 2 + 1)
    net[1].register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))
    return net


def symbolic() -> nn.Module:
    return torch.fx.symbolic_trace(soup())


def scripted_part() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), torch.jit.script(Scripted()), nn.Conv2d(4, 5, 1))


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Scripted()))


def traced() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Scripted()).eval()
    return torch.jit.trace(net, torch.zeros(1, 3, *SIZE))  # type: ignore[no-any-return,no-untyped-call]


def _branch(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y if float(y.std()) > 1e-9 else 0 * y)  # type: ignore[no-any-return]


def _attention(self: Any, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    q, k, v = self.qkv(x).view(batch, 3, 2, 4, height * width).unbind(1)
    y = torch.softmax(q.transpose(-1, -2) @ k / 2.0, -1) @ v.transpose(-1, -2)
    return self.out(y.transpose(-1, -2).reshape(batch, 8, height, width)) + x.mean()  # type: ignore[no-any-return]


def _shuffle(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    batch, channels, height, width = y.shape
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return self.b(y.view(batch, -1, height, width))  # type: ignore[no-any-return]


def _views(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, 1:3] *= 2
    y[:, 0].add_(1)
    return self.b(F.relu_(y))  # type: ignore[no-any-return]


def _no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = self.a(x)
    with torch.no_grad():
        return self.b(y)  # type: ignore[no-any-return]


def _counting(self: Any, x: Tensor) -> Tensor:
    self.seen += 1
    return self.a(x)  # type: ignore[no-any-return]


def _changing_input(self: Any, x: Tensor) -> Tensor:
    x.sub_(0.5).div_(2)
    return self.a(x)  # type: ignore[no-any-return]


PADDINGS: dict[str, Callable[[], nn.Module]] = {
    f"padding {mode}": conv(3, 4, (3, 5), padding=(1, 2), padding_mode=mode)
    for mode in ("reflect", "replicate", "circular")
} | {
    "same": conv(3, 4, 3, padding="same", dilation=2),
    "same even": conv(3, 4, (4, 3), padding="same", dilation=(1, 2)),
    "same even reflect": conv(3, 4, 2, padding="same", padding_mode="reflect"),
    "valid": conv(3, 4, 3, padding="valid"),
    "pairs": conv(3, 6, (3, 1), (2, 1), (0, 2), (1, 3), groups=3, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(3, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=3, dilation=(1, 4)),
}

HABITS: dict[str, Callable[[], nn.Module]] = PADDINGS | {
    "soup": soup,
    "functional": of(
        lambda s, x: F.conv2d(F.conv2d(x, s.w, s.b, 2, 1), s.v),
        w=weights(4, 3, 3, 3),
        b=weights(4),
        v=weights(5, 4, 1, 1),
    ),
    "twice": of(lambda s, x: s.a(F.avg_pool2d(s.a(x), 2)), a=conv(3, 3, 3)),
    "dict of lists": of(lambda s, x: {"p": [s.a(x), (s.b(x),)], "q": s.a(x).sum()}, a=conv(3, 4, 3), b=conv(3, 2, 1)),
    "named": of(lambda s, x: Named(s.a(x), s.b(x)), a=conv(3, 4, 3), b=conv(3, 2, 1)),
    "dataclass": of(lambda s, x: Fields(s.a(x), s.b(x)), a=conv(3, 4, 3), b=conv(3, 2, 1)),
    "object": of(lambda s, x: types.SimpleNamespace(out=s.a(x), aux=None), a=conv(3, 4, 3)),
    "proxy": of(lambda s, x: types.MappingProxyType({"out": s.a(x)}), a=conv(3, 4, 3)),
    "prelu": of(lambda s, x: s.b(s.act(s.a(x))), a=conv(3, 4, 3), b=conv(4, 4, 1), act=lambda: nn.PReLU(4)),
    "resized": of(
        lambda s, x: F.interpolate(s.a(x), size=(13, 31), mode="bicubic", align_corners=True), a=conv(3, 4, 3)
    ),
    "buffers": of(
        lambda s, x: torch.where(s.mask, s.a(x)[:, s.order] * s.scale, -s.shift.float()),
        a=conv(3, 4, 3, padding=1),
        mask=torch.rand(SIZE) > 0.3,
        order=torch.tensor([2, 0, 3, 1]),
        scale=torch.tensor(1.5, dtype=torch.float64),
        shift=torch.arange(SIZE[1]),
    ),
    "weight norm": of(lambda s, x: s.a(x) + s.a(-x), a=lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3))),
    "old weight norm": of(lambda s, x: s.a(x), a=lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3))),
    "spectral norm": of(lambda s, x: s.a(x), a=lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)).eval()),
    "standardized": of(lambda s, x: F.conv2d(x, (s.w - s.w.mean((1, 2, 3), True)) / s.w.std()), w=weights(4, 3, 3, 3)),
    "hooks": hooked,
    "autograd": of(lambda s, x: s.b(Double.of(s.a(x))), a=conv(3, 4, 3), b=conv(4, 2, 1)),
    "symbolic": symbolic,
    "branch": of(_branch, a=conv(3, 4, 3), b=conv(4, 4, 3)),
    "scripted part": scripted_part,
    "scripted": scripted,
    "traced": traced,
    "attention": of(_attention, qkv=conv(3, 24, 1), out=conv(8, 3, 1)),
    "shuffle": of(_shuffle, a=conv(3, 4, 3), b=conv(4, 4, 3)),
    "in place": of(_views, a=conv(3, 4, 3), b=conv(4, 4, 3)),
    "no grad": of(_no_grad, a=conv(3, 4, 3), b=conv(4, 4, 3)),
    "counting": of(_counting, a=conv(3, 4, 3), seen=torch.tensor(0)),
    "changes its input": of(_changing_input, a=conv(3, 4, 3)),
    "fully connected": of(
        lambda s, x: s.b(s.a(x).mean((2, 3)))[:, :, None, None], a=conv(3, 4, 3), b=lambda: nn.Linear(4, 5)
    ),
    "norms": of(
        lambda s, x: s.g(s.i(s.n(s.a(x)))),
        a=conv(3, 4, 3),
        n=lambda: nn.BatchNorm2d(4, eps=1e-3),
        i=lambda: nn.InstanceNorm2d(4, affine=True),
        g=lambda: nn.GroupNorm(2, 4),
    ),
    "taken names": of(
        lambda s, x: s.forward_(s.graph(x)) + s.code(s.graph(x)),
        graph=lambda: nn.Sequential(nn.Conv2d(3, 4, 3)),
        code=conv(4, 4, 1),
        forward_=conv(4, 4, 1),
    ),
    "inside a name": of(lambda s, x: F.conv2d(s.a(x), s.a_weight), a=conv(3, 4, 3), a_weight=weights(4, 4, 1, 1)),
}
