"""One worker's part of an evaluation: an engine of its own, frames in, counts out. The same for one and for many."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgeseg.backends.base import Value
from edgeseg.bundle import Bundle
from edgeseg.data import Skipped, Split
from edgeseg.data.reader import read_sample
from edgeseg.errors import DatasetError, ModelError
from edgeseg.evaluation.classes import Matching
from edgeseg.measure.counts import Counts, FrameCounts, frame_counts, gathered
from edgeseg.segmenter import Segmenter, engine_of
from edgeseg.selfcheck import place_now, require_elsewhere
from edgeseg.types import Mask, Pixels


@dataclass(frozen=True, slots=True)
class Work:
    """All that a worker needs. It travels to other processes and machines; the frames' files do not."""

    bundle: Bundle
    variant: str
    split: Split
    matching: Matching
    ignore_index: int | None
    threads: int  # of the engine; 0 for all that the process may use


@dataclass(frozen=True, slots=True)
class Part:
    """What came of some frames, and where."""

    counts: Counts
    skipped: tuple[tuple[int, Skipped], ...]  # with the frame's number in the split
    host: str
    process: int
    threads: int
    place: Mapping[str, Value]  # what masks may depend on besides the engine's files

    @property
    def frames(self) -> int:
        """How many were asked for."""
        return len(self.counts.frames) + len(self.skipped)


class Worker:
    """An opened engine that counts; `opened` makes one."""

    def __init__(self, work: Work, segment: Segmenter) -> None:
        self._work, self._segment = work, segment
        self._place = place_now(work.bundle.variant(work.variant).backend)
        table = work.matching.table
        # Beyond the model's own classes nothing is expected; 255 there would be refused, not scored.
        self._table = np.array([*table, *[255] * (256 - len(table))], np.uint8) if table else None

    def count(self, indices: Sequence[int]) -> Part:
        """The counts of these frames of the split; those that cannot be used are named. Raises ModelError."""
        work = self._work
        frames: list[int] = []
        seen: list[FrameCounts] = []
        skipped: list[tuple[int, Skipped]] = []
        for k in indices:
            try:
                sample = read_sample(work.split, k, work.bundle.spec.input.frame)
                if sample.label is None:
                    raise DatasetError("it has no label")
            except DatasetError as error:
                skipped.append((k, Skipped(work.split.names[k], str(error))))
                continue
            names, label = work.matching.names, sample.label
            found = frame_counts(
                self._mask(sample.pixels), label, len(names), work.ignore_index, none=work.matching.none
            )
            frames.append(k)
            seen.append(found)
        counts = gathered(frames, seen, len(work.matching.names))
        return Part(counts, tuple(skipped), platform.node(), os.getpid(), work.threads, self._place)

    def _mask(self, pixels: Pixels) -> Mask:
        mask = self._segment.native(pixels)
        if self._table is None:
            return mask
        known = len(self._work.matching.table)
        if (highest := int(mask.max(initial=0))) >= known:
            raise ModelError(f"The network predicts class {highest}, but its spec names {known} classes.")
        mapped: Mask = self._table[mask]
        return mapped


@contextmanager
def opened(work: Work) -> Iterator[Worker]:
    """A worker with its engine open, checked against the bundle's references where this is another place."""
    variant = work.bundle.variant(work.variant)
    with Segmenter(engine_of(work.bundle, variant, {"threads": work.threads}), work.bundle.spec) as segment:
        require_elsewhere(work.bundle, variant, segment)
        yield Worker(work, segment)


def chunks(count: int, workers: int) -> list[list[int]]:
    """The numbers 0 to count - 1 in runs, several a worker so that none waits long for the slowest."""
    size = min(32, max(1, -(-count // (8 * workers))))
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]
