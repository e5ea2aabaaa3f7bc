"""All exact rewrites together, on networks as they are found: the same outputs, the same labels."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.intake import load
from edgeseg.rewrite.exact import ALWAYS, OFFERED, exact
from edgeseg.rewrite.exact.change import Change
from edgeseg.rewrite.network import Network, capture
from edgeseg.rewrite.values import Pair
from edgeseg.spec import read_spec
from edgeseg.types import Torch
from tests.rewrite.nets import Residual, SmallUNet, captured, kinds, lively, operations, outputs, same

SHARED = Path(os.environ.get("EDGESEG_SHARED", Path(__file__).parents[3] / "shared"))
MODELS = SHARED / "models"
trained = pytest.mark.skipif(not MODELS.is_dir(), reason="needs the trained model of EDGESEG_SHARED")


class Pyramid(nn.Module):
    """Stages at several sizes, each brought to one width, up-sampled and put together by a 1x1 convolution; a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Hardswish())
            for _ in range(2)
        )
        self.tokens = nn.Linear(8, 6)
        self.gate = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.Sigmoid())
        self.fuse = nn.Sequential(nn.Conv2d(18, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head, self.aux = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = [self.stem(x)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        found[-1] = found[-1] * self.gate(F.adaptive_avg_pool2d(found[-1], 1))[:, :, None, None]
        size = found[0].shape[-2:]
        maps = []
        for y in found:
            flat = self.tokens(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(len(y), 6, *y.shape[-2:])
            same_size = y.shape[-2:] == size
            maps.append(flat if same_size else F.interpolate(flat, size=size, mode="bilinear", align_corners=False))
        y = F.interpolate(self.fuse(torch.cat(maps, 1)), size=x.shape[-2:])
        return {"out": self.head(y), "aux": self.aux(y)}


NETS = {"residual": Residual, "u-net": SmallUNet, "pyramid": Pyramid}


@pytest.mark.parametrize(
    ("name", "size"), [("residual", (37, 50)), ("u-net", (37, 50)), ("u-net", (32, 48)), ("pyramid", (33, 47))], ids=str
)
def test_all_of_them(name: str, size: Pair) -> None:
    network = captured(lively(NETS[name]()), size)
    same(network, exact, size)
    assert exact(network, size) == []  # nothing is left to do
    for apply in OFFERED.values():
        same(network, apply, size)


def test_what_is_left_of_a_pyramid() -> None:
    network = captured(lively(Pyramid()), (33, 47))
    changes = same(network, exact, (33, 47))
    assert {change.rule for change in changes} == {"fold_norm", "linear", "pointwise"}
    assert set(kinds(network)) == {"Conv2d"}
    assert operations(network).count("upsample_bilinear2d") == 2
    assert sum(change.macs_after for change in changes) < sum(change.macs_before for change in changes)


@pytest.mark.parametrize("name", ["u-net", "pyramid"])
def test_in_float32(name: str) -> None:
    size = (32, 48)
    network = capture(Torch(lively(NETS[name]()), "state_dict"), size).network
    expected = outputs(deepcopy(network).double(), size)
    exact(network, size)
    OFFERED["phase"](network, size)
    OFFERED["transposed"](network, size)
    assert {part.dtype for part in network.parameters()} == {torch.float32}
    for old, new in zip(expected, outputs(network.double(), size), strict=True):
        spread = float(old.max() - old.min())
        assert float((old - new).abs().max()) <= 1e-5 * spread


def test_a_rewrite_that_changes_something_is_seen() -> None:
    def wrong(network: Network, size: Pair) -> list[Change]:
        conv = network.get_submodule("0")
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data[0, 0, 0, 0] *= 1 + 1e-6
        return []

    with pytest.raises(AssertionError):
        same(captured(lively(nn.Sequential(nn.Conv2d(3, 4, 3)))), wrong)


def test_channels_of_a_norm_that_are_zero_go() -> None:
    """As after training with a penalty on the factors of the norms."""
    module = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)))
    norm = module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[[1, 5]] = 0
    norm.bias.data[[1, 5]] = -0.5
    network = captured(module)
    changes = same(network, exact)
    assert [change.rule for change in changes] == ["fold_norm", "dead"]
    conv = network.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    assert conv.out_channels == 6


@pytest.mark.parametrize("name", [*ALWAYS, *OFFERED])
def test_a_network_with_nothing_to_do_is_left(name: str) -> None:
    network = captured(lively(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1))))
    apply = {**ALWAYS, **OFFERED}[name]
    assert same(network, apply) == []
    assert kinds(network) == ["Conv2d", "Conv2d"]


def test_the_rewritten_can_be_exported() -> None:
    network = captured(lively(SmallUNet()), (32, 48)).float()
    exact(network, (32, 48))
    OFFERED["interleave"](network, (32, 48), None)
    image = torch.randn(1, 3, 32, 48)
    program = torch.export.export(network, (image,))
    with torch.no_grad():
        assert bool(torch.allclose(program.module()(image), network(image), atol=1e-5))


@trained
def test_on_the_trained_network() -> None:
    size = (180, 240)
    model = load(MODELS / "unet_camvid.pt", read_spec(MODELS / "unet_camvid.toml"))
    assert isinstance(model, Torch)
    network = capture(model, size).network
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)) * 4 - 2
    with torch.no_grad():
        before = network(image)
        changes = exact(network, size)
        found = [network(image)]
        phases = OFFERED["phase"](network, size)
        found.append(network(image))
    assert len([change for change in changes if change.rule == "fold_norm"]) == 18
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    names = [change.layers[0] for change in phases]
    assert names == ["d4a.conv", "d2a.conv", "d1a.conv"]  # 22x30 to 45x60 is by no whole factor
    for after in found:
        assert float((after - before).abs().max()) <= 1e-5 * float(before.max() - before.min())
        assert bool((after.argmax(1) == before.argmax(1)).all())
