"""The reference architectures, and the weights that the street example ships."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeseg.data import load_dataset, read
from edgeseg.data.street import CLASSES
from edgeseg.spec import read_spec
from edgeseg.zoo import unet

ROOT = Path(__file__).resolve().parent.parent
STREET = ROOT / "examples" / "street"


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transposed"])
@pytest.mark.parametrize("size", [(180, 240), (33, 47), (64, 64), (16, 17), (45, 90)])
def test_logits_have_the_size_of_the_input(upsample: Any, size: tuple[int, int]) -> None:
    model = unet(5, widths=(4, 6, 8, 8, 8), upsample=upsample).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_one_level_and_one_class_are_enough() -> None:
    assert unet(1, widths=(4,))(torch.zeros(1, 3, 9, 7)).shape == (1, 1, 9, 7)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="upsample must be one of nearest, bilinear, transposed"):
        unet(3, upsample="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one class"):
        unet(0)
    with pytest.raises(ValueError, match="at least one class"):
        unet(3, widths=())


def test_the_default_has_the_size_it_says() -> None:
    model = unet(10).eval()
    macs = 0

    def count(module: Any, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 180, 240))
    assert "0.46 million parameters and 1.05 GMAC" in (unet.__doc__ or "")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(0.46, abs=0.01)
    assert macs / 1e9 == pytest.approx(1.05, abs=0.01)


def test_a_skip_reaches_the_output_at_full_resolution() -> None:
    """One pixel changed far below the pooling's step changes the output there, whatever the deeper levels see."""
    torch.manual_seed(0)
    model: Any = unet(3, widths=(4, 4, 4)).eval()
    for module in model.down[1:].modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)  # the deep path is silent: what is left is the skip
    image = torch.rand(1, 3, 20, 20)
    changed = image.clone()
    changed[0, :, 10, 10] += 1.0
    with torch.no_grad():
        difference = (model(image) - model(changed)).abs().sum(dim=1)[0]
    assert difference[10, 10] > 0
    assert difference[:5].max() == 0  # four 3 x 3 convolutions reach four pixels


def test_importing_the_zoo_does_not_import_torch() -> None:
    code = "import sys, edgeseg.zoo as z; assert 'torch' not in sys.modules; z.unet; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_factory_survives_the_import_of_its_module() -> None:
    import edgeseg.zoo
    import edgeseg.zoo.u_net

    assert edgeseg.zoo.unet is edgeseg.zoo.u_net.unet
    assert callable(edgeseg.zoo.unet)


def test_an_unknown_architecture_is_named_with_those_there_are() -> None:
    import edgeseg.zoo

    with pytest.raises(AttributeError, match=r"no architecture 'vgg'; it has: .*segnet.*, unet"):
        edgeseg.zoo.vgg  # noqa: B018


def street_iou(frames: list[int], state: dict[str, torch.Tensor]) -> NDArray[np.float64]:
    """IoU of each class over frames of the validation split, counted pixel set by pixel set."""
    spec = read_spec(STREET / "unet_street.toml")
    model = unet(**spec.factory_args).eval()
    model.load_state_dict(state)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.input.mean, spec.input.std))
    both, either = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    dataset = load_dataset(STREET / "dataset.toml")
    for sample in read(dataset.split("val"), frames, color="rgb"):
        image = torch.from_numpy(sample.pixels).permute(2, 0, 1).float() / spec.input.scale
        with torch.no_grad():
            guess = model(((image - mean) / std)[None])[0].argmax(dim=0).numpy()
        for c in range(len(CLASSES)):
            both[c] += np.count_nonzero((guess == c) & (sample.label == c))
            either[c] += np.count_nonzero((guess == c) | (sample.label == c))
    iou: NDArray[np.float64] = both / either
    return iou


def test_the_shipped_network_is_as_good_as_its_readme_says() -> None:
    weights = STREET / "unet_street.pt"
    assert weights.stat().st_size < 3_000_000
    spec = read_spec(STREET / "unet_street.toml")
    assert (spec.name, spec.factory, spec.output.classes) == ("unet-street", "edgeseg.zoo:unet", CLASSES)
    torch.set_num_threads(1)
    state = torch.load(weights, weights_only=True)
    iou = street_iou(list(range(96)), state)
    stated = dict(re.findall(r"^\| ([a-zA-Z]+) +\| +\**([0-9.]+)\** +\|", (STREET / "README.md").read_text(), re.M))
    assert 100 * iou.mean() == pytest.approx(float(stated["mIoU"]), abs=0.1)
    for name, value in zip(CLASSES, iou, strict=True):
        assert 100 * value == pytest.approx(float(stated[name]), abs=0.3), name


def test_weights_that_were_damaged_do_not_pass_for_good_ones() -> None:
    state = torch.load(STREET / "unet_street.pt", weights_only=True)
    good = street_iou([0, 40, 80], state).mean()
    state["head.weight"] = state["head.weight"].flip(0)
    assert street_iou([0, 40, 80], state).mean() < good - 0.3
