"""Each method of clipping against brute force on the raw values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from calibration import METHODS, Method, Scheme, entropy, expected_error, minmax, mse, percentile, quantizer, see
from calibration.entropy import divergences
from calibration.seen import folded
from tests.calibration.reference import divergence, least_asymmetric_error, least_symmetric_error, quantization_error

Values = NDArray[np.float32]

SYMMETRIC = Scheme(signed=True, symmetric=True)
UNSIGNED = Scheme(signed=False, symmetric=False)
SIGNED = Scheme(signed=True, symmetric=False)
NARROW = Scheme(signed=True, symmetric=True, narrow=True)
FOUR_BITS = Scheme(signed=False, symmetric=False, bits=4)
SCHEMES = [SYMMETRIC, UNSIGNED, SIGNED, NARROW, FOUR_BITS]


def sample(kind: str) -> Values:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(20_000)
    values = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(normal * 4 + 2, 0, 6),
        "negative": -np.abs(normal),
        "prelu": np.where(normal > 0, 3 * normal, 0.2 * normal),
        "leaning": np.where(normal > 0, 0.2 * normal, 3 * normal),
        "heavy": rng.standard_t(3, 20_000),
        "shifted": normal + 3,
        "outlier": np.append(normal, 300.0),
        "tiny": normal * 1e-30,
        "huge": normal * 1e30,
        "constant": np.full(100, 5.3),
        "zero": np.zeros(100),
        "rare": np.append(np.zeros(50_000), [1.0, 2.0]),
    }
    return values[kind].astype(np.float32)


KINDS = ["normal", "relu", "relu6", "negative", "prelu", "leaning", "heavy", "shifted", "outlier", "tiny", "huge"]
SPECIAL = ["constant", "zero", "rare"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS + SPECIAL)
def test_every_quantizer_is_valid(kind: str, method: Method, scheme: Scheme) -> None:
    values = sample(kind)
    found = quantizer(see(values), method, scheme)
    assert found.scale > 0
    assert math.isfinite(found.scale)
    assert float(np.float32(found.scale)) == found.scale
    assert scheme.lowest <= found.zero_point <= scheme.highest
    assert found.zero_point == 0 or not scheme.symmetric
    assert found.low == (scheme.lowest - found.zero_point) * found.scale <= 0 <= found.high
    if method == "minmax":  # nothing is further out than the rounding of the zero point and of the scale
        slack = found.scale * (0.5 + 1e-4) if not scheme.symmetric else found.scale * 1e-4
        assert found.low - slack <= values.min()
        assert values.max() <= found.high + slack


@pytest.mark.parametrize("method", METHODS)
def test_one_sided_values_use_one_side(method: Method) -> None:
    seen = see(np.linspace(0, 127, 128 * 64, dtype=np.float32))
    assert quantizer(seen, "minmax", SYMMETRIC).scale == 1.0
    assert quantizer(seen, method, UNSIGNED).zero_point == 0
    assert quantizer(see(-np.linspace(0, 128, 1000, dtype=np.float32)), "minmax", SYMMETRIC).scale == 1.0


def test_nothing_but_zeros_has_a_benign_scale() -> None:
    for method in METHODS:
        assert quantizer(see(sample("zero")), method, SYMMETRIC).scale == 1.0


def test_unknown_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="percent"):
        quantizer(see(sample("relu")), "mse", SYMMETRIC, {"percent": 3})


# percentile


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_percentile_100_is_minmax(values: Values) -> None:
    for scheme in (SYMMETRIC, UNSIGNED):
        assert quantizer(see(values), "percentile", scheme, {"percent": 100.0}) == quantizer(
            see(values), "minmax", scheme
        )
    assert percentile(see(values), UNSIGNED, 100.0) == minmax(see(values), UNSIGNED)


@pytest.mark.parametrize("percent", [60.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("kind", KINDS)
def test_percentile_agrees_with_numpy_to_a_bin(kind: str, percent: float) -> None:
    values, seen = sample(kind), see(sample(kind))

    def near(got: float, percentage: float, of: Values) -> None:
        # between the neighbours of the rank, whichever way one interpolates, and a bin's width more
        lower = float(np.percentile(of, percentage, method="lower"))
        higher = float(np.percentile(of, percentage, method="higher"))
        assert lower - seen.width <= got <= higher + seen.width

    low, high = percentile(seen, UNSIGNED, percent)
    near(high, percent, np.maximum(values, 0))
    near(low, 100 - percent, np.minimum(values, 0))
    low, high = percentile(seen, SYMMETRIC, percent)
    near(max(-low, high), percent, np.abs(values))


def test_percentile_of_rare_values_does_not_collapse() -> None:
    seen = see(sample("rare"))
    assert percentile(seen, UNSIGNED, 99.9) == (0.0, 2.0)
    assert percentile(seen, SYMMETRIC, 99.9) == (0.0, 2.0)


# mse


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", [*KINDS, "constant"])
def test_expected_error_is_that_of_the_raw_values(kind: str, scheme: Scheme) -> None:
    values, seen = sample(kind).astype(np.float64), see(sample(kind))
    for fraction in (1.0, 0.4, 0.1):
        low, high = (end * fraction for end in minmax(seen, scheme))
        step = (high - low) / (scheme.highest - scheme.lowest) or 1.0
        zero_point = 0 if scheme.symmetric else round(scheme.lowest - low / step)
        error = quantization_error(values, step, zero_point, scheme.lowest, scheme.highest)
        expected = float(expected_error(seen, step, zero_point, scheme)[0])
        # evenly spread within a bin: about what the bin's own variance is worth
        assert expected == pytest.approx(error, rel=0.05, abs=seen.width**2 / 6 if kind == "outlier" else step**2 / 200)


def test_expected_error_of_one_bin_is_the_integral() -> None:
    seen = see(np.array([0.25, 0.75, 1.0], np.float32))
    fine = np.concatenate(
        [(seen.first + i + np.linspace(0, 1, 20_001)) * seen.width for i in np.flatnonzero(seen.counts)]
    )
    fine = np.clip(fine, 0.25, 1.0)
    got = expected_error(seen, [0.3, 0.0001, 0.17], 0, Scheme(signed=True, symmetric=True, bits=3))
    want = [quantization_error(fine, scale, 0, -4, 3) for scale in (0.3, 0.0001, 0.17)]
    assert got == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("scheme", [SYMMETRIC, NARROW, Scheme(signed=True, symmetric=True, bits=4)])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_a_fine_grid_on_the_raw_values_symmetric(kind: str, scheme: Scheme) -> None:
    values = sample(kind).astype(np.float64)
    found = quantizer(see(sample(kind)), "mse", scheme)
    error = quantization_error(values, found.scale, 0, scheme.lowest, scheme.highest)
    assert error <= 1.03 * least_symmetric_error(values, scheme.lowest, scheme.highest)


@pytest.mark.parametrize("scheme", [UNSIGNED, FOUR_BITS])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "outlier"])
def test_mse_is_as_good_as_a_grid_on_the_raw_values_asymmetric(kind: str, scheme: Scheme) -> None:
    values = sample(kind)[:5000].astype(np.float64)
    found = quantizer(see(sample(kind)[:5000]), "mse", scheme)
    error = quantization_error(values, found.scale, found.zero_point, scheme.lowest, scheme.highest)
    assert error <= 1.03 * least_asymmetric_error(values, scheme.lowest, scheme.highest)


def test_mse_beats_minmax_where_it_should() -> None:
    """The checker above could not tell if both were the same."""
    seen = see(sample("heavy"))
    errors = {m: float(expected_error(seen, quantizer(seen, m, SYMMETRIC).scale, 0, SYMMETRIC)[0]) for m in METHODS}
    assert errors["mse"] == min(errors.values())
    assert errors["minmax"] > 1.1 * errors["mse"]


def test_mse_leaves_bounded_values_alone() -> None:
    assert mse(see(sample("constant")), UNSIGNED)[1] == np.float32(5.3)
    assert mse(see(sample("relu6")), UNSIGNED)[1] == pytest.approx(6.0, rel=0.01)


# entropy


@pytest.mark.parametrize("levels", [4, 16, 128])
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "outlier", "negative", "constant"])
def test_divergence_equals_plain_loops(kind: str, levels: int) -> None:
    counts = see(sample(kind)).counts
    rng = np.random.default_rng(5)
    starts = rng.integers(0, len(counts) - 1, 40)
    stops = np.array([rng.integers(start + 1, len(counts) + 1) for start in starts])
    starts[:4], stops[:4] = 0, [1, 2, len(counts) - 1, len(counts)]
    got = divergences(counts, starts, stops, levels)
    want = [divergence(counts.tolist(), int(a), int(b), levels) for a, b in zip(starts, stops, strict=True)]
    assert np.isfinite(want).any()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 5)), st.integers(1, 6), st.data())
def test_divergence_equals_plain_loops_on_odd_histograms(
    counts: NDArray[np.int64], levels: int, data: st.DataObject
) -> None:
    counts[0] += 1
    start = data.draw(st.integers(0, len(counts) - 1))
    stop = data.draw(st.integers(start + 1, len(counts)))
    got = divergences(counts, np.array([start]), np.array([stop]), levels)
    np.testing.assert_allclose(got, [divergence(counts.tolist(), start, stop, levels)], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "outlier"])
def test_entropy_takes_the_least_divergence(kind: str) -> None:
    seen = see(sample(kind))
    counts = folded(seen).tolist()
    tried = [*range(16, len(counts), max(1, len(counts) // 30)), len(counts)]
    best = min(divergence(counts, 0, stop, 128) for stop in tried)
    low, high = entropy(seen, SYMMETRIC)
    chosen = next(stop for stop in range(1, len(counts) + 1) if stop * seen.width >= max(-low, high))
    assert divergence(counts, 0, chosen, 128) <= best + 1e-12


def test_entropy_moves_either_end_no_further() -> None:
    seen = see(sample("prelu"))
    low, high = entropy(seen, UNSIGNED)
    start, stop = (round((end - seen.first * seen.width) / seen.width) for end in (low, high))
    start, stop = max(start, 0), min(stop, len(seen.counts))
    counts = seen.counts.tolist()
    best = divergence(counts, start, stop, 256)
    for shift in (-40, -5, -1, 1, 5, 40):
        assert divergence(counts, max(0, start + shift), stop, 256) >= best - 1e-12
        assert divergence(counts, start, min(len(counts), stop + shift), 256) >= best - 1e-12


def test_entropy_clips_a_heavy_tail_and_no_bounded_one() -> None:
    low, high = entropy(see(sample("heavy")), SYMMETRIC)
    assert max(-low, high) < 0.8 * np.abs(sample("heavy")).max()
    assert entropy(see(sample("constant")), UNSIGNED) == (0.0, float(np.float32(5.3)))
    assert entropy(see(np.linspace(0, 1, 100_000, dtype=np.float32)), UNSIGNED)[1] > 0.99


# torch's observers, which look at the same arrays


@pytest.mark.parametrize("kind", ["normal", "relu", "relu6", "prelu", "heavy", "shifted"])
def test_mse_is_no_worse_than_torchs_histogram_observer(kind: str) -> None:
    """It searches for the least squared error too, with ends that are bins of its own histogram."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch.ao.quantization.observer import HistogramObserver

    values = sample(kind)
    observer = HistogramObserver(dtype=torch.quint8)
    observer(torch.from_numpy(values))
    scale, zero_point = observer.calculate_qparams()
    theirs = quantization_error(values.astype(np.float64), float(scale), int(zero_point), 0, 255)
    found = quantizer(see(values), "mse", UNSIGNED)
    ours = quantization_error(values.astype(np.float64), found.scale, found.zero_point, 0, 255)
    assert ours <= 1.02 * theirs
    assert ours >= 0.2 * theirs  # it is an observer at work and not one that failed


@pytest.mark.parametrize("kind", ["normal", "heavy", "prelu"])
def test_entropy_by_plain_loops_over_the_raw_values(kind: str) -> None:
    """Every clipping of magnitudes at 300 bins, from the values on, as the talk describes it."""
    values = np.abs(sample(kind)[:4000])
    seen = see(values)
    counts = [0] * len(seen.counts)
    for value in values.tolist():
        if value != 0:
            counts[math.floor(value / seen.width)] += 1
    results = {stop: divergence(counts, 0, stop, 128) for stop in range(128, len(counts) + 1, 9)}
    best = min(results.values())
    _, high = entropy(seen, SYMMETRIC)
    chosen = min(len(counts), round(high / seen.width + 0.499))
    assert divergence(counts, 0, chosen, 128) <= best + 1e-9
