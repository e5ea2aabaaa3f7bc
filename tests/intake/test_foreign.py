"""Checkpoints of torchvision, segmentation_models_pytorch and mmsegmentation, in their exact names and shapes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeseg.errors import ModelError
from edgeseg.intake import Torch, load
from edgeseg.intake.weights import find_classes, find_weights, put
from edgeseg.types import InputSpec, ModelSpec
from tests.intake import foreign

IMAGE = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(5))
ZOO = "edgeseg.zoo"
# library and network: digest of the names and shapes that the library's own network has, layout, factory, arguments
KNOWN: dict[str, tuple[str, Callable[[], foreign.Layout], str, dict[str, Any]]] = {
    "torchvision fcn_resnet50": (
        "fa6ba7ee5350ccb3", lambda: foreign.torchvision("fcn", 50), f"{ZOO}:fcn_resnet50", {"auxiliary": True},
    ),
    "torchvision fcn_resnet101": (
        "5b82c723f38e057c", lambda: foreign.torchvision("fcn", 101), f"{ZOO}:fcn_resnet101",
        {"auxiliary": True},
    ),
    "torchvision deeplabv3_resnet50": (
        "77c4cb8bf3f6f82f", lambda: foreign.torchvision("deeplabv3", 50), f"{ZOO}:deeplabv3_resnet50",
        {"auxiliary": True},
    ),
    "torchvision deeplabv3_resnet101": (
        "8d1a74a3689c16fe", lambda: foreign.torchvision("deeplabv3", 101), f"{ZOO}:deeplabv3_resnet101",
        {"auxiliary": True},
    ),
    "torchvision lraspp_mobilenet_v3_large": (
        "daf55e99ab50b745", foreign.lraspp, f"{ZOO}:lraspp_mobilenet_v3_large", {},
    ),
    **{
        f"smp {kind} resnet{depth}": (
            seen, lambda kind=kind, depth=depth: foreign.smp(kind, depth), f"{ZOO}:smp_{kind.lower()}",  # type: ignore[misc]
            {"classes": 11, "depth": depth},
        )
        for kind, depth, seen in (
            ("Unet", 18, "2d88d071abac1a8f"), ("Unet", 34, "5b0504f9b2f0897a"), ("Unet", 50, "c380836118ad7c2e"),
            ("FPN", 18, "8d128b34ca36ac7c"), ("FPN", 34, "89ebd3be597a0e92"), ("FPN", 50, "a0935a4f82344a3d"),
            ("DeepLabV3Plus", 18, "f13f9b5bb8a518eb"), ("DeepLabV3Plus", 34, "4524259706e470a1"),
            ("DeepLabV3Plus", 50, "af958bafb3d41712"),
        )
    },
    **{
        f"mmseg {kind}_r{depth}-d8": (
            seen, lambda kind=kind, depth=depth: foreign.mmseg(kind, depth), f"{ZOO}:mmseg_{kind}",  # type: ignore[misc]
            {"depth": depth, "auxiliary": True},
        )
        for kind, depth, seen in (
            ("fcn", 50, "ca6726c0560bef11"), ("deeplabv3", 50, "39e0cea2ae18f260"),
            ("pspnet", 50, "02b254dc4e478815"), ("deeplabv3", 101, "18744e7f161aa1d1"),
        )
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(factory: str, arguments: dict[str, Any]) -> nn.Module:
    module, _, function = factory.partition(":")
    network: nn.Module = getattr(importlib.import_module(module), function)(**arguments)
    return network.eval()


@pytest.mark.parametrize("name", KNOWN)
def test_every_key_has_its_place(name: str) -> None:
    """Names and shapes alone, without memory for the weights: none is left over, none is missing."""
    seen, layout, factory, arguments = KNOWN[name]
    shapes = layout()
    assert foreign.digest(shapes) == seen
    with torch.device("meta"):
        network = made(factory, arguments)
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    put(weights, network, file=name, factory=factory)
    wanted = network.state_dict()
    assert len(wanted) == len(shapes)
    last = next(key for key in reversed(weights) if not key.endswith("num_batches_tracked"))
    for broken in (
        {key: value for key, value in weights.items() if key != last},
        weights | {"surplus.weight": torch.empty(3, device="meta")},
        weights | {last: torch.empty(3, 3, 3, device="meta")},
    ):
        with pytest.raises(ModelError, match="are not those of"):
            put(broken, network, file=name, factory=factory)


def computed(name: str, network: nn.Module, weights: dict[str, Tensor], reference: Callable[..., Tensor]) -> None:
    put(weights, network, file=name, factory=name)
    with torch.no_grad():
        found, expected = network(IMAGE), reference(weights, IMAGE)
        assert found.shape == expected.shape
        size = float(expected.abs().max())
        assert size > 0.1
        assert float((found - expected).abs().max()) < 1e-4 * size
        assert float((found - expected.roll(1, 1)).abs().max()) > 0.1 * size  # the channels differ: this can fail


def test_torchvision_deeplabv3_computes_what_its_weights_say() -> None:
    weights = foreign.filled(foreign.torchvision("deeplabv3", 50))
    network = made(f"{ZOO}:deeplabv3_resnet50", {})  # without the auxiliary head that the file has
    computed("deeplabv3", network, weights, lambda w, x: foreign.torchvision_deeplabv3(w, x, 50))


def test_torchvision_lraspp_computes_what_its_weights_say() -> None:
    network = made(f"{ZOO}:lraspp_mobilenet_v3_large", {})
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_221_538  # as torchvision's pages say
    computed("lraspp", network, foreign.filled(foreign.lraspp()), foreign.torchvision_lraspp)


@pytest.mark.parametrize(
    ("kind", "depth", "reference"),
    [
        ("Unet", 34, foreign.smp_unet),
        ("Unet", 50, foreign.smp_unet),
        ("FPN", 18, foreign.smp_fpn),
        ("DeepLabV3Plus", 18, foreign.smp_deeplabv3plus),
        ("DeepLabV3Plus", 50, foreign.smp_deeplabv3plus),
    ],
)
def test_smp_computes_what_its_weights_say(kind: str, depth: int, reference: Callable[..., Tensor]) -> None:
    weights = foreign.filled(foreign.smp(kind, depth, 5))
    network = made(f"{ZOO}:smp_{kind.lower()}", {"classes": 5, "depth": depth})
    computed(kind, network, weights, lambda w, x: reference(w, x, depth))


@pytest.mark.parametrize("kind", ["fcn", "deeplabv3", "pspnet"])
def test_mmseg_computes_what_its_weights_say(kind: str) -> None:
    weights = foreign.filled(foreign.mmseg(kind, 50))
    network = made(f"{ZOO}:mmseg_{kind}", {})
    computed(kind, network, weights, lambda w, x: foreign.mmseg_head(w, x, 50, kind))


@pytest.mark.parametrize("kind", ["unet", "fpn", "deeplabv3plus"])
def test_smp_networks_take_sizes_that_the_library_does_not(kind: str) -> None:
    network = made(f"{ZOO}:smp_{kind}", {"classes": 3, "depth": 18, "width": 8})
    with torch.no_grad():
        assert network(torch.rand(1, 3, 45, 61)).shape == (1, 3, 45, 61)


CLASSES = ["road", "sidewalk", "building", *(f"class {k}" for k in range(16))]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"meta": {"CLASSES": CLASSES, "PALETTE": [[0, 0, 0]] * 19, "epoch": 3}, "state_dict": w},
        lambda w: {"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": w, "optimizer": {"lr": 0.1}},
        lambda w: {"state_dict": {f"module.{key}": value for key, value in w.items()}},
        lambda w: {"state_dict": {f"model.{key}": value for key, value in w.items()}, "callbacks": {}},
        lambda w: {"state_dict": {f"model.{key}": v for key, v in w.items()} | {"criterion.weight": torch.ones(19)}},
        lambda w: {"ema_state_dict": {f"module.{key}": value for key, value in w.items()}},
        lambda w: {"model_ema": {"n_averaged": torch.tensor(3)} | {f"module.{key}": v for key, v in w.items()}},
    ],
    ids=["meta", "dataset_meta", "parallel", "lightning", "criterion", "ema", "averaged"],
)
def test_files_as_the_libraries_and_trainers_write_them(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    """A narrow network of mmsegmentation's names, through the file and the spec."""
    network = made(f"{ZOO}:mmseg_fcn", {"width": 4})
    layout = {name: narrow(name, shape) for name, shape in foreign.mmseg("fcn", 50).items()}
    weights = foreign.filled(layout)
    torch.save(wrap(weights), tmp_path / "fcn.pth")
    spec = ModelSpec("fcn", InputSpec((64, 96)), factory=f"{ZOO}:mmseg_fcn", factory_args={"width": 4})
    model = load(tmp_path / "fcn.pth", spec)
    assert isinstance(model, Torch)
    put(weights, network, file="fcn", factory="fcn")
    with torch.no_grad():
        assert torch.equal(model.module(IMAGE), network(IMAGE))
        expected = foreign.mmseg_head(weights, IMAGE, 50, "fcn")
        assert torch.allclose(network(IMAGE), expected, atol=1e-4 * float(expected.abs().max()))


def narrow(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """All channels over 16, but for the image's and the classes'."""
    if "conv_seg" in name:
        return shape if len(shape) == 1 else (shape[0], shape[1] // 16, *shape[2:])
    return tuple(size if k > 1 or size == 3 else size // 16 for k, size in enumerate(shape))


def test_what_does_not_fit_is_said_in_words_that_help() -> None:
    layout = {name: narrow(name, shape) for name, shape in foreign.mmseg("fcn", 50).items()}
    weights = foreign.filled(layout)
    with pytest.raises(ModelError) as caught:
        put(weights, made(f"{ZOO}:mmseg_fcn", {"classes": 7, "width": 4}), file="f.pth", factory="f", classes=CLASSES)
    message = str(caught.value)
    assert "0 missing, 0 unexpected, 2 of another shape" in message
    assert "The file has 19 classes (road, sidewalk, building, …): classes = 19 in [factory_args]" in message
    assert "The names are like mmsegmentation's" in message
    without = {name: value for name, value in weights.items() if not name.startswith("auxiliary_head")}
    with pytest.raises(ModelError, match="auxiliary = false"):
        put(without, made(f"{ZOO}:mmseg_fcn", {"width": 4, "auxiliary": True}), file="f.pth", factory="f")
    with pytest.raises(ModelError, match=r"missing +classifier\.psp_modules\.0\.1\.0\.weight"):
        put(weights, made(f"{ZOO}:mmseg_pspnet", {"width": 4}), file="f.pth", factory="f")
    with pytest.raises(ModelError, match=r"Networks for them: edgeseg\.zoo:mmseg_fcn"):
        put(weights, made(f"{ZOO}:deeplabv3", {"depth": 50, "width": 8}), file="f.pth", factory="f")
    surplus = weights | {"decode_head.more.weight": torch.ones(2)}
    with pytest.raises(ModelError, match=r"unexpected +classifier\.more\.weight"):
        put(surplus, made(f"{ZOO}:mmseg_fcn", {"width": 4}), file="f.pth", factory="f")


def test_classes_are_read_where_they_are_said() -> None:
    assert find_classes({"meta": {"CLASSES": ("a", "b")}}) == ("a", "b")
    assert find_classes({"meta": {"dataset_meta": {"classes": ["a"]}}}) == ("a",)
    for nothing in ({}, {"meta": None}, {"meta": {"CLASSES": None}}, {"meta": {"CLASSES": [1]}}, [1], None):
        assert find_classes(nothing) == ()


def test_a_network_of_its_own_that_is_named_alike_is_not_translated() -> None:
    """A user's network with a `decode_head`: its names fit as they are."""
    network = nn.ModuleDict({"decode_head": nn.ModuleDict({"conv": nn.Conv2d(3, 2, 1)}), "loss": nn.Linear(2, 2)})
    weights = {name: torch.rand_like(value) for name, value in network.state_dict().items()}
    put(weights, network, file="f", factory="f")
    assert torch.equal(network.state_dict()["decode_head.conv.weight"], weights["decode_head.conv.weight"])
    assert torch.equal(network.state_dict()["loss.weight"], weights["loss.weight"])


def test_plain_weights_come_before_averaged_ones() -> None:
    one, other = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    assert find_weights({"ema_state_dict": other, "state_dict": one}) == one
    assert find_weights({"model_ema": other, "epoch": 3}) == other
