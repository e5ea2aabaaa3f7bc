"""Counts of single frames in a build's document: whose, in which order, and when there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeseg.data import load_dataset, read
from edgeseg.measure.agreement import Agreement
from edgeseg.measure.confusion import confusion
from edgeseg.measure.evaluate import Accuracy, FrameCounts, evaluate
from edgeseg.trials import document
from edgeseg.trials.document import evaluation_row, per_frame_row
from edgeseg.types import Mask, Pixels, Sample

VIDEO = "[splits.val]\nstreet = { seed = 100, drives = 2, frames = 3, size = [48, 64] }\n"


def samples(labelled: tuple[bool, ...]) -> list[Sample]:
    random = np.random.default_rng(1)
    labels = [random.integers(0, 3, (12, 16)).astype(np.uint8) for _ in labelled]
    return [
        Sample(f"f{k}", random.integers(0, 256, (6, 8, 3)).astype(np.uint8), label if there else None)
        for k, (label, there) in enumerate(zip(labels, labelled, strict=True))
    ]


def first(pixels: Pixels) -> Mask:
    mask: Mask = (pixels[..., 0] % 3).astype(np.uint8)
    return mask


def second(pixels: Pixels) -> Mask:
    mask: Mask = (pixels[..., 1] % 3).astype(np.uint8)
    return mask


def test_each_labelled_frame_is_counted_for_each_engine() -> None:
    given = samples((True, False, True))
    found = evaluate({"a": first, "b": second}, given, prepare=lambda p: p, classes=3, ignore_index=None)
    for name, run in (("a", first), ("b", second)):
        kept = found[name].per_frame
        assert kept is not None
        assert kept.names == ("f0", "f2")
        for k, sample in enumerate((given[0], given[2])):
            assert sample.label is not None
            mask = run(sample.pixels).repeat(2, axis=0).repeat(2, axis=1)
            for c in range(3):
                predicted, true = mask == c, sample.label == c
                counts = [(predicted & true).sum(), (predicted & ~true).sum(), (~predicted & true).sum()]
                assert kept.counts[:, k, c].tolist() == counts
        assert kept.counts[0].sum() == np.trace(found[name].matrix)
        assert kept.counts[[0, 2]].sum() == found[name].matrix.sum()
    assert (
        evaluate({"a": first}, samples((False,)), prepare=lambda p: p, classes=3, ignore_index=None)["a"].per_frame
        is None
    )


def made(names: tuple[str, ...], seed: int) -> Accuracy:
    random = np.random.default_rng(seed)
    masks = random.integers(0, 3, (len(names), 2, 8, 8)).astype(np.uint8)
    matrices = [confusion(a, b, 3) for a, b in masks]
    counts = np.array([[m.diagonal(), m.sum(axis=0) - m.diagonal(), m.sum(axis=1) - m.diagonal()] for m in matrices])
    kept = FrameCounts(names, counts.swapaxes(0, 1))
    return Accuracy(np.sum(matrices, axis=0), Agreement(), len(names), len(names), kept)


def test_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset.toml").write_text(VIDEO)
    reading = read(load_dataset(tmp_path / "dataset.toml").split("val"))
    names = tuple(reversed(reading.split.names))  # not in a video's order
    accuracy = {"fp32": made(names, 0), "other": made(names, 1), "int8": made(names, 2)}
    row = per_frame_row(accuracy, reading, "int8")
    assert row is not None
    assert list(row["engines"]) == ["fp32", "int8"]
    assert [name.split("-")[0] for name in row["names"]] == row["sequences"]
    assert row["sequences"] == ["drive0101"] * 3 + ["drive0100"] * 3  # by their first frames
    assert row["names"] == sorted(names[:3]) + sorted(names[3:])
    for name in ("fp32", "int8"):
        for at, key in enumerate(("tp", "fp", "fn")):
            kept = accuracy[name].per_frame
            assert kept is not None
            expected = {frame: counts.tolist() for frame, counts in zip(names, kept.counts[at], strict=True)}
            assert dict(zip(row["names"], row["engines"][name][key], strict=True)) == expected
    assert list(per_frame_row(accuracy, reading, "fp32")["engines"]) == ["fp32"]  # type: ignore[index]

    monkeypatch.setattr(document, "MOST_COUNTS", 2 * 3 * 6 * 3 - 1)
    assert per_frame_row(accuracy, reading, "int8") is None
    assert per_frame_row(accuracy, reading, "fp32") is not None
    without = Accuracy(np.zeros((3, 3), np.int64), Agreement(), 6, 0)
    assert per_frame_row({"fp32": without}, reading, "fp32") is None


def test_the_data_s_digest_is_told(tmp_path: Path) -> None:
    digests = []
    for seed in (100, 101):
        (tmp_path / "dataset.toml").write_text(VIDEO.replace("100", str(seed)))
        reading = read(load_dataset(tmp_path / "dataset.toml").split("val"))
        digests.append(evaluation_row({"fp32": made(("a",), 0)}, reading)["digest"])
    assert digests[0] != digests[1]
