"""Which frames are looked at: many for masks, a few for layers, and some that follow one another for flicker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from edgeseg.bundle import Bundle
from edgeseg.data import Dataset, Reading, fit, pick, read
from edgeseg.errors import BadInput
from edgeseg.runtime.sources import SourceBroken, open_source, parse
from edgeseg.runtime.values import Grab
from edgeseg.types import Frames, ModelSpec, Pixels, Sample

CONSECUTIVE = 32  # frames of a video or a sequence, at most


@dataclass(frozen=True, slots=True)
class Given:
    """What is looked at. `close`: the few frames for layers, at the network's size. `sequence`: those in a row."""

    samples: Iterable[Sample]
    count: int
    close: tuple[Frames, ...]
    sequence: Reading | None = None
    digest: str | None = None


def frames_to_see(opened: Bundle, dataset: Dataset | None, split: str, count: int, close: int) -> Given:
    """At most `count` frames of a split, or of the bundle, and `close` of them. Raises DatasetError, BadInput."""
    size, resize = opened.spec.input.size, opened.spec.input.resize
    if dataset is None:
        if not opened.references:
            raise BadInput("the bundle has no reference frames: say --data DATASET.toml (or a folder of images)")
        references = opened.references[:count]
        samples = [Sample(one.name, one.frame) for one in references]
        return Given(samples, len(samples), tuple(one.frame[None] for one in references[:close]))
    chosen = dataset.split(split)
    if not len(chosen):
        raise BadInput(f"split '{split}' of '{dataset.name}' has no frames")
    indices = pick(len(chosen), count)
    # In chance order, so that the frames looked at when time runs out are spread over the split too.
    order = np.random.default_rng(0).permutation(len(indices))
    color = opened.spec.input.frame
    reading = read(chosen, [indices[at] for at in order], color=color)
    few = read(chosen, pick(len(chosen), close), color=color, labels=False)
    return Given(
        reading,
        len(reading),
        tuple(fit(sample.pixels, size, resize)[None] for sample in few),
        read(chosen, range(min(len(chosen), CONSECUTIVE)), color=color, labels=False),
        chosen.digest(indices, labels=True),
    )


def fitted(sequence: Reading | None, spec: ModelSpec) -> Iterator[Pixels]:
    for sample in sequence or ():
        yield fit(sample.pixels, spec.input.size, spec.input.resize)


def video_frames(words: str, spec: ModelSpec) -> Iterator[Pixels]:
    """The first frames of a source, in the network's size and order of colours."""
    try:
        with open_source(parse(words), fps=None, stall_s=5.0, clock=time.monotonic_ns) as source:
            grabbed = iter(lambda: source.read(None), None)
            for one in islice((grab for grab in grabbed if isinstance(grab, Grab)), CONSECUTIVE):
                pixels = one.pixels if spec.input.frame == "bgr" else np.ascontiguousarray(one.pixels[..., ::-1])
                yield fit(pixels, spec.input.size, spec.input.resize)
    except SourceBroken as error:
        raise BadInput(f"the video {words} cannot be read: {error}") from error
