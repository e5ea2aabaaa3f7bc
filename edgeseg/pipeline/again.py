"""A bundle as what a build begins with: its graph, its scales and its frames, for engines of the machine it is on now.

On a device there is no torch and often no data. What was calibrated elsewhere is in the bundle, for every dialect.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.bundle import read_bundle
from edgeseg.bundle_io import SUFFIX
from edgeseg.errors import BundleError
from edgeseg.measure.agreement import Agreement, agreement
from edgeseg.measure.evaluate import Accuracy
from edgeseg.pipeline.engines import REWRITTEN, Tried
from edgeseg.pipeline.network import Network, network_in
from edgeseg.types import Pixels


@dataclass(frozen=True, slots=True)
class Known:
    """What a bundle already knows of a network."""

    network: Network
    small: Network | None  # a rewritten one, where the build made it
    intake: dict[str, Any]  # how the graph was made, and what it was compared with
    frames: tuple[Pixels, ...]  # uint8 (H, W, 3), the reference frames
    calibration: dict[str, Any] | None  # what its scales were taken from
    baseline: dict[str, Any] | None
    palette: list[list[int]] | None


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle's by its name; a model is a file of another kind."""
    return path.is_dir() or path.suffix == SUFFIX


def known(path: Path) -> Known | None:
    """What the bundle at this path knows; None for a path that is a model. Raises BundleError for a broken bundle."""
    if not is_bundle(path):
        return None
    bundle = read_bundle(path)
    network, small = network_in(bundle), network_in(bundle, f"{REWRITTEN}/")
    if network is None:
        raise BundleError(f"{path} holds no FP32 graph to build from. Build from the model file.")
    report = bundle.verdict
    return Known(
        network,
        small,
        {**(report.get("intake") or {}), "form": "bundle"},
        tuple(reference.frame for reference in bundle.references),
        report.get("calibration"),
        report.get("baseline"),
        report.get("palette"),
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
