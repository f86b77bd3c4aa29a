"""Codebooks learned from a tensor: against all partitions there are, and against the fixed ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits._base.arrays import same_array
from fewbits._base.errors import NumericsError
from fewbits.algorithms.codebooks import kmeans, quantize_kmeans


def error(values: np.ndarray, means: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * np.abs(values[:, None] - means[None, :]).min(axis=1) ** 2).sum())


def best_partition(values: np.ndarray, weights: np.ndarray, count: int) -> float:
    """Returns the least error over all ways to cut the sorted values into so many intervals."""
    order = np.argsort(values)
    points, heavy, least = values[order], weights[order], np.inf
    for cut in combinations(range(1, len(points)), count - 1):
        parts = zip(np.split(points, cut), np.split(heavy, cut), strict=True)
        least = min(least, sum(float((h * (p - np.average(p, weights=h)) ** 2).sum()) for p, h in parts))
    return least


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=9),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_partition_of_few_values_errs_less(values, count, seed):
    array = np.array(values, dtype=np.float64)
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(array))
    means = kmeans(array, count, weights=weights)
    assert len(means) == min(count, len(np.unique(array)))
    assert np.all(np.diff(means) > 0)
    least = best_partition(array, weights, min(count, len(array)))
    # Differences of running sums of up to nine squares of at most 16 each, in float64.
    assert error(array, means, weights) <= least + 2.0**-40


def test_many_values_settle_where_each_mean_is_that_of_its_own():
    values = np.random.default_rng(0).standard_normal(20_000)
    means = kmeans(values, 16)
    nearest = np.abs(values[:, None] - means[None, :]).argmin(axis=1)
    own = np.array([values[nearest == k].mean() for k in range(16)])
    assert np.abs(own - means).max() < 1e-3
    # The optimal 16 levels of a normal density: mean squared error 0.009497 (Max 1960, table I).
    assert error(values, means, np.ones(len(values))) / len(values) == pytest.approx(0.009497, rel=0.03)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [None, 16, 64])
def test_a_learned_codebook_errs_less_than_integers_and_nf4_of_the_same_scales(bits, size):
    values = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    learned = quantize_kmeans(values, bits=bits, group_size=size)
    assert learned.codes.max() < 2**bits
    ours = float(np.square(learned.dequantize() - values).mean())
    fixed = [f"int{bits}"] + (["nf4"] if bits == 4 else [])
    for name in fixed:
        shorthand = f"{name}-tensor" if size is None else f"{name}-g{size}"
        other = float(np.square(fewbits.quantize_array(values, shorthand).dequantize() - values).mean())
        print(f"{shorthand}: learned {ours:.5f}, fixed {other:.5f}")
        assert ours < other


@pytest.mark.parametrize("size", [None, 5])
def test_values_that_the_codebook_can_hold_come_back(size):
    values = np.array([[0.5, -0.25, 1, 0.5, 1], [2, -0.5, 1, 2, 0]], np.float32)
    assert np.array_equal(quantize_kmeans(values, bits=4, group_size=size).dequantize(), values)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30])
def test_a_tensor_of_one_value_has_a_codebook_too(value):
    values = np.full((2, 8), value, np.float32)
    assert np.array_equal(quantize_kmeans(values, bits=2, group_size=4).dequantize(), values)


@settings(max_examples=30, deadline=None)
@given(power=st.integers(-60, 60), seed=st.integers(0, 2**32 - 1), bits=st.integers(1, 4))
def test_a_power_of_two_moves_the_scales_alone(power, seed, bits):
    values = np.random.default_rng(seed).standard_normal((4, 24)).astype(np.float32)
    one, other = (quantize_kmeans(v, bits=bits, group_size=8) for v in (values, np.ldexp(values, power)))
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(np.ldexp(one.scale, power), other.scale)


def test_codes_are_the_same_on_array_api_strict():
    import array_api_strict as strict

    values = np.random.default_rng(5).standard_normal((8, 32)).astype(np.float32)
    ours, theirs = (quantize_kmeans(v, bits=3, group_size=16) for v in (values, strict.asarray(values)))
    assert same_array(ours.codes, theirs.codes) and same_array(ours.scale, theirs.scale)


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(NumericsError) as caught:
        quantize_kmeans(np.ones(4, np.float32), bits=9)
    assert caught.value.slug == "codebook"
    with pytest.raises(NumericsError) as caught:
        quantize_kmeans(np.array([1, np.nan], np.float32), bits=4)
    assert caught.value.slug == "nonfinite-values"
