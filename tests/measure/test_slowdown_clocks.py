from __future__ import annotations

import pytest

from edgeseg.measure.sensors import MachineSample
from edgeseg.measure.slowdown import clocks_moved


def clocks(*mhz: float) -> list[MachineSample]:
    return [MachineSample(cpu_clock_mhz=value) for value in mhz]


def test_steady_clocks_did_not_move() -> None:
    assert clocks_moved(clocks(3000, 3010, 2990, 3000, 3005, 2995)) == (False, [])
    # One sample in ten may lie apart: the clock of an idle moment.
    assert clocks_moved(clocks(*[3000] * 6, 1500, *[3000] * 6))[0] is False


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (clocks(3000, 3000, 3000, 2800, 2700, 2700), "CPU clock went from 3000 to 2700 MHz"),
        (clocks(3000, 2000, 3000, 3000, 2000, 3000), "CPU clock moved between 2000 and 3000 MHz"),
        ([MachineSample(gpu_clock_mhz=v) for v in (1000.0, 1000.0, 900.0)], "GPU clock went from 1000 to 900 MHz"),
        ([MachineSample(temperature_c=v) for v in (60.0, 80.0, 91.0)], "hottest zone went from 60 to 91 °C"),
        ([MachineSample(throttled=v) for v in (False, True, False)], "the machine throttled (no reason given)"),
        (
            [MachineSample(throttled=False), MachineSample(throttled=True, throttle_reasons=("too hot",))] * 2,
            "the machine throttled (too hot)",
        ),
    ],
    ids=str,
)
def test_what_moved_is_said(samples: list[MachineSample], words: str) -> None:
    assert clocks_moved(samples) == (True, [words])


def test_a_drift_of_less_than_a_twentieth_is_none() -> None:
    assert clocks_moved(clocks(3000, 3000, 2860, 2860))[0] is False
    assert clocks_moved(clocks(3000, 3000, 2840, 2840))[0] is True


def test_heat_from_the_start_is_no_change() -> None:
    assert clocks_moved([MachineSample(temperature_c=value) for value in (90.0, 92.0, 91.0)]) == (False, [])


def test_too_little_to_tell() -> None:
    assert clocks_moved([]) == (None, [])
    assert clocks_moved(clocks(3000, 1000)) == (None, [])
    assert clocks_moved([MachineSample(cpu_percent=50.0)] * 9) == (None, [])
