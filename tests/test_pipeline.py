"""The whole run on a tiny network and a rendered street: what comes out, what is used again, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import edgeseg
from calibration import ScaleTable, from_json, load_recipe
from edgeseg import backends
from edgeseg.bundle import read_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset, pick
from edgeseg.data.street import CLASSES, render
from edgeseg.errors import BadInput, DatasetError, ModelError, SpecError
from edgeseg.pipeline import Built, build
from edgeseg.pipeline.calibrate import calibrated
from edgeseg.pipeline.frames import QUICK, frames_for, look_at
from edgeseg.types import InputSpec, ModelSpec, OnnxModel
from tests.quantize import making

ROOT = Path(__file__).resolve().parents[1]
SPEC = ModelSpec("tiny", InputSpec((48, 64)))


def run(folder: Path, **options: Any) -> Built:
    """A quick build with ONNX Runtime alone."""
    options = {"data": folder / "dataset.toml", "backend": "onnxruntime", "quick": True, **options}
    return build(folder / "net.onnx", **options)


def test_fp32(street: Path, tmp_path: Path) -> None:
    made = run(street, out=tmp_path / "o.edgeseg")
    bundle = read_bundle(tmp_path / "o.edgeseg")
    assert made.path == tmp_path / "o.edgeseg"
    assert [variant.name for variant in bundle.variants] == ["onnxruntime-fp32"]
    assert bundle.chosen == made.report["chosen"] == "onnxruntime-fp32"
    assert made.report["calibration"] is None
    assert made.report["classes"] == list(CLASSES)
    assert "scales.json" not in bundle.files
    row = made.report["engines"][0]
    assert row["agreement"] == 1.0
    assert 0 <= row["miou"] <= 1
    assert made.report["evaluation"]["labelled"] == 4


def test_int8(built: Path) -> None:
    bundle = read_bundle(built)
    report = bundle.verdict
    assert {variant.precision for variant in bundle.variants} == {"fp32", "int8"}
    assert report["asked"] == "int8"
    assert report["chosen"] == bundle.chosen
    assert report["reasons"]
    assert report["calibration"]["frames"] == 12
    assert report["calibration"]["split"] == "train"
    assert report["evaluation"]["split"] == "val"
    rows = {row["name"]: row for row in report["engines"]}
    assert rows["onnxruntime-int8"]["agreement"] > 0.9
    assert rows["onnxruntime-int8"]["latency_ms"]["p50"] > 0
    ops = {node.op_type for node in onnx.load_from_string(bundle.graph("onnxruntime-int8")).graph.node}
    assert "QuantizeLinear" in ops
    table = from_json(bundle.files["scales.json"].decode())
    assert table.frames == 12
    assert table.model == report["calibration"]["model"]


@pytest.mark.parametrize("variant", ["onnxruntime-fp32", "onnxruntime-int8"])
def test_an_opened_bundle_gives_its_reference_masks(built: Path, variant: str) -> None:
    bundle = read_bundle(built)
    assert len(bundle.references) == 4
    with edgeseg.open(built, variant=variant) as segment:
        for reference in bundle.references:
            np.testing.assert_array_equal(segment(reference.frame), reference.masks[variant])
    assert len(np.unique(bundle.references[0].mask)) > 2
    assert any((r.mask != r.masks["onnxruntime-int8"]).any() for r in bundle.references)


@pytest.mark.skipif("openvino" not in backends.installed(), reason="openvino is not installed")
def test_all_runtimes_take_part(street: Path) -> None:
    made = run(street, precision="int8", backend=None)
    names = {row["name"] for row in made.report["engines"]}
    assert {"onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8"} <= names
    for row in made.report["engines"]:
        assert row["agreement"] > 0.9, row["name"]
    # what the reasons say of times is what the rows say
    fastest = min(row["latency_ms"]["p50"] for row in made.report["engines"])
    chosen = next(row for row in made.report["engines"] if row["name"] == made.report["chosen"])
    assert chosen["latency_ms"]["p50"] == fastest or any("is out" in reason for reason in made.report["reasons"])


@pytest.mark.skipif("openvino" not in backends.installed(), reason="openvino is not installed")
def test_a_runtime_that_does_not_know_an_operator_is_out_and_the_other_stays(street: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(making.plain_network(inverse=True))
    made = build(tmp_path / "net.onnx", spec=street / "net.toml", quick=True)
    assert made.report["chosen"] == "onnxruntime-fp32"
    (row,) = made.report["rejected"]
    assert row["name"] == "openvino-fp32"
    assert "cannot read the graph" in row["why"]


AGAIN = """
import sys
from edgeseg.console import Console
from edgeseg.pipeline import build
console = Console(quiet=False)
build({model!r}, data={data!r}, precision="int8", backend="onnxruntime", quick=True, console=console)
print("torch" in sys.modules)
"""


def test_a_second_build_uses_again_what_has_not_changed(
    street: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, on the cache of the build that made the bundle."""
    assert built.is_file()
    monkeypatch.setenv("EDGESEG_CACHE", str(street / "cache"))
    code = AGAIN.format(model=str(street / "net.onnx"), data=str(street / "dataset.toml"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    lines = {line.split()[0]: line for line in done.stderr.splitlines() if line}
    assert "reused" in lines["export"]
    assert "reused" in lines["calibrate"]
    assert done.stdout == "False\n"


def test_no_cache_computes_everything(
    street: Path, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the same cache, which the test above uses again."""
    assert built.is_file()
    monkeypatch.setenv("EDGESEG_CACHE", str(street / "cache"))
    run(street, precision="int8", use_cache=False, console=Console(quiet=False))
    captured = capsys.readouterr()
    assert "calibrate" in captured.err
    assert "reused" not in captured.err
    assert captured.out == ""


def test_a_quiet_console_is_silent(street: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(street, precision="int8", console=Console(quiet=True))
    assert capfd.readouterr() == ("", "")


def test_int8_without_frames_is_refused(street: Path) -> None:
    with pytest.raises(BadInput, match="real frames") as caught:
        build(street / "net.onnx", precision="int8", quick=True)
    assert caught.value.exit_code == 2


def test_fp32_without_frames(street: Path) -> None:
    made = build(street / "net.onnx", quick=True, backend="onnxruntime")
    assert made.report["evaluation"] is None
    assert made.report["engines"][0]["miou"] is None
    assert len(made.bundle.references) == 4  # rendered: there is something to check a device with
    assert made.path is None


def test_a_network_without_int8_says_so(street: Path, tmp_path: Path) -> None:
    net = making.Net(0, (48, 64))
    net.channels["x"] = 3
    net.op("Sigmoid", ["x"], "y", 3)
    info = [onnx.helper.make_tensor_value_info(n, 1, (1, 3, 48, 64)) for n in ("x", "y")]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(net.nodes, "g", info[:1], info[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(proto, tmp_path / "net.onnx")
    (tmp_path / "net.toml").write_text(making.PLAIN_SPEC, encoding="utf-8")
    images(tmp_path, 8)
    with pytest.raises(ModelError, match="no convolution that can run in INT8"):
        run(tmp_path, precision="int8")


def test_unusable_input(street: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="int4"):
        run(street, precision="int4")
    with pytest.raises(BadInput, match="magic"):
        run(street, precision="int8", recipe="magic")
    with pytest.raises(DatasetError, match="no split 'test'"):
        run(street, split="test")
    with pytest.raises((BadInput, SpecError), match=r"nothing\.onnx"):
        build(tmp_path / "nothing.onnx", spec=street / "net.toml")
    with pytest.raises(BadInput, match="there is no backend"):
        run(street, backend="abacus")


def images(folder: Path, count: int, *, labels: bool = False) -> None:
    """frames/*.png of rendered streets and a dataset.toml with the one split "train"."""
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for index in range(count):
        frame, mask = render((48, 64), 1 + index // 2, index)
        cv2.imwrite(str(folder / f"frames/{index:03d}.png"), frame)
        if labels:
            cv2.imwrite(str(folder / f"labels/{index:03d}.png"), mask)
    text = 'name = "files"\n[splits.train]\nimages = "frames"\n'
    if labels:
        text = f'ignore_index = 255\nclasses = {json.dumps(list(CLASSES))}\n{text}labels = "labels"\n'
    (folder / "dataset.toml").write_text(text, encoding="utf-8")


def network_beside(folder: Path) -> None:
    (folder / "net.onnx").write_bytes(making.plain_network())
    (folder / "net.toml").write_text(making.PLAIN_SPEC, encoding="utf-8")


def test_without_labels_int8_that_differs_is_not_handed_over_at_no_loss(tmp_path: Path) -> None:
    """No INT8 network agrees with FP32 in every pixel, so with nothing allowed it must go, and it must be said."""
    network_beside(tmp_path)
    images(tmp_path, 12)
    made = run(tmp_path, precision="int8", max_miou_drop=0.0)
    assert made.report["chosen"] == "onnxruntime-fp32"
    assert made.report["metric"] == "agreement with FP32"
    assert made.report["evaluation"]["labelled"] == 0
    assert any("onnxruntime-int8 is out" in reason and "agreement" in reason for reason in made.report["reasons"])
    assert any("not handed over" in reason for reason in made.report["reasons"])


def test_corrupt_frames_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few of them: also where the first one would have been looked at."""
    network_beside(tmp_path)
    images(tmp_path, 24)
    (tmp_path / "frames/000.png").write_bytes(b"not a picture")
    made = run(tmp_path, precision="int8", samples=16, console=Console(quiet=False))
    assert [row["name"] for row in made.report["calibration"]["skipped"]] == ["000"]
    assert made.report["calibration"]["frames"] == 15
    assert "skipped 000" in capsys.readouterr().err
    assert len(made.bundle.references) == 4


def test_too_many_corrupt_frames_stop_the_build(tmp_path: Path) -> None:
    network_beside(tmp_path)
    images(tmp_path, 20)
    for index in (0, 3, 7, 10):
        path = tmp_path / f"frames/{index:03d}.png"
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"more than a tenth.*\n.*frames.000\.png"):
        run(tmp_path, precision="int8")


def test_a_split_of_corrupt_frames_only(tmp_path: Path) -> None:
    network_beside(tmp_path)
    images(tmp_path, 3)
    for path in (tmp_path / "frames").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="empty"):
        run(tmp_path)


def test_changed_frames_are_another_table(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path, 6)
    bundle = read_bundle(built)
    model = OnnxModel(bundle.files["fp32.onnx"], bundle.spec)

    def table() -> ScaleTable:
        reading, _, _ = frames_for(load_dataset(tmp_path), "train", None, QUICK, bundle.spec)
        assert reading is not None
        return calibrated(model, reading, load_recipe("minmax"), True, Console(quiet=False))[0]

    before, same = table(), table()
    assert before == same
    assert capsys.readouterr().err.count("reused") == 1
    frame, _ = render((48, 64), 77, 0)
    cv2.imwrite(str(tmp_path / "frames/000.png"), frame)
    after = table()
    assert "reused" not in capsys.readouterr().err
    assert after.data != before.data
    assert after.model == before.model
    assert after.tensors != before.tensors


@pytest.mark.parametrize("samples", [1, 4, 16, 1000])
@pytest.mark.parametrize("eval_split", [None, "train"])
def test_frames_to_calibrate_on_are_never_judged_by(tmp_path: Path, samples: int, eval_split: str | None) -> None:
    images(tmp_path, 10, labels=True)
    effort = QUICK.__class__(samples=samples)
    calibration, verdict, look = frames_for(load_dataset(tmp_path), "train", eval_split, effort, SPEC)
    assert calibration is not None
    assert verdict is not None
    assert len(calibration) == min(samples, 7)
    assert not set(calibration.indices) & set(verdict.indices)
    assert look is not None
    assert not set(look.indices) & set(verdict.indices)
    assert len(verdict) == 10 - len(calibration)  # and there always are some to judge by


def test_other_splits_are_judged_by_in_full(street: Path) -> None:
    dataset = load_dataset(street)
    calibration, verdict, look = frames_for(dataset, "train", None, QUICK, SPEC)
    assert calibration is not None
    assert verdict is not None
    assert (calibration.split.name, len(calibration)) == ("train", 12)
    assert (verdict.split.name, len(verdict)) == ("val", 4)
    assert look is not None
    assert (look.split.name, len(look)) == ("train", 12)  # not only the few that are calibrated on
    calibration, verdict, look = frames_for(dataset, "val", None, QUICK, SPEC)
    assert calibration is not None
    assert verdict is not None
    assert (calibration.split.name, verdict.split.name) == ("val", "val")
    assert not set(calibration.indices) & set(verdict.indices)


def test_a_look_is_spread_and_of_the_networks_size(street: Path) -> None:
    calibration, _, _ = frames_for(load_dataset(street), "train", None, QUICK, SPEC)
    assert calibration is not None
    frames = look_at(calibration, SPEC, 3)
    samples = list(calibration)
    for frame, index in zip(frames, pick(12, 3), strict=True):
        np.testing.assert_array_equal(frame, samples[index].pixels)
    smaller = ModelSpec("tiny", InputSpec((24, 40), frame="rgb"))
    assert [f.shape for f in look_at(calibration, smaller, 2)] == [(24, 40, 3)] * 2
    bgr, rgb = look_at(None, SPEC, 1)[0], look_at(None, ModelSpec("t", InputSpec((48, 64), frame="rgb")), 1)[0]
    np.testing.assert_array_equal(bgr, rgb[..., ::-1])


def test_the_report_is_json(built: Path) -> None:
    report = json.loads(json.dumps(dict(read_bundle(built).verdict), allow_nan=False))
    assert {"schema", "machine", "versions", "seconds", "peak_rss_mb"} <= set(report)
    assert set(report["seconds"]) >= {"export", "calibrate", "candidates", "evaluate", "race"}
    assert "onnxruntime" in report["versions"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_miou_drop": float("nan")}, "max_miou_drop"),
        ({"max_miou_drop": -5.0}, "max_miou_drop"),
        ({"samples": 0}, "samples"),
        ({"opset": 19}, "opset 19 was asked for"),
    ],
)
def test_options_that_make_no_sense_are_refused(street: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build(street / "net.onnx", **options)


def test_int8_needs_a_frame_to_judge_by(tmp_path: Path, street: Path) -> None:
    images(tmp_path, 1)
    with pytest.raises(BadInput, match="judge by"):
        build(street / "net.onnx", data=tmp_path, precision="int8", quick=True)


def test_what_is_kept_in_float_stays_so_in_every_dialect(built: Path, tmp_path: Path) -> None:
    from edgeseg import quantize
    from edgeseg.pipeline.network import Network

    images(tmp_path, 6)
    bundle = read_bundle(built)
    model = OnnxModel(bundle.files["fp32.onnx"], bundle.spec)
    reading, _, _ = frames_for(load_dataset(tmp_path), "train", None, QUICK, bundle.spec)
    assert reading is not None
    table, _ = calibrated(model, reading, load_recipe("minmax"), False, Console())
    network = Network(model, table)
    names = quantize.place(quantize.Graph(model.graph), quantize.DIALECTS["tensorrt"]).convolutions
    whole = network.on(["onnxruntime"])["onnxruntime"]
    less = network.on(["onnxruntime"], frozenset(names[:1]))["onnxruntime"]

    def in_int8(graph: bytes) -> set[str]:
        view = quantize.Graph(graph)
        made = {node.output[0] for node in view.nodes if node.op_type == "DequantizeLinear"}
        return {node.name for node in view.nodes if node.op_type == "Conv" and node.input[1] in made}

    assert in_int8(whole.graph) - in_int8(less.graph) == {names[0]}
    assert in_int8(less.graph) < in_int8(whole.graph)


def test_a_full_build_says_what_it_calibrated_on_and_searches_where_int8_loses_too_much(tmp_path: Path) -> None:
    from edgeseg.pipeline import build

    (tmp_path / "net.onnx").write_bytes(making.plain_network())
    (tmp_path / "net.toml").write_text(making.PLAIN_SPEC, encoding="utf-8")
    images(tmp_path / "train", 12)
    images(tmp_path / "val", 4)
    data = tmp_path / "data.toml"
    data.write_text(
        'name = "two"\n[splits.train]\nimages = "train/frames"\n[splits.val]\nimages = "val/frames"\n', encoding="utf-8"
    )
    built = build(
        tmp_path / "net.onnx",
        data=data,
        samples=6,
        precision="int8",
        backend="onnxruntime",
        max_miou_drop=0.0,
        search=0.2,
    )
    report = built.report
    assert report["coverage"]["frames"] >= 1
    assert report["mismatch"]["sentence"]
    assert report["search"], "no INT8 is exactly FP32, so there was something to look for"
    assert report["search"][0]["schema"] == "edgeseg.search/1"
    chosen = next(engine for engine in report["engines"] if engine["name"] == report["chosen"])
    first = next(engine for engine in report["engines"] if engine["precision"] == "fp32")
    assert chosen["agreement"] == first["agreement"] == 1.0
