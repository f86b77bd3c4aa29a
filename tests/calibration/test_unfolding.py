"""Windows of convolutions: sums of what each tap sees, against a loop, and what a sample of positions is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.calibration.unfolding import Window, unfolded


@st.composite
def windows(draw) -> tuple[Window, tuple[int, ...]]:
    space = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * space)
    padding = st.tuples(*[st.integers(0, 2)] * space)
    kernel, dilations = draw(each), draw(each)
    window = Window(
        kernel=kernel, strides=draw(each), before=draw(padding), after=draw(padding), dilations=dilations, group=1
    )
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    return window, tuple(r + draw(st.integers(0, 4)) for r in reach)


def by_hand(values: np.ndarray, window: Window) -> np.ndarray:
    """Walks over every position and every tap; what lies outside the values is zero."""
    space = values.shape[2:]
    totals = np.zeros((values.shape[1], *window.kernel))
    steps = zip(space, window.kernel, window.strides, window.before, window.after, window.dilations, strict=True)
    starts = [range(-b, n + a - (k - 1) * d, s) for n, k, s, b, a, d in steps]
    for start, tap in product(product(*starts), product(*map(range, window.kernel))):
        place = [p + t * d for p, t, d in zip(start, tap, window.dilations, strict=True)]
        if all(0 <= p < n for p, n in zip(place, space, strict=True)):
            totals[(slice(None), *tap)] += values[(slice(None), slice(None), *place)].sum(axis=0)
    return totals


@settings(max_examples=60, deadline=None)
@given(drawn=windows(), seed=st.integers(0, 99))
def test_sums_of_taps_are_those_of_a_walk_over_all_positions(drawn, seed):
    window, space = drawn
    values = np.random.default_rng(seed).integers(-255, 256, (2, 3, *space)).astype(np.float32)
    assert np.array_equal(window.sums(values), by_hand(values, window))
    axes = (0, *range(2, 2 + len(space)))
    assert np.array_equal(window.sums(values), window.windows(values).sum(axis=axes, dtype=np.float64))


@pytest.mark.parametrize("rows", [0, 5, 10_000])
def test_a_sample_is_of_the_rows_that_the_product_takes(rows):
    window = Window(kernel=(3, 3), strides=(2, 1), before=(1, 1), after=(1, 1), dilations=(1, 1), group=2)
    values = np.random.default_rng(0).integers(-9, 9, (2, 4, 6, 5)).astype(np.float32)
    total, positions, sample = unfolded(values, window, rows=rows, seed=(1,))
    assert positions == 2 * 3 * 5 and sample.shape == (min(rows, positions), 2, 18)
    every = unfolded(values, window, rows=positions, seed=(1,))[2]
    assert np.array_equal(every.sum(axis=0), total)
    known = {row.tobytes() for row in every.reshape(positions, -1)}
    assert {row.tobytes() for row in sample.reshape(len(sample), 36)} <= known
