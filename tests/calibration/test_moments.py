"""Second moments: what they sum, that shards and merges tell the same, and the error that follows from them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.calibration.moments import SecondMoment, bytes_of


def inputs(rows: int = 200, columns: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def seen(*parts: np.ndarray, columns: int = 12) -> SecondMoment:
    moment = SecondMoment(columns)
    for part in parts:
        moment.add(part)
    return moment


def test_it_is_the_sum_of_all_outer_products():
    x = inputs(rows=40)
    by_hand = np.zeros((12, 12))
    for row in x.astype(np.float64):
        for i in range(12):
            for j in range(12):
                by_hand[i, j] += row[i] * row[j]
    # n additions in any order: n * 2**-53 of the sum of magnitudes (Higham 2002, 4.2).
    bound = 40 * 2.0**-53 * (np.abs(x.astype(np.float64)).T @ np.abs(x.astype(np.float64)))
    assert np.all(np.abs(seen(x).total - by_hand) <= bound)
    assert seen(x).rows == 40


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=5, unique=True), seed=st.integers(0, 1000))
def test_shards_and_merges_tell_the_same_up_to_the_last_bits(cuts, seed):
    x = inputs(seed=seed)
    parts = np.split(x, sorted(cuts))
    one, shards, merged = seen(x), seen(*parts), SecondMoment(12)
    for part in reversed(parts):
        merged.merge(seen(part))
    bound = 2 * 200 * 2.0**-53 * (np.abs(x.astype(np.float64)).T @ np.abs(x.astype(np.float64)))
    for other in (shards, merged):
        assert other.rows == one.rows == 200
        assert np.all(np.abs(other.total - one.total) <= bound)


def test_integers_are_summed_exactly_in_any_order():
    x = np.random.default_rng(1).integers(-255, 256, (500, 12)).astype(np.float32)
    shuffled = x[np.random.default_rng(2).permutation(500)]
    assert np.array_equal(seen(x).total, seen(shuffled[:77], shuffled[77:]).total)


def test_axes_before_the_last_are_rows():
    x = inputs(rows=24)
    assert np.array_equal(seen(x.reshape(2, 3, 4, 12)).total, seen(x).total)


def test_what_is_not_finite_shows():
    for bad in (np.nan, np.inf, -np.inf):
        x = inputs()
        x[7, 3] = bad
        assert not seen(x).finite
    assert seen(inputs()).finite


def test_the_output_error_is_that_of_the_outputs_themselves():
    x, error = inputs(), np.random.default_rng(4).standard_normal((5, 12)).astype(np.float32)
    outputs = x.astype(np.float64) @ error.T.astype(np.float64)
    # Two ways to sum 200 * 5 * 12 * 12 products: relative 1e-12 is thousands of float64's last places.
    assert np.isclose(seen(x).output_error(error), (outputs**2).sum(), rtol=1e-12)


def test_memory_is_that_of_one_matrix_however_many_rows_flow():
    assert seen(*[inputs()] * 10).total.nbytes == bytes_of(12) == 8 * 12 * 12
