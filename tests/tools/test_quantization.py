"""tools/bench quantization: ways are what they claim to be, and the verdict on an aim can be each of three."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmarks.child as child
import benchmarks.quantization as bench
from benchmarks.quantization_aims import Aim, aims
from benchmarks.quantization_costs import interpreter
from benchmarks.quantization_report import text
from benchmarks.recipes import TENSORRT, Job

from edgeseg.backends import open_engine
from edgeseg.backends.onnxruntime import inference_session
from edgeseg.errors import BadInput, CannotTell
from edgeseg.quantize import ONNXRUNTIME_X86, quantize
from tests.quantize.making import PLAIN_SPEC, SIZE, STREET, frames, plain_network, table_of, unet

RANGES = "64 frames, ranges"
ALL = "64 frames, ranges, channels evened out, weights rounded"


@pytest.fixture
def street(tmp_path: Path) -> dict[str, Any]:
    """A tiny model and data set on disk, as `build` gets them."""
    (tmp_path / "tiny.onnx").write_bytes(plain_network())
    (tmp_path / "tiny.toml").write_text(PLAIN_SPEC, encoding="utf-8")
    (tmp_path / "street.toml").write_text(STREET, encoding="utf-8")
    return {"model": tmp_path / "tiny.onnx", "data": tmp_path / "street.toml"}


def zero_points(graph: bytes) -> list[Any]:
    """Those of all quantizers of activations, and the types of what DequantizeLinear reads from constants."""
    model = onnx.load_from_string(graph)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    known |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant"
    }
    assert not [
        node.name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in known and known[node.input[0]].dtype == np.int32
    ], "TensorRT refuses biases as int32"
    found = [known[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert found
    return found


def test_our_graph_for_tensorrt_is_one_that_it_takes_and_answers(tmp_path: Path, street: dict[str, Any]) -> None:
    model = unet()
    (tmp_path / "fp32.onnx").write_bytes(model.graph)
    (tmp_path / "spec.toml").write_text(PLAIN_SPEC.replace("[48, 64]", f"[{SIZE[0]}, {SIZE[1]}]"), encoding="utf-8")
    build = {"model": str(street["model"]), "spec": str(tmp_path / "spec.toml"), "data": str(street["data"])}
    job = Job(
        "edgeseg-tensorrt",
        str(tmp_path / "out"),
        str(tmp_path / "fp32.onnx"),
        count=4,
        build={**build, "split": "train"},
        indices=(7, 0, 3, 9, 11),
    )
    done = child.run(job)
    assert done.failure == ""
    assert done.said["frames"] == 4  # of five
    assert 0 < done.said["run_s"] < done.seconds
    graph = (tmp_path / "out" / "graph.onnx").read_bytes()
    assert all(point.dtype == np.int8 and not point.any() for point in zero_points(graph))
    frame = frames(1, SIZE, seed=9)
    session = inference_session(graph, "off")
    (expected,) = inference_session(model.graph).run(["mask"], {"frame": frame})
    (got,) = session.run(["mask"], {"frame": frame})
    assert np.mean(got == expected) > 0.8


def test_the_symmetric_recipe_of_onnx_runtime_is_what_tensorrt_takes(tmp_path: Path) -> None:
    pytest.importorskip("sympy", reason="quant_pre_process of ONNX Runtime infers shapes with it")
    (tmp_path / "fp32.onnx").write_bytes(unet().graph)
    np.save(tmp_path / "frames.npy", frames(4, SIZE))
    given = str(tmp_path / "fp32.onnx"), str(tmp_path / "frames.npy"), 4
    done = child.run(Job("ort-symmetric-minmax", str(tmp_path / "symmetric"), *given))
    assert done.failure == ""
    graph = (tmp_path / "symmetric" / "graph.onnx").read_bytes()
    assert all(point.dtype == np.int8 and not point.any() for point in zero_points(graph))
    model = unet()
    with pytest.raises(AssertionError, match="int32"):  # ours for ONNX Runtime is not
        zero_points(quantize(model, table_of(model), ONNXRUNTIME_X86).graph)


def test_a_python_without_modelopt_is_told_from_one_that_is_not_asked() -> None:
    python, why = interpreter(TENSORRT["modelopt-max"], sys.executable)
    assert python == sys.executable
    assert why == "" or ("not installed" in why and "pip install 'nvidia-modelopt[onnx]'" in why)
    assert interpreter(TENSORRT["modelopt-max"], "/no/such/python")[1].startswith("no Python at /no/such/python: ")
    assert interpreter(TENSORRT["edgeseg-tensorrt"], "/no/such/python") == (sys.executable, "")


def test_a_rewrite_that_cannot_be_made_says_why(tmp_path: Path, street: dict[str, Any]) -> None:
    with pytest.raises(CannotTell, match=r"edgeseg rewrite made no network: .*onnx"):
        bench.separable(street["model"], words(street), tmp_path / "small.pt2")


def test_a_way_that_is_not_known_ends_it_before_anything_runs(tmp_path: Path, street: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"there is no way nccf; there are: edgeseg-onnxruntime, .*modelopt-max"):
        bench.measure([street["model"]], words(street, only=("nccf",)), tmp_path, print)
    with pytest.raises(BadInput, match="comes with edgeseg-onnxruntime or edgeseg-openvino"):
        bench.measure([street["model"]], words(street, only=("ort-minmax",)), tmp_path, print)


def words(street: dict[str, Any], **changed: Any) -> bench.Words:
    told: dict[str, Any] = {"split": "train", "eval_split": "val", "samples": 4, "rounds": 11, "repeats": 1}
    told |= {"memory": (2,), "floor": 0.1, "macs": 0.3, "limit_gb": 8.0, "limit_s": 60.0, "modelopt": sys.executable}
    return bench.Words(**{"data": street["data"], "only": (), **told, **changed})


def row(recipe: str, runtime: str, drop: float, p50: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "recipe": recipe,
        "runtime": runtime,
        "failure": "",
        "notes": [],
        "precision": "int8",
        "chosen": None,
    }
    found |= {"miou": 0.6 - drop, "drop": drop, "agreement": 0.99, "seconds": 9.0, "peak_rss_mb": 300.0}
    samples = [p50 + 1000 * (k % 5) for k in range(20)]
    return {**found, "latency_ms": {"p50": p50 / 1e6}, "samples_ns": samples, "speed": None, "engine": None, **more}


def runs(way: str, recipe: str, runtime: str, *measured: tuple[int, float | None, float | None]) -> dict[str, Any]:
    found = [
        {
            "frames": count,
            "run_s": s,
            "peak_rss_mb": mb,
            "failure": "" if s is not None else "more than 16 GB",
            "steps": None if s is None or not way.startswith("edgeseg") else {"calibrate": s / 4},
        }
        for count, s, mb in measured
    ]
    return {"way": way, "recipe": recipe, "runtime": runtime, "failure": "", "runs": found}


@pytest.fixture
def document() -> dict[str, Any]:
    """All that is wanted is reached."""
    rows = [
        row("FP32, exported by edgeseg", "onnxruntime", 0.0, 20_000_000, precision="fp32", engine="onnxruntime-fp32"),
        row("edgeseg", "onnxruntime", 0.001, 10_000_000, chosen="onnxruntime-int8", engine="onnxruntime-int8"),
        row("NNCF, ONNX", "onnxruntime", 0.02, 15_000_000),
        row("edgeseg, --max-miou-drop 0.1", "onnxruntime", 0.0009, 11_000_000),
        row("edgeseg", "tensorrt", 0.004, 0),
    ]
    del rows[-1]["samples_ns"], rows[-1]["latency_ms"]
    costs = [
        runs("edgeseg-int8-onnxruntime", "edgeseg", "onnxruntime", (64, 10.0, 200.0), (64, 11.0, 202.0),
             (16, 5.0, 200.0), (128, 15.0, 209.0)),
        runs("nncf-onnx", "NNCF, ONNX", "onnxruntime", (64, 12.0, 500.0), (64, 12.5, 500.0)),
        runs("ort-entropy", "quantize_static, entropy", "onnxruntime", (64, 60.0, 9000.0), (128, None, None)),
    ]  # fmt: skip
    return {"rows": bench.compared(rows), "costs": costs}


def verdicts(document: dict[str, Any]) -> dict[tuple[str, str], Aim]:
    return {(aim.what, aim.where): aim for aim in aims(document, 0.1, 64)}


def test_all_aims_are_there_and_met(document: dict[str, Any]) -> None:
    found = verdicts(document)
    assert {key: aim.met for key, aim in found.items()} == {
        ("mIoU lost, default settings", "onnxruntime"): True,
        ("mIoU lost, default settings", "tensorrt"): True,
        ("edgeseg, --max-miou-drop 0.1", "onnxruntime"): True,
        ("final engine not slower than FP32", "onnxruntime"): True,
        ("final engine faster than NNCF's default", "onnxruntime"): True,
        (f"{RANGES}: beside NNCF, ONNX", "onnxruntime"): True,
        (f"{ALL}: beside NNCF, ONNX", "onnxruntime"): True,
        (f"{RANGES}: beside quantize_static, entropy", "onnxruntime"): True,
        (f"{ALL}: beside quantize_static, entropy", "onnxruntime"): True,
        ("peak memory, by frames", "onnxruntime"): True,
    }
    assert found["mIoU lost, default settings", "tensorrt"].found == "0.40"
    assert found[f"{RANGES}: beside NNCF, ONNX", "onnxruntime"].found == "2.6 s against 12.2 s, 4.67x"
    assert found["peak memory, by frames", "onnxruntime"].found == "200 MB at 16 frames, 209 MB at 128: +4.5 %"
    assert found["final engine not slower than FP32", "onnxruntime"].found.startswith("2.00x (")


@pytest.mark.parametrize(
    ("at", "drop", "precision", "key", "met"),
    [
        (1, 0.0031, "int8", ("mIoU lost, default settings", "onnxruntime"), False),
        (1, 0.003, "int8", ("mIoU lost, default settings", "onnxruntime"), True),
        (4, 0.0051, "int8", ("mIoU lost, default settings", "tensorrt"), False),
        (3, 0.0011, "int8", ("edgeseg, --max-miou-drop 0.1", "onnxruntime"), False),
        (3, 0.0, "fp32", ("edgeseg, --max-miou-drop 0.1", "onnxruntime"), True),
    ],
)
def test_the_limit_of_what_may_be_lost(
    document: dict[str, Any], at: int, drop: float, precision: str, key: tuple[str, str], met: bool
) -> None:
    document["rows"][at] |= {"drop": drop, "precision": precision}
    aim = verdicts(document)[key]
    assert aim.met is met
    assert aim.found == f"{100 * drop:.2f}" + ("" if precision == "int8" else ", by handing over FP32")


def test_a_build_that_refuses_has_not_reached_it(document: dict[str, Any]) -> None:
    del document["rows"][3]["drop"]
    document["rows"][3]["failure"] = "failed: AccuracyFailed"
    aim = verdicts(document)["edgeseg, --max-miou-drop 0.1", "onnxruntime"]
    assert (aim.found, aim.met) == ("failed: AccuracyFailed", False)


def test_the_speed_is_that_of_what_is_handed_over(document: dict[str, Any]) -> None:
    rows = document["rows"]
    rows[1] |= {"samples_ns": [9 * ns for ns in rows[1]["samples_ns"]]}
    document["rows"] = bench.compared(rows)
    slow = verdicts(document)
    assert slow["final engine not slower than FP32", "onnxruntime"].met is False
    assert slow["final engine faster than NNCF's default", "onnxruntime"].met is False
    rows[1]["chosen"] = "onnxruntime-fp32"  # what a build does with so slow an engine
    fp32 = verdicts(document)
    aim = fp32["final engine not slower than FP32", "onnxruntime"]
    assert aim.met is True
    assert aim.found.startswith("1.00x (1.00 to 1.00), handing over FP32; INT8 0.22x")
    assert fp32["final engine faster than NNCF's default", "onnxruntime"].met is False


def test_what_chance_may_have_done_is_not_told(document: dict[str, Any]) -> None:
    rows = document["rows"]
    chance = np.random.default_rng(0)
    for at in (0, 1):
        rows[at]["samples_ns"] = [int(ns) for ns in 10_000_000 + chance.normal(0, 2_000_000, 20)]
    document["rows"] = bench.compared(rows)
    assert verdicts(document)["final engine not slower than FP32", "onnxruntime"].met is None


def test_a_rival_that_does_not_run_is_named(document: dict[str, Any]) -> None:
    rows = document["rows"]
    rows[2] = {"recipe": "NNCF, ONNX", "runtime": "onnxruntime", "failure": "failed: no", "notes": [], "chosen": None}
    document["rows"] = bench.compared(rows)
    aim = verdicts(document)["final engine faster than NNCF's default", "onnxruntime"]
    assert (aim.found, aim.met) == ("NNCF's does not run: failed: no", None)


def test_times_of_children_must_all_say_the_same(document: dict[str, Any]) -> None:
    ours, _, entropy = document["costs"]
    key = f"{ALL}: beside NNCF, ONNX", "onnxruntime"
    ours["runs"][1]["run_s"] = 12.2  # slower than one of NNCF's two
    assert verdicts(document)[key].met is None
    ours["runs"][0]["run_s"] = ours["runs"][1]["run_s"] = 13.0
    assert verdicts(document)[key].met is False
    entropy["runs"][0] |= {"run_s": None, "failure": "more than 16 GB"}
    aim = verdicts(document)[f"{ALL}: beside quantize_static, entropy", "onnxruntime"]
    assert (aim.found, aim.met) == ("the other: more than 16 GB", None)
    ours["runs"][-1]["peak_rss_mb"] = 211.0
    assert verdicts(document)["peak memory, by frames", "onnxruntime"].met is False


def test_the_tables_show_failures_in_their_place(document: dict[str, Any]) -> None:
    document["rows"].append(
        {"recipe": "nvidia-modelopt, max", "runtime": "tensorrt", "failure": "not installed: a|b", "notes": []}
    )
    document["rows"][2]["notes"] = ["onnxruntime-int8[all,host]: x" + 400 * "x", "onnxruntime-int8[all,graph]: y"]
    document |= {"model": "tiny", "failure": "", "calibration": {"split": "train", "frames": 64}}
    document |= {"evaluation": {"split": "val", "frames": 9}, "aims": [a.to_json() for a in aims(document, 0.1, 64)]}
    broken = {"model": "other", "failure": "no such file"}
    shown = text({"models": [document, broken], "words": {"rounds": 20}}, lambda header, rows: _plain([header, *rows]))
    lines = shown.splitlines()
    assert "mIoU lost, default settings|onnxruntime|tiny|≤ 0.3|0.10|yes" in lines
    assert "nvidia-modelopt, max|tensorrt|not installed: a/b|–|–|–|–|–|–|–" in lines
    assert "quantize_static, entropy|onnxruntime|–|60.0|more than 16 GB|–|9000|–" in lines
    assert "other: no such file" in lines
    assert sum(line.startswith("* NNCF, ONNX") for line in lines) == 1
    assert all(len(line) < 400 for line in lines if line.startswith("* "))


def _plain(rows: list[Any]) -> str:
    return "\n".join("|".join(cells) for cells in rows)


def test_speeds_are_of_the_same_runtime(document: dict[str, Any]) -> None:
    other = row("edgeseg", "openvino", 0.0, 1_000_000)
    rows = bench.compared([*copy.deepcopy(document["rows"]), other])
    assert rows[-1]["speed_fp32"] is None
    assert rows[1]["speed_nncf"]["ratio"] == pytest.approx(1.5, rel=0.01)
    assert rows[4]["speed_fp32"] is None  # tensorrt, which did not race


def test_an_engine_for_tensorrt_runs_as_it_is_written() -> None:
    from edgeseg.backends import Engine
    from edgeseg.backends.onnxruntime import AS_WRITTEN

    model = unet()
    engine = Engine("x", "onnxruntime", "int8", "graph.onnx", {"graph.onnx": model.graph}, {"optimization": AS_WRITTEN})
    with open_engine(engine) as session:
        assert session.run(frames(1, SIZE)).shape == (1, *SIZE)
