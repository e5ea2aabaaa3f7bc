"""Where frames come from: `parse` reads the words that name a source, `open_source` opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeseg.data.splits import IMAGE_SUFFIXES
from edgeseg.errors import BadInput, EdgesegError
from edgeseg.runtime.sources import folder, gstreamer, video
from edgeseg.runtime.sources.base import Source, SourceBroken
from edgeseg.runtime.sources.rendered import StreetSource
from edgeseg.runtime.sources.wanted import FORMS, Wanted, parse

__all__ = ["FORMS", "Source", "SourceBroken", "Wanted", "open_source", "parse"]


def open_source(wanted: Wanted, *, fps: float | None, stall_s: float, clock: Callable[[], int]) -> Source:
    """Open a source once.

    `fps` is the rate asked for where the words have none: of a camera it is requested, of the street it is the pace
    (15 if None), of a folder the nominal rate; a file or a stream keeps its own. `stall_s` is how long a frame may be
    waited for, in seconds; opening may take as long, a network stream at least five seconds. `clock` gives nanoseconds.

    Raises BadInput for what does not exist or is no video, picture or pipeline, MissingOnMachine where a package or a
    plugin is missing, SourceBroken where a live source does not open and may later.
    """
    if wanted.kind == "street":
        size = wanted.size or (360, 480)
        rate = wanted.fps or fps or 15.0
        return StreetSource(size, name=wanted.shown, fps=rate, seed=wanted.seed, frames=wanted.frames, clock=clock)
    if wanted.kind == "gst":
        return gstreamer.open_pipeline(wanted.where, name=wanted.shown, stall_s=stall_s, clock=clock)
    if wanted.kind == "csi":
        text = gstreamer.csi_pipeline(wanted, fps)
        return gstreamer.open_pipeline(text, name=wanted.shown, stall_s=stall_s, clock=clock)
    if wanted.kind == "camera":
        return video.open_camera(wanted, fps=fps, stall_s=stall_s, clock=clock)
    if wanted.kind == "network":
        decoded = _in_hardware(wanted, stall_s=stall_s, clock=clock)
        return decoded or video.open_network(wanted, stall_s=stall_s, clock=clock)
    path = Path(wanted.where)
    if not path.exists():
        raise BadInput(f"There is no file or folder {path.absolute()}. A source is one of:\n{FORMS}")
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return folder.open_pictures(path, name=wanted.shown, fps=fps, clock=clock)
    decoded = _in_hardware(wanted, stall_s=stall_s, clock=clock)
    return decoded or video.open_file(path, name=wanted.shown, stall_s=stall_s, clock=clock)


def _in_hardware(wanted: Wanted, *, stall_s: float, clock: Callable[[], int]) -> Source | None:
    """Decoded by the machine's own decoder, if it has one that opens this; OpenCV tries what it refuses."""
    text = gstreamer.hardware_pipeline(wanted)
    if text is None:
        return None
    try:
        return gstreamer.open_pipeline(text, name=wanted.shown, stall_s=stall_s, clock=clock)
    except (EdgesegError, SourceBroken):
        return None
