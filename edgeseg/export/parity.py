"""Does the fused graph answer what the network answers? Label maps compared on real frames, and a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgeseg.errors import CannotTell, ParityFailed
from edgeseg.export import graph as g
from edgeseg.export.diagnose import Divergence
from edgeseg.types import MASK, Mask, OnnxModel, Pixels

OVERALL, BOUNDARY = 0.999, 0.99  # least agreement, of all pixels and of those along class boundaries


class Agreement(Protocol):
    """How many pixels of two label maps are equal, in all and in a band along the reference's boundaries."""

    @property
    def pixels(self) -> int: ...
    @property
    def equal(self) -> int: ...
    @property
    def band_pixels(self) -> int: ...
    @property
    def band_equal(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Parity:
    frames: int
    overall: float  # share of pixels with the same label, 0 to 1
    boundary: float  # the same within the band; 1 where no frame has a boundary
    band: int = 2  # pixels on each side of a boundary
    worst: Pixels | None = field(default=None, repr=False, compare=False)  # the frame that agrees least

    @property
    def good(self) -> bool:
        return self.overall >= OVERALL and self.boundary >= BOUNDARY


def compare(
    reference: Callable[[Pixels], Mask],
    model: OnnxModel,
    frames: Iterable[Pixels],
    agreement: Callable[[Mask, Mask], Agreement],
    *,
    band: int = 2,
) -> Parity:
    """Agreement of `model`, run by ONNX Runtime, with `reference` over `frames`, each (H, W, 3) of the spec's size.

    `agreement(reference mask, other mask)` counts; `band` is the width that it counts in, for the record.
    Counts are summed over the frames, so that each pixel weighs the same. Raises CannotTell without frames.
    """
    call = g.opened(model.graph, optimised=True)
    pixels = equal = band_pixels = band_equal = count = 0
    worst, least = None, 2.0
    for frame in frames:
        seen = agreement(reference(frame), call(np.ascontiguousarray(frame[np.newaxis]))[MASK][0])
        pixels, equal = pixels + seen.pixels, equal + seen.equal
        band_pixels, band_equal = band_pixels + seen.band_pixels, band_equal + seen.band_equal
        count += 1
        if seen.equal / seen.pixels < least:
            worst, least = frame, seen.equal / seen.pixels
    if count == 0:
        raise CannotTell("parity needs at least one frame; none was given")
    return Parity(count, equal / pixels, band_equal / band_pixels if band_pixels else 1.0, band, worst)


def require(parity: Parity, diagnose: Callable[[], Divergence | None] | None = None) -> None:
    """Raise ParityFailed unless 99.9 % of all pixels and 99 % of those along boundaries agree.

    `diagnose` is called then, to name the first diverging node: first_divergence(model, onnx_model, parity.worst).
    """
    if parity.good:
        return
    where = ""
    if diagnose is not None:
        found = diagnose()
        where = f" {found}" if found else " No single node diverges: the differences add up over the network."
    raise ParityFailed(
        f"the exported graph does not answer as the network does: on {parity.frames} frames "
        f"{100 * parity.overall:.3f} % of the pixels agree (wanted {100 * OVERALL:g} %), {100 * parity.boundary:.2f} % "
        f"within {parity.band} pixels of a boundary (wanted {100 * BOUNDARY:g} %).{where}"
    )
