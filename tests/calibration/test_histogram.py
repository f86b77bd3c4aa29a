import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits._base.errors import DataError
from fewbits.calibration.histogram import EMPTY, HALF_BINS, Histogram, histogram_of

# All of float32, but often small integers times powers of two, so that edges of bins are hit.
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.builds(lambda m, e: float(np.ldexp(np.float32(m), e)), st.integers(-64, 64), st.integers(-155, 120)),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, -1.0, 8192.0, -8192.0]),
).map(lambda v: float(np.float32(v)))
TENSORS = arrays(np.float32, st.integers(0, 40), elements=NUMBERS)


def brute_force(values: np.ndarray) -> dict[int, int]:
    """Returns the counts by bin number, in exact integers: floor(value / width) with a width that is a power of two."""
    used = [float(v) for v in values if v != 0]
    if not used:
        return {}
    top = max(abs(v) for v in used)
    exponent = -200
    while not top < 2.0**exponent:
        exponent += 1
    counts: dict[int, int] = {}
    for v in used:
        numerator, denominator = v.as_integer_ratio()
        shift = 13 - exponent
        numerator, denominator = (numerator << shift, denominator) if shift >= 0 else (numerator, denominator << -shift)
        place = numerator // denominator
        counts[place] = counts.get(place, 0) + 1
    return counts


def bits(histogram: Histogram) -> tuple:
    """Returns all that a histogram stores, signs of zero included."""
    ends = np.array([histogram.low, histogram.high]).tobytes()
    return histogram.exponent, histogram.zeros, ends, np.asarray(histogram.counts).tobytes()


@settings(max_examples=400, deadline=None)
@given(TENSORS)
@example(np.array([1e6, -1e-45], dtype=np.float32))  # -1e-45 / 128 underflows in float32: it must stay negative
@example(np.array([3.4028235e38, -1.1754944e-38], dtype=np.float32))
@example(np.array([-0.0, 0.0], dtype=np.float32))
def test_every_value_is_counted_in_its_bin(values):
    histogram = histogram_of(values)
    found = {int(i) - HALF_BINS: int(histogram.counts[i]) for i in np.flatnonzero(histogram.counts)}
    assert found == brute_force(values)
    assert histogram.zeros == int(np.sum(values == 0))
    assert histogram.total == values.size
    assert histogram.low == min(0.0, *values.tolist(), 0.0)
    assert histogram.high == max(0.0, *values.tolist(), 0.0)


@settings(max_examples=300, deadline=None)
@given(TENSORS, TENSORS, TENSORS)
@example(np.float32([-1e-45]), np.float32([1e6]), np.float32([0.0]))
@example(np.float32([-0.0]), np.float32([0.0]), np.float32([-0.0]))
def test_merging_is_exact_associative_and_commutative(a, b, c):
    x, y, z = histogram_of(a), histogram_of(b), histogram_of(c)
    whole = bits(histogram_of(np.concatenate([a, b, c])))
    assert bits(x.merge(y).merge(z)) == whole
    assert bits(x.merge(y.merge(z))) == whole
    assert bits(z.merge(y).merge(x)) == whole
    assert bits(y.merge(EMPTY)) == bits(EMPTY.merge(y)) == bits(y)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, st.integers(1, 60), elements=NUMBERS), st.randoms(use_true_random=False), st.integers(1, 60))
def test_order_and_size_of_batches_change_nothing(values, random, size):
    shuffled = values.tolist()
    random.shuffle(shuffled)
    merged = EMPTY
    for start in range(0, len(shuffled), size):
        merged = merged.merge(histogram_of(np.array(shuffled[start : start + size], dtype=np.float32)))
    assert bits(merged) == bits(histogram_of(values))


@given(TENSORS, st.integers(-20, 20))
def test_a_power_of_two_moves_the_exponent_and_nothing_else(values, shift):
    small = values[(np.abs(values) < 1e30) & (np.abs(values) > 1e-30)]
    one, other = histogram_of(small), histogram_of(small * np.float32(2.0**shift))
    assert np.array_equal(one.counts, other.counts)
    if small.size:
        assert other.exponent == one.exponent + shift


def test_a_tensor_larger_than_a_block_is_counted_like_its_parts():
    values = np.random.default_rng(0).standard_normal((3, 50_001)).astype(np.float32)
    values[0, 0] = 7.5
    parts = EMPTY
    for row in values:
        parts = parts.merge(histogram_of(row))
    assert bits(parts) == bits(histogram_of(values))
    assert bits(histogram_of(np.asfortranarray(values))) == bits(parts)


def test_float16_counts_like_the_same_values_in_float32():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    assert bits(histogram_of(values)) == bits(histogram_of(values.astype(np.float32)))


def test_float64_beyond_float32s_precision_stays_in_its_bin():
    # One step of float64 below a power of two: as float32 it would be the power itself, one bin past the last.
    values = np.nextafter(np.array([1.0, -1.0]), 0.0)
    histogram = histogram_of(values)
    assert histogram.total == 2
    assert (histogram.counts[0], histogram.counts[-1]) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(bad):
    values = np.zeros(100_000, dtype=np.float32)
    values[77_777] = bad
    with pytest.raises(DataError, match="tensor 'relu'") as caught:
        histogram_of(values, where="tensor 'relu'")
    assert caught.value.slug == "activation-nonfinite"


def test_memory_does_not_grow_with_what_has_flowed_through():
    # A histogram is 16,384 counts of 8 bytes. While merging there are two operands, a widened copy and the result;
    # counting a block takes a few arrays of 65,536: 4 MB bounds all, the tensor itself (16 MB) is the caller's.
    values = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    merged = histogram_of(values[:1000])
    tracemalloc.start()
    for _ in range(3):
        merged = merged.merge(histogram_of(values))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert merged.total == 12_001_000
    assert peak < 4_000_000, peak
