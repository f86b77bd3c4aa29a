from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits.algorithms.ranges import RANGE_RULES
from fewbits.calibration.histogram import histogram_of
from fewbits.numerics.format import Int

RULE = RANGE_RULES["percentile"]
U8 = Int(bits=8, signed=False)
SHARES = st.one_of(
    st.sampled_from([55.0, 99.0, 99.9, 99.99, 99.999, 100.0, 57.0, 70.0]), st.integers(51, 100).map(float)
)


def exact(values: np.ndarray, share: float) -> float:
    """Returns the smallest magnitude that at least share percent of the values do not exceed, counted in fractions."""
    ordered = sorted(abs(float(v)) for v in values)
    need = ceil(Fraction(str(share)) / 100 * len(ordered))
    return ordered[max(need, 1) - 1]


@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32)), SHARES)
@example(np.arange(1, 101, dtype=np.float32), 55.0)  # 55 / 100 * 100 is 55.00000000000001
@example(np.arange(1, 101, dtype=np.float32), 57.0)  # 57 / 100 * 100 is 56.99999999999999
def test_the_cut_of_weights_is_the_exact_percentile(values, share):
    assert RULE.from_groups(values[None, :], U8, parameter=share).tolist() == [exact(values, share)]


@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32)), SHARES)
@example(np.arange(1, 101, dtype=np.float32), 55.0)
@example(np.zeros(50, dtype=np.float32), 99.0)
def test_the_cut_of_activations_is_the_percentile_and_at_most_a_bin_more(values, share):
    histogram = histogram_of(values)
    low, high = RULE.from_histogram(histogram, U8, symmetric=True, parameter=share)
    true = exact(values, share)
    assert low == -high
    assert true <= high <= true + histogram.width
    low, wide = RULE.from_histogram(histogram, U8, symmetric=False, parameter=share)
    assert (low, wide) == (max(histogram.low, -high), min(histogram.high, high))


def test_a_hundred_percent_is_minmax():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    histogram = histogram_of(values)
    for symmetric in (False, True):
        ends = [
            RANGE_RULES[name].from_histogram(histogram, U8, symmetric=symmetric, parameter=share)
            for name, share in (("percentile", 100.0), ("minmax", None))
        ]
        assert ends[0] == ends[1]


@pytest.mark.parametrize("share", [0.0, 50.0, 100.1, float("nan"), float("inf"), -99.0])
def test_a_share_that_is_no_percentile_is_not_accepted(share):
    assert not RULE.accepts(share)
