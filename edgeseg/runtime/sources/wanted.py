"""The words that name a source, read and checked before anything is opened: `parse` makes a `Wanted` of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from edgeseg.errors import BadInput

Kind = Literal["file", "folder", "camera", "network", "gst", "csi", "street"]

FORMS = """\
  VIDEO, PICTURE or FOLDER                           a file, or a folder of pictures in the order of their names
  0, /dev/video0, camera:0?size=1280x720&fps=30&fourcc=MJPG   a camera (USB, V4L2)
  rtsp://..., http://..., rtmp://..., srt://...      a stream that FFmpeg reads
  csi:0?size=1920x1080&fps=30&flip=0                 a CSI camera of a Jetson
  gst:PIPELINE                                       a GStreamer pipeline, such as gst:v4l2src ! videoconvert
  street:480x360@15?seed=7&frames=300                the rendered street with its labels (width x height)"""

_NETWORK = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "rtp", "tcp", "srt")
_OPTIONS = {
    "camera": {"size", "fps", "fourcc"},
    "csi": {"size", "fps", "flip"},
    "street": {"seed", "frames"},
}
_LARGEST = 16384  # pixels a side
_USER = re.compile(r"(\w+://[^\s/:@]*):[^\s/]*@")
# also quoted with spaces inside, as rtspsrc's user-pw="..." may be
_SECRET = re.compile(r"(?i)\b((?:user-)?(?:pass|passwd|password|pw|token|secret|key)=)(\"[^\"]*\"|'[^']*'|[^\s&!]+)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for, in checked words. Nothing was opened yet, and the path may not exist."""

    text: str
    kind: Kind
    where: str  # path, number or path of the camera, URL, pipeline, number of the sensor; empty for the street
    size: tuple[int, int] | None = None  # height, width in pixels
    fps: float | None = None
    fourcc: str | None = None
    flip: int = 0  # flip-method of nvvidconv, 0 to 7
    seed: int = 7
    frames: int | None = None  # None: without end

    @property
    def live(self) -> bool:
        """Whether it should be expected to be live, so that a late consumer drops frames: the default policy.

        A finished recording behind http:// or in a GStreamer pipeline is not; that is known when it is open.
        """
        return self.kind not in ("file", "folder")

    @property
    def shown(self) -> str:
        """The text with every password in it masked: for messages and documents."""
        return masked(self.text)


def masked(text: str) -> str:
    """`text` with passwords in URLs and in settings such as `user-pw=` and `token=` replaced by three stars.

    >>> masked("rtsp://me:secret@10.0.0.5/live?token=abc&x=1")
    'rtsp://me:***@10.0.0.5/live?token=***&x=1'
    """
    return _SECRET.sub(r"\1***", _USER.sub(r"\1:***@", text))


def parse(text: str) -> Wanted:
    """The source that `text` names: see FORMS. BadInput, with the forms, where the words make no sense."""
    text = text.strip()
    if not text:
        raise _bad(text, "it is empty")
    if text.isascii() and text.isdigit():
        return Wanted(text, "camera", str(int(text)))
    if text.startswith("/dev/video"):
        return Wanted(text, "camera", text)
    scheme, _, rest = text.partition(":")
    if scheme in _NETWORK and rest.startswith("//"):
        if len(rest.strip("/")) == 0:
            raise _bad(text, "the address is missing")
        return Wanted(text, "network", text)
    if scheme == "gst":
        if not rest.strip():
            raise _bad(text, "the pipeline is missing")
        return Wanted(text, "gst", rest.strip())
    if scheme in ("camera", "csi", "street") and rest:
        return _with_options(text, scheme, rest)  # type: ignore[arg-type]
    path = Path(text)
    if path.is_char_device():  # such as a name in /dev/v4l/by-id
        return Wanted(text, "camera", text)
    if path.is_dir():
        return Wanted(text, "folder", text)
    # One letter is a drive of Windows, and a file may have a colon in its name.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) and not path.exists():
        raise _bad(text, f"there is no file of that name, and '{scheme}:' is no kind of source")
    return Wanted(text, "file", text)


def _with_options(text: str, kind: Literal["camera", "csi", "street"], rest: str) -> Wanted:
    where, _, query = rest.partition("?")
    options: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise _bad(text, f"'{query}' is not of the form name=value&name=value") from None
    for key, value in pairs:
        if key not in _OPTIONS[kind] or key in options:
            twice = "is given twice" if key in options else f"is not one of {', '.join(sorted(_OPTIONS[kind]))}"
            raise _bad(text, f"the option '{key}' {twice}")
        options[key] = value
    size = fps = fourcc = frames = None
    if kind == "street":
        asked, _, rate = where.partition("@")
        size = _size(text, asked)
        if min(size) < 16:
            raise _bad(text, "a street needs at least 16 x 16 pixels")
        fps, where = _rate(text, rate) if "@" in where else None, ""
    elif kind == "csi" or not where.startswith("/dev/"):
        where = str(_whole(text, "the number of the camera", where, 0, 255))
    if "size" in options:
        size = _size(text, options["size"])
    if "fps" in options:
        fps = _rate(text, options["fps"])
    if "fourcc" in options:
        fourcc = options["fourcc"]
        if not re.fullmatch(r"[ -~]{4}", fourcc):
            raise _bad(text, f"fourcc is four letters such as MJPG or YUYV, not '{fourcc}'")
    if "frames" in options:
        frames = _whole(text, "frames", options["frames"], 1, 10**12)
    flip = _whole(text, "flip", options.get("flip", "0"), 0, 7)
    seed = _whole(text, "seed", options.get("seed", "7"), -(2**31), 2**31)
    return Wanted(text, kind, where, size, fps, fourcc, flip, seed, frames)


def _size(text: str, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)
    if not found or not all(1 <= int(side) <= _LARGEST for side in found.groups()):
        raise _bad(text, f"a size is WIDTHxHEIGHT in pixels, such as 640x480, not '{value}'")
    return int(found[2]), int(found[1])


def _rate(text: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0.01 <= rate <= 1000:  # false for nan too
        raise _bad(text, f"frames per second lie between 0.01 and 1000, not '{value}'")
    return rate


def _whole(text: str, what: str, value: str, low: int, high: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,13}", value) or not low <= int(value) <= high:
        raise _bad(text, f"{what} is a whole number from {low} to {high}, not '{value}'")
    return int(value)


def _bad(text: str, why: str) -> BadInput:
    return BadInput(f"'{masked(text)}' names no source: {why}. A source is one of:\n{FORMS}")
