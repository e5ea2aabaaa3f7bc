"""The calibration set of a build: other preprocessing without another export, frames in turn, and the report's rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import calibrate, load_recipe
from edgeseg import export, quantize
from edgeseg.backends.onnxruntime import probe
from edgeseg.bundle import FP32, read_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset, read
from edgeseg.errors import ModelError
from edgeseg.intake import Onnx, Torch, load
from edgeseg.measure.mismatch import Look
from edgeseg.pipeline import sampling
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.preprocessing import with_input
from edgeseg.pipeline.sampling import (
    calibration_notes,
    in_turn,
    preprocessing_checked,
    sampled,
    settled,
    watched,
)
from edgeseg.spec import read_spec, spec_for
from edgeseg.types import LOGITS, MASK, InputSpec, OnnxModel
from tests.quantize import making

STREET = Path(__file__).resolve().parents[1] / "examples" / "street"


# other preprocessing


@pytest.mark.parametrize("frame", ["rgb", "bgr"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_an_edited_graph_is_what_an_export_would_give(street: Path, color: Any, frame: Any) -> None:
    spec = read_spec(street / "net.toml")
    plain = export.from_onnx(Onnx((street / "net.onnx").read_bytes()), spec).graph
    own = replace(spec.input, color=color, frame=frame)
    graph = export.fuse(plain, replace(spec, input=own)).graph
    frames = [image[None] for image in making.frames(3, own.size)]
    others = [
        own,
        replace(own, color="bgr" if color == "rgb" else "rgb"),
        replace(own, scale=1.0, mean=(123.7, 116.8, 103.9)),
        replace(own, color="rgb", frame="bgr", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    ]
    for other in others:
        wanted = export.fuse(plain, replace(spec, input=other)).graph
        for found, expected in zip(
            probe(with_input(graph, own, other), [LOGITS, MASK], frames),
            probe(wanted, [LOGITS, MASK], frames),
            strict=True,
        ):
            np.testing.assert_allclose(found[LOGITS], expected[LOGITS], rtol=1e-5, atol=1e-5)
            assert np.mean(found[MASK] != expected[MASK]) < 1e-3
    first, last = (list(probe(with_input(graph, own, other), [LOGITS], frames)) for other in (own, others[-1]))
    assert any(not np.allclose(a[LOGITS], b[LOGITS], atol=1e-3) for a, b in zip(first, last, strict=True))


def test_a_graph_of_another_maker_is_refused() -> None:
    model = making.unet()
    with pytest.raises(ModelError, match="no preprocessing under the names edgeseg/factor"):
        with_input(model.graph, model.spec.input, replace(model.spec.input, scale=1.0))
    with pytest.raises(ModelError, match="cannot become one for"):
        with_input(model.graph, model.spec.input, replace(model.spec.input, size=(48, 48)))


@pytest.fixture(scope="module")
def trained() -> OnnxModel:
    """The trained network of the example, made from torch once, for frames of a quarter of the pixels."""
    pytest.importorskip("torch", reason="torch is not installed")
    spec = spec_for(STREET / "unet_street.pt")
    spec = replace(spec, input=replace(spec.input, size=(96, 128), resize="area"))
    model = load(STREET / "unet_street.pt", spec)
    assert isinstance(model, Torch)
    return export.fuse(export.to_onnx(model, spec, quick=True).graph, spec)


def judged(model: OnnxModel, wrong: InputSpec, *, labels: bool) -> tuple[str | None, str]:
    """What is said of the trained network when its spec says `wrong`."""
    dataset = load_dataset(STREET)
    reading = read(dataset.split("train"), [3, 390])
    spec = replace(model.spec, input=wrong)
    if not labels:  # of class names nothing is known, so labels cannot be used
        spec = replace(spec, output=replace(spec.output, classes=()))
    given = OnnxModel(with_input(model.graph, model.spec.input, wrong), spec)
    console = Console()
    found = preprocessing_checked(given, reading, dataset, use_cache=False, console=console)
    assert found is not None
    return found.by, found.better.name if found.better else ""


def test_a_trained_network_finds_wrong_preprocessing_by_its_scores(trained: OnnxModel) -> None:
    right = trained.spec.input
    assert judged(trained, right, labels=False) == ("decisiveness", "")
    assert judged(trained, replace(right, color="bgr"), labels=False) == ("decisiveness", "red and blue swapped")


def test_a_trained_network_finds_wrong_preprocessing_by_labels(trained: OnnxModel) -> None:
    right = trained.spec.input
    by, better = judged(trained, replace(right, mean=(0.0,) * 3, std=(1.0,) * 3), labels=True)
    assert by == "miou"
    assert "ImageNet" in better  # the nearest to its own mean and std


# frames


def test_in_turn_every_beginning_is_spread() -> None:
    assert in_turn([]) == []
    assert in_turn([7]) == [7]
    for count in (2, 5, 16, 37, 64):
        order = in_turn(list(range(count)))
        assert sorted(order) == list(range(count))
    quarter = sorted(in_turn(list(range(64)))[:16])
    assert quarter == list(range(0, 64, 4))


def test_frames_are_chosen_read_and_told(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = load_dataset(street).split("train")
    spec = read_spec(street / "net.toml")
    reading, picked = sampled(split, 6, spec, use_cache=True, console=Console(quiet=False))
    assert sorted(reading.indices) == list(picked.indices)
    assert reading.indices == in_turn(picked.indices)
    assert (reading.labels, reading.color) == (False, spec.input.frame)
    assert len(list(reading)) == 6
    text = capsys.readouterr().err
    assert "6 of 12 frames of 'train'" in text
    assert "by labels" in text
    for note in picked.notes:
        assert note in text


def test_without_labels_the_float_network_tells_classes(built: Path, street: Path, tmp_path: Path) -> None:
    import cv2

    bundle = read_bundle(built)
    fp32 = OnnxModel(bundle.files[FP32], bundle.spec)
    for sample in read(load_dataset(street).split("train"), range(6), labels=False):
        cv2.imwrite(str(tmp_path / f"{sample.name}.png"), sample.pixels)
    (split,) = load_dataset(tmp_path).splits.values()
    console = Console()
    _, picked = sampled(split, 3, bundle.spec, fp32=fp32, use_cache=False, console=console)
    assert picked.known_by == "predictions"
    frames = [frame[None] for frame in prepared(read(split, picked.indices, labels=False), bundle.spec)]
    masks = np.concatenate([inside[MASK] for inside in probe(fp32.graph, [MASK], frames)])
    np.testing.assert_allclose(
        [row.share for row in picked.coverage], np.bincount(masks.ravel(), minlength=len(picked.coverage)) / masks.size
    )
    _, blind = sampled(split, 3, bundle.spec, use_cache=False, console=console)
    assert blind.known_by is None


def test_the_check_is_used_again(built: Path, street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(built)
    fp32 = OnnxModel(bundle.files[FP32], bundle.spec)
    dataset = load_dataset(street)
    reading = read(dataset.split("train"), [0, 5, 9], labels=False)
    runs = []
    look = sampling._look

    def counted(*given: Any) -> Look:
        runs.append(given)
        return look(*given)

    monkeypatch.setattr(sampling, "_look", counted)
    first, second = (preprocessing_checked(fp32, reading, dataset, use_cache=True, console=Console()) for _ in range(2))
    assert first is not None
    assert first == second
    assert len(first.others) + 1 <= len(runs) <= 20
    assert first.by == "miou"


def test_rows_of_the_report(street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = making.unet()
    reading, picked = sampled(load_dataset(street).split("train"), 8, model.spec, use_cache=False, console=Console())
    graph = quantize.Graph(model.graph)
    dialects = [quantize.TENSORRT, quantize.ONNXRUNTIME_X86, quantize.OPENVINO]
    tensors = sorted(set().union(*(quantize.place(graph, dialect).observed for dialect in dialects)))
    snapshots = watched(reading)

    def seen() -> Iterator[dict[str, Any]]:
        yield from probe(model.graph, tensors, (frame[None] for frame in prepared(reading, model.spec)))

    table = calibrate(seen(), load_recipe("minmax"), model="m", data="d", watch=snapshots)
    converged = settled(snapshots, table, dialects, Console(quiet=False))
    assert [mark for mark, _ in converged.worst] == [2, 4, 6]
    assert converged.sentence in capsys.readouterr().err
    rows = calibration_notes(picked, None, converged)
    assert list(rows) == ["coverage", "convergence", "mismatch"]
    assert rows["mismatch"] is None
    json.dumps(rows, allow_nan=False)
