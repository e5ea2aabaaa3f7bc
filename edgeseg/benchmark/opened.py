"""A bundle's engine that is open for measuring, with the frames to measure it on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeseg.backends import Engine, Session, open_engine
from edgeseg.backends.base import threads_allowed
from edgeseg.benchmark.scenarios import Clock, Work
from edgeseg.bundle import Bundle, Variant, read_bundle
from edgeseg.data import fit
from edgeseg.data.prepare import to_size
from edgeseg.errors import BundleError
from edgeseg.evaluation import identity
from edgeseg.segmenter import check_frame, engine_of
from edgeseg.selfcheck import gpu_of, require_elsewhere
from edgeseg.types import Frames, InputSpec, Masks, Pixels


class Runs(Protocol):
    """What is measured: backends.Session, or what stands in for one."""

    batch: int

    def run(self, frames: Frames, out: Masks | None = None) -> Masks: ...


@dataclass(slots=True)
class Opened:
    """An open engine. `frames`: uint8 (H, W, 3) of any size, in the order of colours that `spec` names."""

    head: dict[str, Any]  # of its document
    session: Runs
    spec: InputSpec
    frames: Sequence[Pixels]
    threads: int  # that the engine uses
    again: Callable[[int], Session] | None = None  # opens it once more, with so many threads; None: it must not be
    engine: Engine | None = None
    bundle: Bundle | None = None
    gpu: str | None = None  # that the engine runs on
    prepared: list[Frames] = field(init=False)  # uint8 (1, H, W, 3) of the network's size

    def __post_init__(self) -> None:
        self.prepared = [fit(frame, self.spec.size, self.spec.resize)[None] for frame in self.frames]

    def works(self, count: int = 1, batch: int | None = None, session: Runs | None = None) -> tuple[Work, Work]:
        """The work of a query of `count` frames: of the engine alone on frames of its size, and from frame to mask.

        `batch`: how many frames a run gets of an engine that takes any number, by default all. Query k is of the frames
        k, k + s, …: with several streams each is at another place.
        """
        running = session or self.session
        total = len(self.frames)
        size = self.session.batch or min(batch or count, count)
        step = max(1, total // count)
        queries = [[(k + j * step) % total for j in range(count)] for k in range(total)]
        stacks = [[_stacked(self.prepared, part, size) for part in _parts(query, size)] for query in queries]

        def engine(k: int) -> None:
            for stack in stacks[k % total]:
                running.run(stack)

        buffer = np.empty((size, *self.spec.size, 3), np.uint8)

        def whole(k: int) -> None:
            for part in _parts(queries[k % total], size):
                frames = [self.frames[i] for i in part]
                if size == 1:
                    check_frame(frames[0])
                    given = fit(frames[0], self.spec.size, self.spec.resize)[None]
                else:
                    given = buffer
                    for place, frame in enumerate(frames):
                        check_frame(frame)
                        fit(frame, self.spec.size, self.spec.resize, out=buffer[place])
                masks = running.run(given)
                for mask, frame in zip(masks, frames, strict=False):
                    to_size(mask, (frame.shape[0], frame.shape[1]))

        return engine, whole


def _parts(query: Sequence[int], size: int) -> Iterator[list[int]]:
    left = iter(query)
    while part := list(islice(left, size)):
        yield part


def _stacked(prepared: Sequence[Frames], part: Sequence[int], size: int) -> Frames:
    """A batch; a last one that is too short is filled up with its last frame, since engines take whole batches."""
    if size == 1:
        return prepared[part[0]]
    filled = [*part, *[part[-1]] * (size - len(part))]
    return np.concatenate([prepared[i] for i in filled])


def open_all(
    paths: Sequence[str | Path],
    stack: ExitStack,
    *,
    frames: Sequence[Pixels],
    variant: str | None,
    threads: int,
    clock: Clock,
) -> list[Opened]:
    """Open every bundle's engine, time the cold start, and check its masks where that is due.

    `frames` uint8 (H, W, 3), BGR; without them the bundle's own reference frames are used. Never zeros.
    """
    return [_open(Path(path), stack, frames=frames, variant=variant, threads=threads, clock=clock) for path in paths]


def _open(
    path: Path, stack: ExitStack, *, frames: Sequence[Pixels], variant: str | None, threads: int, clock: Clock
) -> Opened:
    bundle = read_bundle(path)
    chosen = bundle.variant(variant)
    engine = engine_of(bundle, chosen, {"threads": threads})
    start = clock()
    session = stack.enter_context(open_engine(engine))
    open_ms = (clock() - start) / 1e6
    rgb = bundle.spec.input.frame == "rgb"
    given = [_flipped(frame) if rgb else frame for frame in frames] or [r.frame for r in bundle.references]
    if not given:
        raise BundleError(f"{path} has no reference frames to time with; give frames with --data")
    start = clock()
    check_frame(given[0])
    mask = session.run(fit(given[0], bundle.spec.input.size, bundle.spec.input.resize)[None])[0]
    to_size(mask, (given[0].shape[0], given[0].shape[1]))
    first_ms = (clock() - start) / 1e6
    require_elsewhere(bundle, chosen, session)
    return Opened(
        head=_head(path, bundle, chosen, open_ms, first_ms)
        | {"frames_digest": frames_digest([_flipped(frame) for frame in given] if rgb else given)},
        session=session,
        spec=bundle.spec.input,
        frames=given,
        threads=threads or int(engine.settings.get("threads", 0)) or threads_allowed(),
        again=_again(bundle, chosen) if chosen.backend in ("onnxruntime", "openvino") else None,
        engine=engine,
        bundle=bundle,
        gpu=gpu_of(chosen.backend),
    )


def _again(bundle: Bundle, chosen: Variant) -> Callable[[int], Session]:
    return lambda threads: open_engine(engine_of(bundle, chosen, {"threads": threads}))


def _head(path: Path, bundle: Bundle, chosen: Variant, open_ms: float, first_ms: float) -> dict[str, Any]:
    engine = engine_of(bundle, chosen)
    return {
        "schema": "edgeseg.bench/2",
        "bundle": bundle.spec.name,
        "path": str(path),
        "graph": identity(engine),
        "variant": chosen.name,
        "backend": chosen.backend,
        "precision": chosen.precision,
        "settings": dict(chosen.settings),
        "size_mb": sum(map(len, engine.files.values())) / 1e6,
        "cold_ms": {"open": open_ms, "first_frame": first_ms},
    }


def frames_digest(frames: Sequence[Pixels]) -> str:
    """A hash of frames uint8 (H, W, 3), their sizes and their order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode())
        digest.update(np.ascontiguousarray(frame).tobytes())
    return digest.hexdigest()


def _flipped(frame: Pixels) -> Pixels:
    return np.ascontiguousarray(frame[..., ::-1])
