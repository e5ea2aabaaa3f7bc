"""Which frames to calibrate on: every class in them, rare ones first, no two alike, spread over the set.

Evenly spaced frames miss what is rare, and of a video they hold the same scene several times wherever the camera
stands. So frames are looked at first: their labels (or, where there are none, the float network's own masks) are
counted, and small grey pictures of them compared. What was seen is kept in the cache by the frames' digest, so that
another number of frames costs nothing.

The cost is bounded. Of a large set some EXAMINED frames, evenly spaced, are looked at; of each 768 bytes and a number
a class are kept.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeseg import __version__, cache
from edgeseg.data.prepare import fit
from edgeseg.data.reader import read, read_label
from edgeseg.data.splits import Split, pick
from edgeseg.errors import BadInput, DatasetError, need
from edgeseg.types import Mask, ModelSpec, Pixels

EXAMINED = 400  # frames that are looked at, at most (twice the number wanted, if that is more)
PREDICTED = 2  # without labels: masks for each frame that is wanted; a network costs more than a file
COUNTED = 1 << 18  # pixels of a label that are counted, at most, on a grid: things of 3 x 3 pixels are met up to 4 MP
SMALL = (24, 32)  # height, width of the pictures that are compared
# Mean difference of such pictures in grey levels of 255. Of CamVid's training frames those of a standing car, a second
# apart, differ by 2 to 5 (21 pairs of 364, 90 % of their labels the same), half of all such pairs by more than 20, and
# 999 of 1000 pairs of any two frames by more than 5. Strong JPEG compression makes 0.4, noise of 6 levels 1, 3 % more
# light 2 to 3.
ALIKE = 5.0
RARE_SHARE, RARE_FRAMES = 0.001, 3  # less than this of the pixels, or fewer frames: too little to trust a range to

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coverage:
    """One class in the frames that were looked at, and in those chosen. Shares are of pixels, 0 to 1."""

    name: str
    share_seen: float
    frames_seen: int
    share: float
    frames: int  # of those chosen, how many show it

    @property
    def rare(self) -> bool:
        """Whether what was chosen shows too little of it, but some."""
        return self.frames > 0 and (self.share < RARE_SHARE or self.frames < RARE_FRAMES)


@dataclass(frozen=True, slots=True)
class Picked:
    """Frames chosen, and what is known of them."""

    indices: tuple[int, ...]  # in the split, ascending
    coverage: tuple[Coverage, ...]  # one a class; empty where neither labels nor masks told
    dropped: tuple[int, ...]  # near-duplicates that were passed over
    notes: tuple[str, ...]  # what a person should know, a sentence each
    examined: int
    known_by: Literal["labels", "predictions"] | None

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes that no chosen frame shows."""
        return tuple(row.name for row in self.coverage if not row.frames)

    def to_json(self) -> dict[str, Any]:
        """A plain dict: `frames`, `examined`, `dropped` (numbers), `known_by`, `classes` (rows), `notes`."""
        return {
            "frames": len(self.indices),
            "examined": self.examined,
            "dropped": len(self.dropped),
            "known_by": self.known_by,
            "classes": [asdict(row) for row in self.coverage],
            "notes": list(self.notes),
        }


@dataclass(slots=True)
class _Looked:
    """Of each frame that can be read: its index, its small picture, and its pixels by class (-1: not known)."""

    indices: list[int]
    small: NDArray[np.uint8]  # (n, 24, 32)
    counts: Integers  # (n, classes)
    unread: list[str]  # names
    unlabelled: list[str]


def calibration_frames(
    split: Split,
    count: int,
    *,
    spec: ModelSpec,
    predicted: Callable[[Pixels], Mask] | None = None,
    model: str = "",
    among: Sequence[int] | None = None,
    use_cache: bool = True,
) -> Picked:
    """`count` frames of the split to calibrate on (fewer only where there are no more), the same on every call.

    Every class that occurs in the frames looked at is in those chosen, as far as `count` allows, in a frame that shows
    at least as much of it as most that show it do; rarest first, and each class several times where `count` is large.
    The others are spread over the set. Near-duplicates are taken only where nothing else is left.

    Classes are told by the labels, or without labels by `predicted`: a frame uint8 (H, W, 3), in spec.input's order and
    size, to the class map of the float network, whose hash is `model`. `among`: indices to choose from, by default all.
    Raises BadInput for a count below 1, DatasetError where no frame can be read.
    """
    if count < 1:
        raise BadInput(f"calibration frames: a number of 1 or more was expected, got {count}")
    possible = list(range(len(split))) if among is None else sorted(set(split.check(among)))
    examined = [possible[k] for k in pick(len(possible), max(EXAMINED, 2 * count))]
    looked = _looked(split, examined, use_cache=use_cache)
    if not looked.indices:
        raise DatasetError(f"none of the {len(examined)} frames examined of split '{split.name}' can be read")
    twins = _twins(looked)
    fresh = [k for k in range(len(looked.indices)) if k not in twins]
    known_by: Literal["labels", "predictions"] | None = "labels" if split.has_labels else None
    if not split.has_labels and predicted is not None:
        known_by = "predictions"
        shown = [fresh[k] for k in pick(len(fresh), PREDICTED * count)]
        looked.counts = _predicted(split, looked, shown, spec, predicted, model, use_cache=use_cache)
    chosen = _choose(looked, fresh, count)
    if len(chosen) < count:
        chosen = _spread(looked.indices, [*fresh, *twins], chosen, count)
    coverage = _coverage(looked.counts, sorted(chosen), spec) if known_by else ()
    dropped = tuple(looked.indices[k] for k in sorted(set(twins) - set(chosen)))
    indices = tuple(sorted(looked.indices[k] for k in chosen))
    notes = _notes(split, looked, coverage, len(possible), len(dropped), len(set(twins) & set(chosen)))
    return Picked(indices, coverage, dropped, notes, len(examined), known_by)


def _choose(looked: _Looked, fresh: Sequence[int], count: int) -> list[int]:
    """Every class once, rarest first; up to half of the frames for more of all; the rest far from those chosen."""
    plenty = _plenty(looked.counts)
    able = np.array(fresh)
    positions = np.array(looked.indices)
    chosen: list[int] = []
    for c in np.argsort(plenty[able].sum(axis=0), kind="stable").tolist():
        if len(chosen) < count and plenty[able, c].any() and not plenty[chosen, c].any():
            show = able[plenty[able, c]]
            serves = (plenty[show] & ~plenty[chosen].any(axis=0)).sum(axis=1)  # classes that none shows yet
            show = show[serves == serves.max()]
            away = np.abs(positions[show][:, None] - positions[chosen]).min(axis=1, initial=len(positions))
            chosen.append(int(show[np.argmax(away)]))
    # The sum over classes of the logarithm of their pixels: twice as many count the same for a rare class as for a
    # common one, and less the more there are. Taking the frame that adds most comes near the best sum (Nemhauser,
    # Wolsey and Fisher, "An analysis of approximations for maximizing submodular set functions", 1978).
    pixels = np.maximum(looked.counts, 0).astype(np.float64)
    pixels = pixels[:, pixels.any(axis=0)]
    pixels /= np.maximum(pixels.mean(axis=0), 1e-12)
    so_far = pixels[chosen].sum(axis=0) + 1.0
    while len(chosen) < count // 2 and pixels.size:
        gain = np.log1p(pixels[able] / so_far).sum(axis=1)
        gain[np.isin(able, chosen)] = -1.0
        best = int(np.argmax(gain))
        if gain[best] <= 0:
            break
        chosen.append(int(able[best]))
        so_far += pixels[able[best]]
    return _spread(looked.indices, fresh, chosen, count)


def _plenty(counts: Integers) -> NDArray[np.bool_]:
    """Which frames show at least as much of a class as half of those that show it: bool (n, classes)."""
    found = np.zeros(counts.shape, np.bool_)
    for c, column in enumerate(counts.T):
        held = column[column > 0]
        if held.size:
            found[:, c] = column >= np.median(held)
    return found


def _spread(indices: Sequence[int], able: Sequence[int], chosen: Sequence[int], count: int) -> list[int]:
    """Those chosen and others, each the farthest in the set from all before it; the first of equals."""
    if not chosen:
        return [able[k] for k in pick(len(able), count)]
    positions = np.array(indices)
    rest = np.array([k for k in able if k not in set(chosen)], np.int64)
    found = list(chosen)
    away = np.abs(positions[rest][:, None] - positions[found]).min(axis=1, initial=len(positions) * 1000)
    while len(found) < count and away.size and away.max() > 0:
        best = int(np.argmax(away))
        found.append(int(rest[best]))
        away = np.minimum(away, np.abs(positions[rest] - positions[rest[best]]))
    return found


def _twins(looked: _Looked) -> dict[int, int]:
    """Frames that look like an earlier one that is kept, and which. One that shows another class is no twin."""
    small = looked.small.reshape(len(looked.indices), -1).astype(np.float32)
    plenty = _plenty(looked.counts)
    kept: list[int] = []
    twins: dict[int, int] = {}
    for k, picture in enumerate(small):
        if kept:
            differences = np.abs(small[kept] - picture).mean(axis=1)
            nearest = kept[int(np.argmin(differences))]
            if differences.min() < ALIKE and not (plenty[k] & (looked.counts[nearest] == 0)).any():
                twins[k] = nearest
                continue
        kept.append(k)
    return twins


def _coverage(counts: Integers, chosen: Sequence[int], spec: ModelSpec) -> tuple[Coverage, ...]:
    known = np.maximum(counts, 0)
    total, part = known.sum(axis=0), known[list(chosen)].sum(axis=0)
    names = spec.output.classes
    classes = len(total)
    if not (names and len(names) == classes):
        names = tuple(f"class {c}" for c in range(classes))
    return tuple(
        Coverage(
            names[c],
            float(total[c] / max(1, total.sum())),
            int((known[:, c] > 0).sum()),
            float(part[c] / max(1, part.sum())),
            int((known[list(chosen), c] > 0).sum()),
        )
        for c in range(classes)
    )


def _notes(
    split: Split, looked: _Looked, coverage: Sequence[Coverage], possible: int, dropped: int, alike: int
) -> tuple[str, ...]:
    notes = []
    seen = len(looked.indices) + len(looked.unread)
    if seen < possible:
        notes.append(f"looked at {seen} of {possible} frames of '{split.name}', evenly spaced")
    if dropped:
        notes.append(f"passed over {dropped} frames that look like others")
    if alike:
        notes.append(f"{alike} of the chosen frames look like others: there are not enough that differ. Add frames")
    if missing := [row.name for row in coverage if not row.frames and not row.frames_seen]:
        notes.append(f"no frame shows {', '.join(missing)}: ranges are taken without them. Add frames that do")
    if left := [row.name for row in coverage if not row.frames and row.frames_seen]:
        notes.append(f"too few frames to show {', '.join(left)}, though others do. Calibrate on more")
    if rare := [row for row in coverage if row.rare]:
        shown = ", ".join(f"{row.name} ({100 * row.share:.2g} % of pixels, {row.frames} frames)" for row in rare)
        notes.append(f"rare in what was chosen: {shown}")
    if looked.unread:
        notes.append(f"{len(looked.unread)} frames cannot be read, such as {looked.unread[0]}")
    if looked.unlabelled:
        notes.append(f"the labels of {len(looked.unlabelled)} frames cannot be read, such as {looked.unlabelled[0]}")
    return tuple(notes)


def _looked(split: Split, examined: Sequence[int], *, use_cache: bool) -> _Looked:
    key = cache.key("looked", __version__, SMALL, COUNTED, split.digest(examined, labels=split.has_labels))
    stored = cache.load("sample", key) if use_cache else None
    if stored is not None:
        with np.load(io.BytesIO(stored)) as arrays:
            names = (arrays["unread"].tolist(), arrays["unlabelled"].tolist())
            return _Looked(arrays["indices"].tolist(), arrays["small"], arrays["counts"], *names)
    classes = split.rule.classes if split.has_labels else 0
    indices, small, counts = [], [], []
    unread, unlabelled = [], []
    for k in examined:
        try:
            (sample,) = read(split, [k], labels=split.street is not None)
        except DatasetError:
            unread.append(split.names[k])
            continue
        label = sample.label
        if split.labels is not None:
            try:
                label = read_label(split.labels[k], split.rule)
            except DatasetError:
                unlabelled.append(split.names[k])
        indices.append(k)
        small.append(_small(sample.pixels))
        counts.append(_count(label, classes) if label is not None else np.full(classes, -1, np.int64))
    found = _Looked(
        indices,
        np.array(small, np.uint8).reshape(len(indices), *SMALL),
        np.array(counts, np.int64).reshape(len(indices), classes),
        unread,
        unlabelled,
    )
    if use_cache:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            indices=found.indices,
            small=found.small,
            counts=found.counts,
            unread=np.array(unread, np.str_),
            unlabelled=np.array(unlabelled, np.str_),
        )
        cache.store("sample", key, buffer.getvalue())
    return found


def _predicted(
    split: Split,
    looked: _Looked,
    shown: Sequence[int],
    spec: ModelSpec,
    predicted: Callable[[Pixels], Mask],
    model: str,
    *,
    use_cache: bool,
) -> Integers:
    chosen = [looked.indices[k] for k in shown]
    key = cache.key("predicted", __version__, model, repr(spec.input), split.digest(chosen), len(spec.output.classes))
    stored = cache.load("sample", key) if use_cache and model else None
    if stored is not None:
        rows: Integers = np.load(io.BytesIO(stored))
    else:
        whole = []
        for k in chosen:
            (sample,) = read(split, [k], color=spec.input.frame, labels=False)
            whole.append(_count(predicted(fit(sample.pixels, spec.input.size, spec.input.resize)), 256))
        rows = np.array(whole, np.int64)
        occurring = int(np.flatnonzero(rows.any(axis=0)).max()) + 1
        rows = rows[:, : max(len(spec.output.classes), occurring)]
        if use_cache and model:
            buffer = io.BytesIO()
            np.save(buffer, rows)
            cache.store("sample", key, buffer.getvalue())
    counts = np.full((len(looked.indices), rows.shape[1]), -1, np.int64)
    counts[list(shown)] = rows
    return counts


def _small(pixels: Pixels) -> NDArray[np.uint8]:
    """Grey, uint8 (24, 32): of each cell the mean, so that noise and single pixels do not count."""
    cv2 = need("cv2", extra="run", why="comparing frames")
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    small: NDArray[np.uint8] = cv2.resize(grey, SMALL[::-1], interpolation=cv2.INTER_AREA)
    return small


def _count(mask: Mask, classes: int) -> Integers:
    """Pixels of each class, int64 (classes,), on a grid of at most COUNTED points; other values do not count."""
    step = int(np.ceil(np.sqrt(max(1.0, mask.size / COUNTED))))
    counts: Integers = np.bincount(mask[step // 2 :: step, step // 2 :: step].ravel(), minlength=256)
    return counts[:classes].astype(np.int64)
