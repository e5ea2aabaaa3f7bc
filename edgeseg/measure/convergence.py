"""Have enough frames been seen? The scales after a part of the frames against those after all of them.

Statistics never change once taken, so what was seen after a quarter, a half and three quarters of the frames is kept
beside the table and read by the same recipe; no frame is run twice. A scale that still moved while the last quarter
came would move again with as many frames more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibration import ScaleTable, Scheme, Seen, quantizer

LEAST_FRAMES = 4  # below, quarters are no frames
# The error of rounding goes with the square of the scale: 5 % more of it cost 0.4 dB, which no mask shows. What a
# range loses by clipping changes less, as the recipes that clip stand where that balance is flat.
MOVING = 0.05
SETTLED = 0.01
NAMED = 5  # tensors, in a sentence


@dataclass(slots=True)
class Snapshots:
    """What was seen after 1/4, 1/2 and 3/4 of `total` frames: give it to `calibrate` as `watch`.

    Three times what the table holds, whatever the number of frames.
    """

    total: int
    kept: dict[int, Mapping[str, Seen]] = field(default_factory=dict)

    def __call__(self, frames: int, tensors: Mapping[str, Seen]) -> None:
        if self.total >= LEAST_FRAMES and frames in {self.total * part // 4 for part in (1, 2, 3)}:
            self.kept[frames] = dict(tensors)


@dataclass(frozen=True, slots=True)
class Convergence:
    """How far scales were from their last value while frames came. Changes are fractions of that last value."""

    frames: int
    worst: tuple[tuple[int, float], ...]  # (frames so far, largest change of any scale from there on), ascending
    moving: tuple[tuple[str, float], ...]  # tensors that changed by more than MOVING after the last mark, worst first
    tensors: int

    @property
    def settled(self) -> bool:
        """Whether no scale moved by more than MOVING over the last quarter of the frames."""
        return bool(self.worst) and not self.moving

    @property
    def sentence(self) -> str:
        """For the console."""
        if not self.worst:
            return f"{self.frames} frames are too few to tell whether more would change the scales"
        mark, change = self.worst[-1]
        last = self.frames - mark
        if self.moving:
            names = ", ".join(f"{name} ({100 * moved:.0f} %)" for name, moved in self.moving[:NAMED])
            more = f" and {len(self.moving) - NAMED} more" if len(self.moving) > NAMED else ""
            count = len(self.moving)
            return (
                f"{count} of {self.tensors} scales still moved by more than {100 * MOVING:.0f} % over the last {last} "
                f"frames: {names}{more}. Give more frames"
            )
        bound = SETTLED if change < SETTLED else change
        shown = f"less than {100 * bound:.0f} %" if change < SETTLED else f"at most {100 * bound:.1f} %"
        return f"the scales moved by {shown} over the last {last} frames"

    def to_json(self) -> dict[str, Any]:
        """A plain dict: `frames`, `tensors`, `worst` (frames, change), `moving` (tensor, change), `settled`."""
        return {
            "frames": self.frames,
            "tensors": self.tensors,
            "worst": [{"frames": frames, "change": change} for frames, change in self.worst],
            "moving": [{"tensor": name, "change": change} for name, change in self.moving],
            "settled": self.settled,
        }


def convergence(snapshots: Snapshots, table: ScaleTable, schemes: Sequence[Scheme]) -> Convergence:
    """Compare the scales that the table's recipe gives after a part of its frames with those after all of them.

    Of each tensor the scheme counts in which its scale moved most. Marks that were not reached (frames that could not
    be read) are left out. Raises ValueError without a scheme.
    """
    if not schemes:
        raise ValueError("at least one scheme was expected: scales are those of some engine's integers")
    marks = sorted(mark for mark in snapshots.kept if mark < table.frames)
    changes: dict[int, dict[str, float]] = {mark: {} for mark in marks}
    method, parameters = table.recipe.method, table.recipe.parameters
    for name in table.tensors:
        for scheme in schemes:
            final = table.quantizer(name, scheme).scale
            for mark in marks:
                scale = quantizer(snapshots.kept[mark][name], method, scheme, parameters).scale
                changes[mark][name] = max(abs(scale / final - 1.0), changes[mark].get(name, 0.0))
    last = changes[marks[-1]] if marks else {}
    moving = sorted(
        ((name, moved) for name, moved in last.items() if moved > MOVING), key=lambda row: (-row[1], row[0])
    )
    worst = tuple((mark, max(changes[mark].values(), default=0.0)) for mark in marks)
    return Convergence(table.frames, worst, tuple(moving), len(table.tensors))
