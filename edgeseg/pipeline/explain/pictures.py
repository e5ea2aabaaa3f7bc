"""The frames that differ most, as pictures that a document can carry."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.data import Dataset
from edgeseg.errors import need
from edgeseg.palette import palette_of
from edgeseg.pipeline.explain.masks import Shown
from edgeseg.report.picture import overlay, png, side_by_side

HEIGHT = 200  # pixels of each picture
_DIFFERS = (40, 40, 255)  # BGR


def gallery_rows(
    shown: Sequence[Shown], opened: Bundle, dataset: Dataset | None, deployed: str
) -> list[dict[str, Any]]:
    """One PNG a frame, base64: the frame, the FP32 mask, the deployed mask, where they differ, and the label."""
    cv2 = need("cv2", extra="run", why="drawing masks")
    palette = dataset.palette if dataset is not None and dataset.palette else palette_of(opened)
    rows = []
    for one in shown:
        frame = one.frame if opened.spec.input.frame == "bgr" else np.ascontiguousarray(one.frame[..., ::-1])
        differs = (frame // 3).astype(np.uint8)
        unequal = (one.fp32 != one.deployed).astype(np.uint8)
        differs[cv2.dilate(unequal, np.ones((3, 3), np.uint8)) > 0] = _DIFFERS  # single pixels would not be seen
        pictures = [
            ("frame", frame),
            ("FP32", overlay(frame, one.fp32, palette)),
            (deployed, overlay(frame, one.deployed, palette)),
            (f"differs: {100 * (1 - one.agreement):.2f} %", differs),
        ]
        if one.label is not None:
            pictures.append(("label", overlay(frame, one.label, palette)))
        picture = png(side_by_side(pictures, HEIGHT))
        rows.append({"name": one.name, "agreement": one.agreement, "png": base64.b64encode(picture).decode("ascii")})
    return rows
