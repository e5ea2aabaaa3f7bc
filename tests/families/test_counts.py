"""The networks of edgeseg.zoo at their real sizes: what the papers and the reference implementations count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

import torch
from torch import nn

import edgeseg.zoo
from edgeseg.zoo.blocks import Branches, training_loss
from edgeseg.zoo.inception import GOOGLENET, Stages
from tests.families.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def whole(name: str, **arguments: Any) -> Any:
    """On no device: a network of the published size, without the memory for its weights."""
    with torch.device("meta"):
        return getattr(edgeseg.zoo, name)(**arguments)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "arguments", "stated"),
    [
        # torchvision's documentation, for 21 classes with the auxiliary head
        ("fcn_resnet", {"depth": 50, "auxiliary": True}, 35_322_218),
        ("fcn_resnet", {"depth": 101, "auxiliary": True}, 54_314_346),
        ("deeplabv3", {"depth": 50, "auxiliary": True}, 42_004_074),
        ("deeplabv3", {"depth": 101, "auxiliary": True}, 60_996_202),
        ("deeplabv3", {"depth": 101, "auxiliary": True, "output_stride": 16}, 60_996_202),  # strides weigh nothing
    ],
)
def test_parameters_are_those_of_torchvision(name: str, arguments: dict[str, Any], stated: int) -> None:
    assert count(whole(name, **arguments)) == stated


@pytest.mark.parametrize(
    ("name", "stated", "classifier", "auxiliary"),
    [
        # torchvision's documentation, for 1000 classes: less their last layer, and the auxiliary head of Inception
        ("resnext", 25_028_904, 2048 * 1000 + 1000, 0),
        ("inception_v3", 27_161_264, 2048 * 1000 + 1000, 768 * 128 + 256 + 128 * 768 * 25 + 1536 + 768 * 1000 + 1000),
    ],
)
def test_encoders_are_those_of_torchvision(name: str, stated: int, classifier: int, auxiliary: int) -> None:
    assert count(whole(name).backbone) == stated - classifier - auxiliary


def test_minigooglenet_is_as_its_paper_counts_it() -> None:
    """Table 1 of Zhang et al.: 1,649,402, with the classifier of ten classes and one shift for each channel."""
    backbone = whole("minigooglenet").backbone
    shifts = sum(part.bias.numel() for part in backbone.modules() if isinstance(part, nn.BatchNorm2d))
    assert weights(backbone) + shifts + 336 * 10 + 10 == 1_649_402


def test_googlenets_modules_are_as_its_paper_counts_them() -> None:
    """Table 1 of Szegedy et al. 2015, in thousands, which does not always fit the channels that it states."""
    thousands = dict(zip(GOOGLENET, (159, 380, 364, 437, 463, 580, 840, 1072, 1388), strict=True))
    pieces = whole("googlenet").backbone.pieces
    for name, stated in thousands.items():
        assert weights(pieces[name]) / 1024 == pytest.approx(stated, rel=0.08), name
    assert weights(pieces["3a"]) // 1024 == 159
    assert weights(pieces["conv2"]) // 1024 == 112


def test_googlenet_is_torchvisions_but_for_its_5x5() -> None:
    """Its documentation: 6,624,904 parameters for 1000 classes; where the paper has 5 x 5 it has 3 x 3."""
    more = sum(16 * reduced * five for _, _, _, reduced, five, _ in GOOGLENET.values())
    assert count(whole("googlenet").backbone) == 6_624_904 - (1024 * 1000 + 1000) + more


@pytest.mark.parametrize(("name", "millions"), [("fcn32s", 134), ("fcn_alexnet", 57)])
def test_fcns_are_as_their_paper_counts_them(name: str, millions: int) -> None:
    """Table 1 of Long et al., without the transposed convolution, which they did not learn there."""
    network = whole(name)
    assert round((count(network) - count(network.last)) / 1e6) == millions


def test_segnet_has_vgg16_twice() -> None:
    """The 13 convolutions of VGG-16 have 14.71 million weights; the decoder mirrors them, up to where it scores."""
    network = whole("segnet", classes=11)
    assert weights(network.down) == 14_710_464
    assert weights(network.up) == 14_710_464 - 3 * 64 * 9 + 11 * 64 * 9
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) == 26


@pytest.mark.parametrize("skips", ["cropped", "padded"])
def test_the_u_net_of_the_paper_has_23_convolutions(skips: Any) -> None:
    network = whole("unet_paper", skips=skips)
    parts = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(parts) == 23
    assert sum(isinstance(part, nn.ConvTranspose2d) for part in parts) == 4
    assert [max(part.in_channels, part.out_channels) for part in parts].count(1024) == 4
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def test_xception_is_65_deep_and_all_separable() -> None:
    """Two convolutions in the stem, three in each of 3 + 16 + 1 blocks, and three at the end."""
    backbone = whole("deeplabv3plus").backbone
    convolutions = [part for part in backbone.modules() if isinstance(part, nn.Conv2d)]
    depthwise = [part for part in convolutions if part.groups > 1]
    assert len(depthwise) + 2 == 65
    assert {part.kernel_size for part in depthwise} == {(3, 3)}
    assert all(part.groups == part.in_channels for part in depthwise)
    assert not any(isinstance(part, nn.MaxPool2d) for part in backbone.modules())


@pytest.mark.parametrize(("version", "large"), [("inception_v2", 3), ("inception_v3", 7)])
def test_inceptions_kernels_are_factorised(version: str, large: int) -> None:
    pieces = whole(version).backbone.pieces
    kernels = {
        part.kernel_size for name in ("b1", "b4") for part in pieces[name].modules() if isinstance(part, nn.Conv2d)
    }
    assert kernels == {(1, 1), (1, large), (large, 1)}
    assert isinstance(pieces["c1"][1][1], Branches), "at the end they are side by side"
    largest = max(max(part.kernel_size) for part in pieces["a1"].modules() if isinstance(part, nn.Conv2d))
    assert largest == (3 if version == "inception_v2" else 5)


AUXILIARY = [
    ("fcn_resnet", {"depth": 18, "width": 4}, {"aux"}),
    ("deeplabv3", {"depth": 18, "width": 4}, {"aux"}),
    ("pspnet", {"depth": 18, "width": 4}, {"aux"}),
    ("googlenet", {"width": 8, "decoder": 8}, {"aux1", "aux2"}),
    ("inception_v3", {"width": 4, "decoder": 8}, {"aux"}),
]


@pytest.mark.parametrize(("name", "arguments", "heads"), AUXILIARY, ids=[row[0] for row in AUXILIARY])
def test_auxiliary_heads_are_for_training_only(name: str, arguments: dict[str, Any], heads: set[str]) -> None:
    network = getattr(edgeseg.zoo, name)(classes=3, auxiliary=True, **arguments)
    image = torch.rand(2, 3, 64, 96)
    scores = network.train()(image)
    assert set(scores) == {"out", *heads}
    assert {value.shape for value in scores.values()} == {(2, 3, 64, 96)}
    sum(value.square().mean() for value in scores.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.no_grad():
        assert network.eval()(image).shape == (2, 3, 64, 96)
    without = getattr(edgeseg.zoo, name)(classes=3, **arguments)
    assert isinstance(without.train()(image), torch.Tensor)


def test_auxiliary_losses_weigh_three_tenths() -> None:
    scores = {"out": torch.tensor(2.0), "aux1": torch.tensor(10.0), "aux2": torch.tensor(20.0)}
    assert float(training_loss(scores, lambda value: value * 1.0)) == pytest.approx(2 + 0.3 * 10 + 0.3 * 20)
    assert float(training_loss(scores, lambda value: value * 1.0, weight=0.4)) == pytest.approx(2 + 0.4 * 30)
    assert float(training_loss(torch.tensor(5.0), lambda value: value * 1.0)) == 5
    assert float(training_loss({"out": torch.tensor(5.0)}, lambda value: value * 1.0)) == 5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(72, 88), (75, 67)])
def test_logits_have_the_size_of_the_image(name: str, size: tuple[int, int]) -> None:
    factory, arguments = FAMILIES[name]
    with torch.no_grad():
        network = getattr(edgeseg.zoo, factory)(**({"classes": 5} | arguments)).eval()
        assert network(torch.rand(1, 3, *size)).shape == (1, arguments.get("classes", 5), *size)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(depth: int, stride: int) -> None:
    network: Any = edgeseg.zoo.fcn_resnet(2, depth=depth, width=4, output_stride=stride).eval()
    maps = network.backbone(torch.rand(1, 3, 64, 96))
    assert [64 // value.shape[2] for value in maps.values()] == [4, 8, min(16, stride), min(32, stride)]
    assert [value.shape[1] for value in maps.values()] == list(network.backbone.channels.values())


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("fcn_resnet", {"depth": 19}, "depth must be one of 18, 34, 50, 101, 152"),
        ("resnext", {"depth": 18}, "depth must be one of 50, 101, 152"),
        ("resnext", {"groups": 0}, "groups"),
        ("deeplabv3", {"output_stride": 32}, "output_stride must be one of 8, 16"),
        ("deeplabv3plus", {"output_stride": 4}, "output_stride must be one of 8, 16"),
        ("pspnet", {"bins": ()}, "number of bins"),
        ("fcn8s", {"padding": "valid"}, "padding must be one of same, caffe"),
        ("fcn_alexnet", {"width": 16}, "multiple of 3"),
        ("segnet", {"depths": ()}, "at least one stage"),
        ("unet_paper", {"skips": "added"}, "skips must be one of cropped, padded"),
        ("unet_paper", {"depth": 0}, "depth must be at least 1"),
        ("upsampler", {"how": "cubic"}, "how must be one of nearest"),
        ("patch_network", {"kernels": ()}, "positive kernels"),
        ("googlenet", {"classes": 0}, "at least one class"),
        ("inception_v3", {"width": 0}, "at least one class and a width"),
        ("minigooglenet", {"classes": -1}, "at least one class"),
    ],
)
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        getattr(edgeseg.zoo, name)(**arguments)


def test_all_that_is_named_is_there_and_says_its_paper() -> None:
    code = "import sys, edgeseg.zoo as z; assert 'torch' not in sys.modules; print(len(z.__all__))"
    said = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert int(said) == len(edgeseg.zoo.__all__)
    for name in edgeseg.zoo.__all__:
        made = getattr(edgeseg.zoo, name)
        assert (made.__name__, bool(made.__doc__)) == (name, True)


def test_stages_name_what_they_keep() -> None:
    stages = Stages({"b": "half"})
    stages.add("a", nn.Conv2d(3, 4, 1), 4)
    stages.add("b", nn.MaxPool2d(2))
    assert stages.channels == {"half": 4}
    assert {name: value.shape for name, value in stages(torch.rand(1, 3, 8, 8)).items()} == {"half": (1, 4, 4, 4)}
