"""A bundle, opened: frames of any size in, masks of that size out; wrong frames and wrong machines are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeseg
from edgeseg.bundle import Bundle, read_bundle, write_bundle
from edgeseg.data import load_dataset, read
from edgeseg.data.prepare import to_size
from edgeseg.errors import AccuracyFailed, BadInput, BundleError
from edgeseg.evaluation import evaluate
from edgeseg.selfcheck import check_references, same_place
from edgeseg.types import LOGITS
from tests.quantize import making
from tests.reference import confusion, iou_and_dice


def written(bundle: Bundle, folder: Path) -> Path:
    return write_bundle(bundle, folder / "changed.edgeseg")


def test_a_frame_of_any_size_gives_a_mask_of_that_size(built: Path) -> None:
    frame = making.frames(1, (75, 120))[0]
    with edgeseg.open(built) as segment:
        mask = segment(frame)
        assert mask.shape == (75, 120)
        assert mask.dtype == np.uint8
        small = cv2.resize(frame, (64, 48), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(segment.native(frame), segment(small))
        np.testing.assert_array_equal(mask, to_size(segment(small), (75, 120)))


def test_the_mask_is_the_argmax_of_the_networks_scores(built: Path) -> None:
    """From the frame to the scores by hand: order of channels, scale, mean, deviation."""
    frame = making.frames(1, (48, 64))[0]
    image = (frame[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.25
    from edgeseg.backends.onnxruntime import inference_session

    session = inference_session(making.plain_network(), threads=1)
    (scores,) = session.run(None, {"x": np.ascontiguousarray(image.transpose(2, 0, 1)[None])})
    with edgeseg.open(built, variant="onnxruntime-fp32") as segment:
        assert np.mean(segment(frame) == scores[0].argmax(0)) > 0.999
    graph = read_bundle(built).files["fp32.onnx"]
    ours = making.tensors_of(graph, [LOGITS], frame[None])[LOGITS]
    np.testing.assert_allclose(ours, scores, atol=1e-3)


@pytest.mark.parametrize(
    ("frame", "came"),
    [
        (np.zeros((48, 64), np.uint8), r"uint8 \(48, 64\)"),
        (np.zeros((48, 64, 4), np.uint8), r"\(48, 64, 4\)"),
        (np.zeros((1, 48, 64, 3), np.uint8), r"\(1, 48, 64, 3\)"),
        (np.zeros((48, 64, 3), np.float32), "float32"),
        ([[[0, 0, 0]]], "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_frame_is_refused(built: Path, frame: object, came: str) -> None:
    with edgeseg.open(built) as segment, pytest.raises(BadInput, match=came):
        segment(frame)  # type: ignore[arg-type]


def test_an_empty_frame_is_refused(built: Path) -> None:
    with edgeseg.open(built) as segment, pytest.raises(BadInput, match=r"\(0, 64, 3\)"):
        segment(np.zeros((0, 64, 3), np.uint8))


def test_an_unknown_variant_is_refused(built: Path) -> None:
    with pytest.raises(BundleError, match="onnxruntime-int8"):
        edgeseg.open(built, variant="tensorrt-int8")


def test_on_the_machine_of_the_build_nothing_is_checked(built: Path) -> None:
    bundle = read_bundle(built)
    assert all(same_place(bundle, variant) for variant in bundle.variants)
    elsewhere = replace(bundle, created={"place": {"onnxruntime": {"cpu": "another", "onnxruntime": "1.0"}}})
    assert not same_place(elsewhere, elsewhere.variants[0])
    others: list[dict[str, object]] = [{}, {"place": "here"}, {"place": {}}]
    for created in others:
        assert not same_place(replace(bundle, created=created), bundle.variants[0])


def test_elsewhere_the_references_are_checked_first(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    moved = replace(bundle, created={})
    with edgeseg.open(written(moved, tmp_path)) as segment:  # reproduces them
        variant = bundle.variant()
        assert check_references(bundle, variant, segment).overall == 1.0
    wrong = tuple(
        replace(r, mask=255 - r.mask, masks={name: (mask + 1) % 10 for name, mask in r.masks.items()})
        for r in (replace(r, mask=np.full_like(r.mask, 246)) for r in bundle.references)
    )
    other = replace(moved, references=wrong)
    path = written(other, tmp_path)
    with pytest.raises(AccuracyFailed, match="reference masks") as caught:
        edgeseg.open(path)
    assert caught.value.exit_code == 1
    assert "onnxruntime-" in str(caught.value)
    edgeseg.open(path, check=False).close()  # unless told not to


def test_checking_can_be_asked_for(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    wrong = tuple(
        replace(r, masks={name: (mask + 1) % 10 for name, mask in r.masks.items()}) for r in bundle.references
    )
    path = written(replace(bundle, references=wrong), tmp_path)
    edgeseg.open(path).close()  # the same machine: by default it is not
    with pytest.raises(AccuracyFailed):
        edgeseg.open(path, check=True)


def test_evaluate_counts_as_slow_loops_do(built: Path, street: Path) -> None:
    document = evaluate(built, street / "dataset.toml", split="val")
    samples = list(read(load_dataset(street / "dataset.toml").split("val")))
    predictions, labels = [], []
    with edgeseg.open(built) as segment:
        for sample in samples:
            assert sample.label is not None
            predictions.append(to_size(segment.native(sample.pixels), (sample.label.shape[0], sample.label.shape[1])))
            labels.append(sample.label)
    scores = iou_and_dice(predictions, labels, 10, 255)
    iou = list(document["iou"].values())
    assert iou == pytest.approx([None if s is None else s[0] for s in scores])
    present = [s for s in scores if s is not None]
    assert document["miou"] == pytest.approx(sum(s[0] for s in present) / len(present))
    assert document["dice"] == pytest.approx(sum(s[1] for s in present) / len(present))
    matrix = sum(np.array(confusion(p, t, 10, 255)) for p, t in zip(predictions, labels, strict=True))
    assert document["pixel_accuracy"] == pytest.approx(np.trace(matrix) / np.sum(matrix))
    assert document["frames"] == 4
