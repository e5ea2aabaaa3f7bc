"""A bundle as what a build begins with: its graph, its scales and its frames, for engines of the machine it is on now.

On a device there is no torch and often no data. What was calibrated elsewhere is in the bundle, for every dialect.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration import CalibrationError, ScaleTable, from_json
from edgeseg.bundle import FP32, Bundle, read_bundle
from edgeseg.errors import BundleError
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.evaluate import Accuracy
from edgeseg.pipeline.engines import REWRITTEN, Tried
from edgeseg.types import OnnxModel, Pixels

SCALES = "scales.json"


@dataclass(frozen=True, slots=True)
class Known:
    """What a bundle already knows of a network."""

    fp32: OnnxModel
    intake: dict[str, Any]  # how the graph was made, and what it was compared with
    table: ScaleTable | None
    frames: tuple[Pixels, ...]  # uint8 (H, W, 3), the reference frames
    calibration: dict[str, Any] | None  # what its scales were taken from
    baseline: dict[str, Any] | None
    palette: list[list[int]] | None
    rewritten: tuple[str, ...]  # its engines of a rewritten network, which the FP32 graph is not of


def known(path: Path) -> Known | None:
    """What the bundle at this path knows; None for a path that is a model. Raises BundleError for a broken bundle."""
    if not (path.is_dir() or path.suffix == ".edgeseg"):
        return None
    bundle = read_bundle(path)
    if FP32 not in bundle.files:
        raise BundleError(f"{path} holds no FP32 graph to build from. Build from the model file.")
    report = bundle.verdict
    return Known(
        OnnxModel(bundle.files[FP32], bundle.spec),
        {**(report.get("intake") or {}), "form": "bundle"},
        _table(bundle, path),
        tuple(reference.frame for reference in bundle.references),
        report.get("calibration"),
        report.get("baseline"),
        report.get("palette"),
        tuple(variant.name for variant in bundle.variants if variant.name.startswith(REWRITTEN)),
    )


def on_references(tried: Tried) -> tuple[dict[str, Accuracy], dict[str, Any]]:
    """Agreement with the FP32 masks on the bundle's own frames, and the row that says that these were all."""
    found = {}
    for engine in tried.engines:
        seen = Agreement()
        for mask, expected in zip(tried.masks[engine.name], tried.expected, strict=True):
            seen += agreement(expected, mask)
        found[engine.name] = Accuracy(np.zeros((0, 0), np.int64), seen, len(tried.expected), 0)
    row = {"frames": len(tried.expected), "labelled": 0, "split": "the bundle's references", "skipped": []}
    return found, row


def _table(bundle: Bundle, path: Path) -> ScaleTable | None:
    if SCALES not in bundle.files:
        return None
    try:
        return from_json(bundle.files[SCALES].decode())
    except (CalibrationError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {SCALES} cannot be read: {error}. Build the bundle again.") from error
