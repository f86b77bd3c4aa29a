"""The least squared error rule against brute force on the raw values, with quantize itself as the judge."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits._base.errors import UsageError
from fewbits.algorithms.ranges import RANGE_RULES, parse_range_rule
from fewbits.algorithms.ranges.mse import _FRACTIONS, _WEIGHT_FRACTIONS
from fewbits.calibration.histogram import histogram_of
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel, PerTensor
from fewbits.numerics.qtensor import QParams, quantize
from fewbits.numerics.scaling import affine_from_amax, choose_affine
from fewbits.numerics.scheme import Scheme

RULE, MINMAX = RANGE_RULES["mse"], RANGE_RULES["minmax"]
FORMATS = [Int(bits=b, signed=s) for b in (2, 3, 4, 6, 8) for s in (True, False)]


def sample(kind: str, seed: int = 0, n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.standard_normal(n),
        "relu": np.maximum(rng.standard_normal(n), 0),
        "outlier": np.append(rng.standard_normal(n), 60.0),
        "laplace": rng.laplace(size=n),
        "swish": rng.standard_normal(n) * 3 / (1 + np.exp(-rng.standard_normal(n) * 3)),
        "negative": -np.abs(rng.standard_t(3, n)),
        "constant": np.full(n, 3.3),
        "uniform": rng.uniform(-1, 5, n),
    }[kind]
    return values.astype(np.float32)


KINDS = ["normal", "relu", "outlier", "laplace", "swish", "negative", "constant", "uniform"]


def rms(values: np.ndarray, low: float, high: float, fmt: Int, *, symmetric: bool) -> float:
    """Returns the root of the mean squared error that quantize makes with this range."""
    if symmetric:
        scale, zero = affine_from_amax(np.asarray(high), fmt)
    else:
        scale, zero = choose_affine(np.asarray(low), np.asarray(high), fmt)
    scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=symmetric)
    back = quantize(values, QParams(scheme=scheme, scale=np.asarray(scale), zero_point=np.asarray(zero))).dequantize()
    return float(np.sqrt(np.mean((back.astype(np.float64) - values) ** 2)))


# The distance to the nearest point of a grid changes by at most as much as the value does. A value lies within half a
# bin of its bin's middle: so the error that the rule sees and the true one differ by at most half a bin (root of the
# mean square, by the triangle inequality), and its choice is at most one bin worse than the best of its candidates.
# Scales are rounded to float32 behind its back: at most 2**8 * 2**-24 of the range, hidden in the 1.01.
def slack(values: np.ndarray) -> float:
    return histogram_of(values).width * 1.01


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_symmetric_range_is_the_best_of_its_candidates(kind, fmt):
    values = sample(kind)
    histogram = histogram_of(values)
    low, high = RULE.from_histogram(histogram, fmt, symmetric=True, parameter=None)
    assert low == -high
    candidates = _FRACTIONS * histogram.amax
    best = min(rms(values, -end, end, fmt, symmetric=True) for end in candidates)
    assert rms(values, low, high, fmt, symmetric=True) <= best + slack(values)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("kind", ["relu", "negative", "constant"])
def test_a_one_sided_range_is_the_best_of_its_candidates(kind, fmt):
    values = sample(kind)
    histogram = histogram_of(values)
    low, high = RULE.from_histogram(histogram, fmt, symmetric=False, parameter=None)
    ends = [(f * histogram.low, f * histogram.high) for f in _FRACTIONS]
    best = min(rms(values, a, b, fmt, symmetric=False) for a, b in ends)
    assert rms(values, low, high, fmt, symmetric=False) <= best + slack(values)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_never_worse_than_minmax_in_the_error_that_it_minimises(kind, fmt, symmetric, capsys):
    values = sample(kind, seed=1)
    histogram = histogram_of(values)
    errors = [
        rms(values, *rule.from_histogram(histogram, fmt, symmetric=symmetric, parameter=None), fmt, symmetric=symmetric)
        for rule in (RULE, MINMAX)
    ]
    with capsys.disabled():
        if kind in ("normal", "outlier") and fmt.bits in (4, 8) and not fmt.signed:
            ratio = errors[0] / errors[1]
            print(f"\n  mse/minmax rms, {kind} {fmt.name} {'sym' if symmetric else 'asym'}: {ratio:.3f}", end="")
    assert errors[0] <= errors[1] + slack(values)


@pytest.mark.parametrize("fmt", [Int(bits=4, signed=False), Int(bits=8, signed=False)], ids=lambda f: f.name)
@pytest.mark.parametrize("kind", ["normal", "laplace", "swish", "uniform", "outlier"])
def test_two_rounds_of_alternation_come_within_two_percent_of_all_pairs_of_ends(kind, fmt):
    # Alternation may stop at a pair that no single end improves; 2 % is the claim on smooth data, beside the bin.
    values = sample(kind, seed=2, n=500)
    histogram = histogram_of(values)
    chosen = rms(values, *RULE.from_histogram(histogram, fmt, symmetric=False, parameter=None), fmt, symmetric=False)
    best = min(
        rms(values, a * histogram.low, b * histogram.high, fmt, symmetric=False)
        for a in _FRACTIONS[::2]
        for b in _FRACTIONS[::2]
    )
    assert chosen <= 1.02 * best + slack(values)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "swish", "uniform"])
def test_more_bits_never_cost_accuracy(kind, symmetric):
    values = sample(kind, seed=3)
    histogram = histogram_of(values)
    errors = []
    for bits in range(2, 9):
        fmt = Int(bits=bits, signed=False)
        ends = RULE.from_histogram(histogram, fmt, symmetric=symmetric, parameter=None)
        errors.append(rms(values, *ends, fmt, symmetric=symmetric))
    assert all(finer <= coarser + slack(values) for coarser, finer in pairwise(errors))


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "swish"])
def test_a_grid_four_times_finer_wins_less_than_one_percent(kind):
    # What the step of one part in 64 is worth: the error is flat at the optimum.
    values = sample(kind, seed=4)
    histogram = histogram_of(values)
    for bits in (4, 8):
        fmt = Int(bits=bits, signed=True)
        chosen = rms(values, *RULE.from_histogram(histogram, fmt, symmetric=True, parameter=None), fmt, symmetric=True)
        finer = [k / 256 * histogram.amax for k in range(52, 257)]
        best = min(rms(values, -end, end, fmt, symmetric=True) for end in finer)
        assert chosen <= 1.01 * best + slack(values)


# --- weights --------------------------------------------------------------------------------------------------------


def squared(groups: np.ndarray, amax: np.ndarray, fmt: Int) -> np.ndarray:
    """Returns the summed squared error of each row under a scale of its own, float64."""
    scale, zero = affine_from_amax(amax, fmt)
    p = QParams(
        scheme=Scheme(format=fmt, granularity=PerChannel(0), symmetric=True),
        scale=np.asarray(scale)[:, None],
        zero_point=np.asarray(zero)[:, None],
    )
    return np.sum((quantize(groups, p).dequantize().astype(np.float64) - groups) ** 2, axis=1)


def weights(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((12, 90)) * 10.0 ** rng.integers(-6, 4, (12, 1))
    rows[0] = 0
    rows[1] = 0.25
    rows[2, 5] *= 30
    return rows.astype(np.float32)


# The rule works in units of the scale: a code's distance from its quotient q, where q carries 2**-24 of up to 2.9 * 127
# (the smallest fraction is 0.35): 4.4e-5 at each element, against distances of 0.29 in the mean (uniform): 3e-4 of a
# sum of squares. Clear of ties this bounds the difference between its sums and the float64 ones.
TOLERANCE = 1 + 3e-4


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_the_amax_of_weights_is_the_best_of_its_candidates(fmt):
    groups = weights(0)
    amax = np.abs(groups).max(axis=1)
    chosen = squared(groups, RULE.from_groups(groups, fmt, parameter=None), fmt)
    best = np.min([squared(groups, amax * np.float32(f), fmt) for f in _WEIGHT_FRACTIONS], axis=0)
    # A row that a candidate represents up to float32's own rounding has an error of 2**-48 of its squares.
    assert np.all(chosen <= best * TOLERANCE + np.sum(groups.astype(np.float64) ** 2, axis=1) * 2.0**-46)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS))
def test_weights_are_never_worse_than_with_minmax(seed, fmt):
    groups = weights(seed)
    mse, minmax = (squared(groups, rule.from_groups(groups, fmt, parameter=None), fmt) for rule in (RULE, MINMAX))
    assert np.all(mse <= minmax * TOLERANCE + np.sum(groups.astype(np.float64) ** 2, axis=1) * 2.0**-46)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e20, 3e38])
def test_the_choice_does_not_depend_on_the_units(scale):
    # Squares of 1e-30 underflow and squares of 1e20 overflow in float32; the choice must not notice.
    fmt = Int(bits=4, signed=True)
    shape = np.random.default_rng(0).standard_normal((3, 200))
    shape /= np.abs(shape).max()
    one = RULE.from_groups(shape.astype(np.float32), fmt, parameter=None)
    other = RULE.from_groups((shape * scale).astype(np.float32), fmt, parameter=None)
    if scale >= 1e-30:
        assert np.allclose(other / np.float32(scale), one, rtol=2.0**-22, atol=0)  # two roundings of float32 each
        assert np.all(one < 0.99), "the case has nothing to clip"
    assert np.all(other <= np.float32(scale))


def behind(values: np.ndarray, slope: float) -> np.ndarray:
    return np.where(values < 0, values * slope, values)


@pytest.mark.parametrize("kind", ["normal", "outlier", "laplace", "uniform", "relu", "negative"])
def test_with_a_slope_the_error_is_that_of_what_a_leaky_relu_makes_of_it(kind):
    """Against brute force on the raw values, of the end that is searched last, and against the rule without a slope."""
    values, fmt, slope = sample(kind), Int(bits=8, signed=False), 0.1
    histogram = histogram_of(values)

    def error(low: float, high: float) -> float:
        scale, zero = choose_affine(np.asarray(low), np.asarray(high), fmt)
        scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=False)
        params = QParams(scheme=scheme, scale=np.asarray(scale), zero_point=np.asarray(zero))
        back = quantize(values, params).dequantize().astype(np.float64)
        return float(np.sqrt(np.mean((behind(back, slope) - behind(values.astype(np.float64), slope)) ** 2)))

    chosen = RULE.from_histogram(histogram, fmt, symmetric=False, parameter=slope)
    plain = RULE.from_histogram(histogram, fmt, symmetric=False, parameter=None)
    # A bin's middle stands for its values (``slack``); the slope takes half a bin to less than half a bin. The last end
    # that is searched is the lower one, where there is one: given the upper, none is better.
    assert error(*chosen) <= error(*plain) + slack(values)
    if histogram.low < 0:
        assert error(*chosen) <= min(error(f * histogram.low, chosen[1]) for f in _FRACTIONS) + slack(values)
    else:
        assert error(*chosen) <= min(error(chosen[0], f * histogram.high) for f in _FRACTIONS) + slack(values)


def test_far_negative_values_are_cut_where_a_slope_makes_little_of_them():
    values = np.append(sample("normal"), [-12.0, 4.0]).astype(np.float32)
    histogram = histogram_of(values)
    low, high = RULE.from_histogram(histogram, Int(bits=8, signed=False), symmetric=False, parameter=0.1)
    plain_low, _ = RULE.from_histogram(histogram, Int(bits=8, signed=False), symmetric=False, parameter=None)
    assert plain_low < low < 0 < high


@pytest.mark.parametrize("text", ["mse:0", "mse:-0.1", "mse:1.5", "mse:x", "minmax:0.1"])
def test_what_is_no_slope_is_refused(text):
    with pytest.raises(UsageError, match="does not take the parameter"):
        parse_range_rule(text)


def test_weights_have_no_slope():
    with pytest.raises(UsageError, match="activations alone"):
        RULE.from_groups(np.ones((1, 4), np.float32), Int(bits=8, signed=True), parameter=0.1)
