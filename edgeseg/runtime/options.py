"""What can be asked of a stream: the words of `edgeseg stream`, checked before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeseg.errors import BadInput

What = Literal["overlay", "mask", "both", "frame"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; where frames come from and which bundle runs is said beside it."""

    policy: str | None = None  # "latest", "every"; by default latest for what is live, every for files
    fps: float | None = None  # frames a second to give files, folders and the rendered street
    loop: bool = False  # start files and folders again at their end
    seconds: float | None = None  # end after so long
    frames: int | None = None  # end after so many captured frames of each source
    stall_s: float = 5.0  # how long a live source may give nothing before it is opened again
    retries: int | None = None  # how often in a row; None: for ever
    deadline_ms: float | None = None  # how old a mask may be; by default one period of the camera
    labels: Path | None = None  # folder of label PNGs
    data: Path | None = None  # the data set that says what the labels' values mean
    agreement: float = 0.01  # share of frames that the FP32 network looks at too; 0: none
    record: Path | None = None
    record_what: What = "overlay"
    masks: Path | None = None
    lines: str | None = None  # a path, or "-" for stdout
    send: str | None = None
    show: bool = False
    serve: str | None = None
    token: str | None = None
    legend: bool = True
    contours: bool = True

    def __post_init__(self) -> None:
        """Raise BadInput for a value that makes no sense."""
        for word in ("labels", "data", "record", "masks"):
            if (path := getattr(self, word)) is not None:
                object.__setattr__(self, word, Path(path))  # callers in Python name them by strings too
        for word, low, high in (
            ("fps", 0.001, 10_000.0),
            ("seconds", 0.001, math.inf),
            ("frames", 1, math.inf),
            ("stall_s", 0.1, 3600.0),
            ("retries", 0, math.inf),
            ("deadline_ms", 0.001, math.inf),
            ("agreement", 0.0, 1.0),
        ):
            value = getattr(self, word)
            if value is not None and not (low <= value <= high):
                raise BadInput(f"{word} = {value} is not between {low:g} and {high:g}")
        if self.policy not in (None, "latest", "every"):
            raise BadInput(
                f"there is no policy '{self.policy}'; there are: latest (drop what is too old), every (lose no frame)"
            )
        if self.record_what not in ("overlay", "mask", "both", "frame"):
            raise BadInput(f"'{self.record_what}' cannot be recorded; overlay, mask, both or frame can")
        if self.token is not None and self.serve is None:
            raise BadInput("a token is for the page: say where with serve, such as 0.0.0.0:8080")
