"""What a build refuses before it begins, and what to do instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgeseg.errors import BadInput, need
from edgeseg.files import require_writable
from edgeseg.pipeline.again import Known, is_bundle
from edgeseg.types import Precision

if TYPE_CHECKING:
    from edgeseg.pipeline.rewriting.wish import Wish


def check_words(
    model: str | Path,
    precision: str,
    rewrite: Wish | None,
    data: str | Path | None,
    dynamic: bool,
    samples: int | None,
    max_miou_drop: float,
    recover: float | None,
    out: str | Path | None,
) -> None:
    """What can be said before anything is read."""
    if rewrite is not None:
        need("torch", extra="torch", why="Rewriting a network")
        from edgeseg.pipeline.rewriting.run import checked

        if dynamic:
            raise BadInput("a network is rewritten for one size: build without --dynamic, or without --rewrite")
        if data is None:
            raise BadInput("rewriting needs real frames to fit to: say --data DATASET.toml (or a folder of images)")
        checked(rewrite, Path(model))
    if precision not in get_args(Precision):
        raise BadInput(f"there is no precision '{precision}'; there are: {', '.join(get_args(Precision))}")
    if not (math.isfinite(max_miou_drop) and max_miou_drop >= 0):
        raise BadInput(f"max_miou_drop is a number of points, 0 or more; {max_miou_drop} came")
    if samples is not None and samples < 1:
        raise BadInput(f"samples is a number of frames, 1 or more; {samples} came")
    if recover is not None:
        need("torch", extra="torch", why="Recovering INT8 weights")
        if precision != "int8":
            raise BadInput("--recover is for INT8 weights: say --int8")
        if not (math.isfinite(recover) and recover > 0):
            raise BadInput(f"recover is a number of minutes above 0; {recover} came")
        if data is None:
            raise BadInput("--recover learns on real frames: say --data DATASET.toml (or a folder of images)")
    if precision == "int8" and data is None and not is_bundle(Path(model)):
        raise BadInput(
            "INT8 needs real frames to calibrate on: say --data DATASET.toml (or a folder of images). "
            "Random data would give scales that look right and masks that are wrong."
        )
    if out is not None:
        require_writable(Path(out))


def check_bundle(
    model: Path,
    before: Known,
    precision: str,
    changed: Mapping[str, object],
    calibrated: Mapping[str, object],
    data: str | Path | None,
    out: str | Path | None,
) -> None:
    """Of a build from a bundle: what was decided when it was made stays so.

    `changed`: options that need the model itself, `calibrated`: those of a calibration, each with what was given.
    """
    if any(changed.values()):
        raise BadInput(f"{model} is a bundle: its graph is made. {_listed(changed)} need the model")
    if out is not None and Path(out).exists() and Path(out).samefile(model):
        raise BadInput(f"{out} is the bundle that is built from: give the new one another name with -o")
    if precision != "int8":
        return
    if before.network.table is None and data is None:
        raise BadInput(f"{model} was built without calibration: say --data DATASET.toml, or build it with --int8 first")
    if before.network.table is not None and any(value is not None for value in calibrated.values()):
        raise BadInput(f"{model} brings the scales that it was built with: {_listed(calibrated)} need the model")


def _listed(options: Mapping[str, object]) -> str:
    *first, last = options
    return f"{', '.join(first)} and {last}"
