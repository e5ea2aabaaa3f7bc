"""On a real trained network and real frames, in each of its three forms, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgeseg.export import compare, fuse, require, to_onnx, torch_reference
from edgeseg.intake import Torch, load
from edgeseg.spec import read_spec
from edgeseg.types import Mask, Pixels
from tests.export.making import Count, ops

SHARED = Path(os.environ.get("EDGESEG_SHARED", Path(__file__).parents[3] / "shared"))
MODELS, IMAGES = SHARED / "models", SHARED / "camvid" / "val" / "images"
pytestmark = pytest.mark.skipif(
    not (MODELS.is_dir() and IMAGES.is_dir()), reason="needs the trained model and frames of EDGESEG_SHARED"
)


def frames(size: tuple[int, int]) -> list[Pixels]:
    import cv2

    files = sorted(IMAGES.iterdir())[::20][:5]
    height, width = size
    return [np.asarray(cv2.resize(cv2.imread(str(file)), (width, height)), np.uint8) for file in files]


def agreement(reference: Mask, other: Mask) -> Count:
    import cv2

    kernel = np.ones((5, 5), np.uint8)
    band = cv2.dilate(reference, kernel) != cv2.erode(reference, kernel)
    same = reference == other
    return Count(same.size, int(same.sum()), int(band.sum()), int((same & band).sum()))


@pytest.mark.parametrize("file", ["unet_camvid.pt", "unet_camvid.pt2", "unet_camvid_torchscript.pt"])
def test_parity(file: str) -> None:
    spec = read_spec(MODELS / "unet_camvid.toml")
    model = load(MODELS / file, spec)
    assert isinstance(model, Torch)
    exported = to_onnx(model, spec)
    assert ops(exported.graph) == {"Conv", "Relu", "MaxPool", "Resize", "Concat"}
    parity = compare(torch_reference(model, spec), fuse(exported.graph, spec), frames(spec.input.size), agreement)
    assert parity.frames == 5
    require(parity)
