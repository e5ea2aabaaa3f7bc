"""The seam between edgeseg and the engines: a Backend opens files into a Session, a Session turns frames into masks.

Above it everything is NumPy; below it each vendor's types stay in one file. What a backend may be told is a flat
mapping of settings, which travels in the bundle, so that what was measured is what runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, TypeVar

from edgeseg.errors import BadInput
from edgeseg.measure.machine import machine, usable_cores
from edgeseg.types import Frames, Masks, Precision

Decision = Literal["graph", "host"]
Value = str | int | float | bool
Settings = Mapping[str, Value]
C = TypeVar("C", bound="Closing")


@dataclass(frozen=True, slots=True)
class Engine:
    """What a session is opened from: a graph for one backend, and the settings it was measured with.

    `files` maps names to bytes; `graph` names the first of them. Settings that every backend knows:
    `decision` ("graph": the graph gives the mask; "host": it gives the scores and the session decides) and, for one
    channel, `threshold` (the score from which a pixel is class 1); `threads` (0: all that the process may use).
    """

    name: str
    backend: str
    precision: Precision
    graph: str
    files: Mapping[str, bytes]
    settings: Settings = field(default_factory=dict)
    source: str = ""  # hash of the ONNX graph that the files were made from, where that is known


class Closing(ABC):
    """Something with a `close`, which the end of a `with` calls."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session(Closing):
    """An opened engine. Not to be shared between threads."""

    batch: int = 1  # how many frames it takes at once; 0 for any number
    fresh: bool = False  # whether it was built on this machine, and nobody has compared its masks yet

    def checked(self) -> None:
        """Its masks were compared and are right: it is not fresh any more, nor is it when it is opened next."""
        self.fresh = False

    @abstractmethod
    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        """Masks uint8 (N, H, W) for frames uint8 (N, H, W, 3) of the size and colour order that the spec names.

        With `out`, a contiguous array of that shape, they are written there and `out` comes back: no memory of the
        size of a frame is allocated. Without, the array is the caller's: a later run does not write into it.
        """


class Backend(Protocol):
    """One runtime. `open` raises MissingOnMachine where the runtime is not installed, ModelError where it refuses."""

    @property
    def name(self) -> str: ...

    @property
    def isolate(self) -> bool:
        """Whether opening a graph for the first time may end the process: try it in a child."""

    @property
    def built_here(self) -> bool:
        """Whether engines are made on the machine they run on, so that two of one graph may answer differently."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Where the decision between the classes is worth timing; the likely winner first."""

    def version(self) -> str: ...

    def place(self) -> Mapping[str, Value]:
        """What its masks may depend on besides an engine's files: versions, processor, GPU."""

    def half_graphs(self, precision: Precision) -> bool:
        """Whether half precision must be written into a graph of this precision, and is not done by the runtime."""

    def settings(self, precision: Precision) -> tuple[Settings, ...]:
        """The settings worth timing on this machine for a graph of this precision; the likely winner first."""

    def halves(self) -> tuple[Precision, ...]:
        """The half precisions that it computes in on this machine."""

    def convert(self, graph: bytes) -> dict[str, bytes]:
        """The files it opens for an ONNX graph in its dialect; the first is the graph."""

    def open(self, engine: Engine) -> Session: ...


def threads_allowed() -> int:
    """How many threads to use unless told: the processors that this process may use, whole ones."""
    return max(1, round(usable_cores()))


def cpu_place(backend: str, version: str) -> dict[str, Value]:
    """What the masks of an engine on the CPU may depend on besides its files."""
    return {"cpu": str(machine()["cpu"]), backend: version}


_KNOWN: dict[str, tuple[Value, ...]] = {
    "decision": ("graph", "host"),
    "optimization": ("all", "extended", "basic", "off"),
    "arithmetic": ("f32", "f16", "bf16"),
}


def check_settings(engine: Engine) -> None:
    """Raise BadInput for a setting that no backend knows: settings come from bundles, and those from anywhere."""
    for key, value in engine.settings.items():
        if key in _KNOWN:
            good, wanted = value in _KNOWN[key], " or ".join(map(str, _KNOWN[key]))
        elif engine.backend.startswith("tensorrt") and _is_option(key):
            continue
        elif key == "threads":
            good, wanted = type(value) is int and 0 <= value <= 4096, "a number of threads"
        elif key == "threshold":
            good, wanted = isinstance(value, int | float) and math.isfinite(value), "a number"
        else:
            good, wanted = False, "a setting that edgeseg knows"
        if not good:
            raise BadInput(f"engine '{engine.name}': the setting {key} = {value!r} is not {wanted}. Build it again.")


def _is_option(key: str) -> bool:
    """Whether TensorRT's own check of its options will look at this setting."""
    from edgeseg.backends.tensorrt.options import OPTION_NAMES

    return key in OPTION_NAMES
