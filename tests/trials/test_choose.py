"""The verdict as a table: what was measured, what is handed over, and which reason is given."""

from __future__ import annotations

import pytest

from edgeseg.errors import AccuracyFailed
from edgeseg.trials.choose import Measured, choose
from edgeseg.types import Precision


def engine(precision: Precision, ms: float, accuracy: float | None, backend: str = "onnxruntime") -> Measured:
    return Measured(f"{backend}-{precision}", backend, precision, ms, accuracy)


FP32 = engine("fp32", 10.0, 60.0)

CASES: dict[str, tuple[list[Measured], Precision, float, str, list[str]]] = {
    "faster and as good": ([FP32, engine("int8", 4.0, 59.5)], "int8", 1.0, "onnxruntime-int8", ["2.50 times as fast"]),
    "exactly what is allowed": ([FP32, engine("int8", 4.0, 59.0)], "int8", 1.0, "onnxruntime-int8", ["2.50 times"]),
    "better than FP32": ([FP32, engine("int8", 4.0, 61.0)], "int8", 0.0, "onnxruntime-int8", ["2.50 times"]),
    "too lossy": (
        [FP32, engine("int8", 4.0, 58.5)],
        "int8",
        1.0,
        "onnxruntime-fp32",
        ["onnxruntime-int8 is out: it loses 1.50 points of mIoU, 1 are allowed", "INT8 is not handed over: it loses"],
    ),
    "slower": (
        [FP32, engine("int8", 12.0, 60.0)],
        "int8",
        1.0,
        "onnxruntime-fp32",
        ["INT8 is not handed over: onnxruntime-int8 takes 12.00 ms, onnxruntime-fp32 takes 10.00 ms"],
    ),
    "one INT8 is out, the other is slower": (
        [FP32, engine("int8", 4.0, 10.0), engine("int8", 11.0, 60.0, "openvino")],
        "int8",
        1.0,
        "onnxruntime-fp32",
        ["onnxruntime-int8 is out", "openvino-int8 takes 11.00 ms"],
    ),
    "none was made": ([FP32], "int8", 1.0, "onnxruntime-fp32", ["No INT8 engine could be made"]),
    "not a number is a loss": (
        [FP32, engine("int8", 4.0, float("nan"))],
        "int8",
        1.0,
        "onnxruntime-fp32",
        ["onnxruntime-int8 is out", "loses too much"],
    ),
    "the faster of two backends": (
        [FP32, engine("fp32", 7.0, 60.0, "openvino"), engine("int8", 4.0, 60.0, "openvino"), engine("int8", 5.0, 60.0)],
        "int8",
        1.0,
        "openvino-int8",
        ["1.75 times as fast as the fastest FP32"],
    ),
    "FP32 alone": ([FP32, engine("fp32", 7.0, 60.0, "openvino")], "fp32", 1.0, "openvino-fp32", []),
    "half precision wins over INT8": (
        [FP32, engine("bf16", 3.0, 60.0), engine("int8", 4.0, 60.0)],
        "int8",
        1.0,
        "onnxruntime-bf16",
        ["3.33 times", "onnxruntime-int8 takes 4.00 ms"],
    ),
    "bf16 is half precision": ([FP32, engine("bf16", 3.0, 60.0)], "fp16", 1.0, "onnxruntime-bf16", ["3.33 times"]),
    "half precision was made and is slower": (
        [FP32, engine("bf16", 13.0, 60.0)],
        "fp16",
        1.0,
        "onnxruntime-fp32",
        ["FP16 is not handed over: onnxruntime-bf16 takes 13.00 ms"],
    ),
    "nothing is known about accuracy": (
        [engine("fp32", 10.0, None), engine("int8", 4.0, None)],
        "int8",
        1.0,
        "onnxruntime-int8",
        ["no frames to evaluate on", "2.50 times"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_choose(case: str) -> None:
    measured, asked, drop, expected, said = CASES[case]
    choice = choose(measured, asked, drop)
    assert choice.name == expected
    assert len(choice.reasons) == len(said), choice.reasons
    for phrase, reason in zip(said, choice.reasons, strict=True):
        assert phrase in reason


def test_nothing_qualifies() -> None:
    """Takes an FP32 engine that is no yardstick, and one that fails it."""
    lossy = [engine("fp32", 9.0, float("nan")), engine("int8", 4.0, 20.0, "openvino")]
    with pytest.raises(AccuracyFailed, match=r"openvino-int8 is out.*--max-miou-drop"):
        choose(lossy, "int8", 1.0)
    assert AccuracyFailed.exit_code == 1


def test_the_metric_is_named() -> None:
    choice = choose([FP32, engine("int8", 4.0, 50.0)], "int8", 1.0, "agreement with FP32")
    assert "10.00 points of agreement with FP32" in choice.reasons[0]


def test_the_order_does_not_matter() -> None:
    measured = [FP32, engine("int8", 4.0, 59.5), engine("int8", 3.0, 10.0, "openvino")]
    assert choose(measured, "int8", 1.0).name == choose(measured[::-1], "int8", 1.0).name == "onnxruntime-int8"


def test_a_class_that_loses_too_much_rules_an_engine_out() -> None:
    fp32 = Measured("a-fp32", "a", "fp32", 10.0, 60.0, worst_class=("car", 0.0))
    int8 = Measured("a-int8", "a", "int8", 5.0, 59.9, worst_class=("pedestrian", 2.5))
    assert choose([fp32, int8], "int8", 1.0).name == "a-int8"
    strict = choose([fp32, int8], "int8", 1.0, max_class_drop=0.5)
    assert strict.name == "a-fp32"
    assert any("'pedestrian' loses 2.50 points of IoU, 0.5 are allowed" in reason for reason in strict.reasons)
    assert choose([fp32, int8], "int8", 1.0, max_class_drop=2.5).name == "a-int8"
