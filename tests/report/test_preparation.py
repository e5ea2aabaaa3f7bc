"""What a build did before INT8, in words."""

from __future__ import annotations

from typing import Any

import pytest

from edgeseg.report.preparation import preparation_lines

FITTED = {
    "rounded": 17,
    "median_gain_db": 11.29,
    "left": {f"conv{at}": "each output reads 4000 inputs, more than the 2600 that are affordable" for at in range(5)},
}
LEARNED = {"dialect": "openvino", "steps": 70, "frames": 12, "held_out": 4, "before": 0.9912, "after": 0.9934}


def lines(**row: Any) -> list[str]:
    return preparation_lines({"preparation": {"folded": 0, "equalized": 0, "gain_db": {}, "fitted": {}, **row}})


def test_nothing_done_is_nothing_said() -> None:
    assert preparation_lines({}) == preparation_lines({"preparation": None}) == lines() == []


def test_channels_evened_out() -> None:
    (line,) = lines(equalized=22, gain_db={"onnxruntime-x86": 0.25, "openvino": -0.1})
    assert line == (
        "channels evened out in 22 pairs of convolutions, the scores' signal to noise changes by "
        "+0.2 dB (onnxruntime-x86), -0.1 dB (openvino)"
    )


def test_rounded_weights_and_those_that_are_not() -> None:
    rounded, left = lines(fitted={"weights-8": FITTED})
    assert "17 convolutions; their outputs err 11.3 dB less" in rounded
    assert left == "rounded to the nearest step: conv0, conv1, conv2 and 2 more (each output reads 4000 inputs)"
    assert "less" not in lines(fitted={"weights-8": {"rounded": 0, "median_gain_db": None, "left": {}}})[0]


@pytest.mark.parametrize(("kept", "said"), [(True, "held out, kept"), (False, "held out, not kept")])
def test_what_was_learned(kept: bool, said: str) -> None:
    (line,) = lines(recovered=[{**LEARNED, "kept": kept}])
    assert "99.12 → 99.34 % of the pixels of 4 frames" in line
    assert line.endswith(said)
