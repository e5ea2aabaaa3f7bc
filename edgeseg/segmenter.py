"""A bundle, opened: frames in, masks out. What `edgeseg.open` returns, and what eval, bench and stream run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.backends import Engine, open_engine
from edgeseg.backends.base import Closing, Value
from edgeseg.bundle import Bundle, Variant, read_bundle
from edgeseg.data.prepare import fit, to_size
from edgeseg.errors import BadInput
from edgeseg.selfcheck import require_elsewhere, require_references
from edgeseg.types import Frames, Mask, Masks, ModelSpec, Pixels


def engine_of(bundle: Bundle, variant: Variant, overrides: Mapping[str, Value] | None = None) -> Engine:
    """The engine that a variant of a bundle describes; `overrides` replace single settings, such as `threads`."""
    return Engine(
        name=variant.name,
        backend=variant.backend,
        precision=variant.precision,
        graph=variant.files[0],
        files={file: bundle.files[file] for file in variant.files},
        settings={**variant.settings, **(overrides or {})},
    )


class Segmenter(Closing):
    """A running engine with the preparation around it. Use it in a `with`; not from two threads at once."""

    def __init__(self, engine: Engine, spec: ModelSpec) -> None:
        self.spec = spec
        self.name = engine.name
        self._session = open_engine(engine)

    def __call__(self, frame: Pixels) -> Mask:
        """The mask uint8 (H, W) of a frame uint8 (H, W, 3) of any size, in the order that `spec.input.frame` names.

        The frame is resized to the network's input as the spec says, the class map back by nearest neighbour.
        Raises BadInput for anything else than such a frame.
        """
        return to_size(self.native(frame), (frame.shape[0], frame.shape[1]))

    def native(self, frame: Pixels) -> Mask:
        """The mask at the network's own resolution, for a frame of any size."""
        check_frame(frame)
        mask: Mask = self.run(fit(frame, self.spec.input.size, self.spec.input.resize)[None])[0]
        return mask

    def run(self, frames: Frames, out: Masks | None = None) -> Masks:
        """The engine alone: masks uint8 (N, H, W), or `out`, for frames uint8 (N, H, W, 3) of the network's size."""
        return self._session.run(frames, out)

    @property
    def fresh(self) -> bool:
        """Whether the engine was built on this machine, and nobody has compared its masks yet."""
        return self._session.fresh

    def checked(self) -> None:
        """Its masks were compared and are right."""
        self._session.checked()

    def close(self) -> None:
        self._session.close()


def check_frame(frame: Any) -> None:
    """Raise BadInput unless `frame` is a uint8 array (H, W, 3) with a pixel in it."""
    good = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    if not good or not frame.size:
        came = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise BadInput(
            f"a frame is a uint8 array of shape (height, width, 3), as cv2.imread gives it; this is {came}. "
            "Give frames as they come from the camera: scaling and normalising happen inside the graph."
        )


def open_bundle(
    path: str | Path, *, variant: str | None = None, threads: int = 0, check: bool | None = None
) -> Segmenter:
    """Open a bundle for running. Also known as `edgeseg.open`.

    `variant`: one of the bundle's engines by name, by default the one that its build chose. `threads`: 0 for all that
    the process may use. `check`: compare with the bundle's reference masks first; by default where the runtime's
    version or the processor is not the one that the bundle was measured on.

    Raises BundleError for a damaged or hostile bundle, MissingOnMachine where the runtime is not installed,
    AccuracyFailed when the engine does not reproduce the reference masks.
    """
    bundle = read_bundle(Path(path))
    chosen = bundle.variant(variant)
    segmenter = Segmenter(engine_of(bundle, chosen, {"threads": threads}), bundle.spec)
    try:
        if check:
            require_references(bundle, chosen, segmenter)
        elif check is None:
            require_elsewhere(bundle, chosen, segmenter)
    except BaseException:
        segmenter.close()
        raise
    return segmenter
