"""What to measure: the scenario and its numbers, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edgeseg.benchmark.scenarios import Until
from edgeseg.errors import BadInput
from edgeseg.measure.latency import samples_needed

Scenario = Literal["single-stream", "multi-stream", "offline", "camera"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
# The percentile that a scenario states, and so needs samples for. Offline: a median over pieces of the run.
STATED: dict[Scenario, float] = {"single-stream": 0.9, "multi-stream": 0.99, "offline": 0.5, "camera": 0.99}
FPS = 30.0  # of a camera, unless told


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario, and when it ends. Raises BadInput for numbers that do not go together.

    `seconds` and `limit_s` are for each bundle. `samples`: None for what the scenario's percentile needs. `fps`: of the
    camera (30 if None); of multi-stream, where None means that the next query is due when the one before is done.
    `deadline_ms`: of the camera, a period if None.
    """

    scenario: Scenario = "single-stream"
    seconds: float = 10.0
    samples: int | None = None
    limit_s: float | None = None
    streams: int = 4
    fps: float | None = None
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise BadInput(f"there is no scenario '{self.scenario}'; there are: {', '.join(SCENARIOS)}")
        positive = {"seconds": self.seconds, "limit": self.limit_s, "fps": self.fps, "deadline": self.deadline_ms}
        for name, value in positive.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise BadInput(f"wanted a positive number for {name}, came {value}")
        for name, count in (("samples", self.samples), ("streams", self.streams)):
            if count is not None and count < 1:
                raise BadInput(f"wanted at least 1 for {name}, came {count}")
        if self.fps is not None and self.scenario not in ("camera", "multi-stream"):
            raise BadInput(f"{self.scenario} has no clock of its own: --fps is for camera and multi-stream")
        if self.deadline_ms is not None and self.scenario != "camera":
            raise BadInput(f"{self.scenario} has no deadline: --deadline is for camera")

    @property
    def percentile(self) -> float:
        """The one that this scenario states, 0 to 1."""
        return STATED[self.scenario]

    @property
    def least(self) -> int:
        """How many samples each run must have."""
        return samples_needed(self.percentile) if self.samples is None else self.samples

    @property
    def rate(self) -> float | None:
        """Queries a second, where they come by a clock."""
        return self.fps or FPS if self.scenario == "camera" else self.fps

    def until(self, bundles: int) -> Until:
        """For all of them together, since they take turns."""
        limit = None if self.limit_s is None else self.limit_s * bundles
        return Until(self.seconds * bundles, self.least, limit)
