"""The best scale of a block against every assignment of codes there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.algorithms.block_weights import EXACT, EXACT_WEIGHTED, MSE, WEIGHTED, scales_of_blocks
from fewbits.algorithms.exact_scales import exact_scales
from fewbits.numerics.qtensor import quantize
from fewbits.numerics.scheme import parse_scheme


def least_error(values: np.ndarray, weights: np.ndarray, below: int, above: int) -> float:
    """Returns the least sum h (w - d q)^2 over d > 0 and all codes, by trying every one; float64."""
    least = float((weights * values**2).sum())
    for codes in product(range(-below, above + 1), repeat=len(values)):
        q = np.array(codes, dtype=np.float64)
        squares, products = float((weights * q * q).sum()), float((weights * q * values).sum())
        if squares > 0 and products > 0:
            least = min(least, float((weights * (values - products / squares * q) ** 2).sum()))
    return least


def error_at(values: np.ndarray, weights: np.ndarray, scale: float, below: int, above: int) -> float:
    q = np.clip(np.rint(values / scale), -below, above)
    return float((weights * (values - scale * q) ** 2).sum())


finite = st.floats(-4, 4, width=16)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(finite, min_size=1, max_size=5),
    below=st.integers(0, 3),
    above=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_assignment_of_codes_errs_less(values, below, above, seed):
    w = np.array(values, dtype=np.float32)
    h = np.random.default_rng(seed).uniform(0.1, 3, len(w)).astype(np.float32)
    scale, gain = exact_scales(w[None], h[None], np.array([below]), np.array([above]))
    wide, heavy = w.astype(np.float64), h.astype(np.float64)
    power = float((heavy * wide**2).sum())
    least = least_error(wide, heavy, below, above)
    # Both are sums of five products in float64; the quotient is squared, so some units in the last place of the power.
    assert power - gain[0] == pytest.approx(least, abs=2.0**-45 * max(power, 1e-300))
    if gain[0] > 0:
        # The scale is rounded to float32: at its optimum the error is flat, 2**-48 of the power beside what ties move.
        assert error_at(wide, heavy, float(scale[0]), below, above) <= least + 2.0**-22 * power


def test_what_is_zero_or_out_of_reach_gains_nothing_and_has_scale_one():
    values = np.array([[0, 0, 0], [-1, -2, -3]], np.float32)
    scale, gain = exact_scales(values, np.ones_like(values), np.array([8, 0]), np.array([7, 7]))
    assert scale.tolist() == [1, 1] and gain.tolist() == [0, 0]
    scale, gain = exact_scales(values, np.ones_like(values), np.array([0, 0]), np.array([0, 0]))
    assert scale.tolist() == [1, 1] and gain.tolist() == [0, 0]


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize(
    "name",
    [
        "int4 per-group(1, 32) symmetric",
        "int4 per-group(1, 32) symmetric, scale fp32",
        "uint4 per-group(1, 32) asymmetric",
        "int2 per-group(1, 16) symmetric",
        "uint2 per-group(1, 16) asymmetric",
    ],
)
def test_the_sweep_errs_in_no_block_more_than_the_grid_and_in_all_less(name, weighted):
    scheme = parse_scheme(name)
    values = np.random.default_rng(3).standard_normal((200, scheme.granularity.size)).astype(np.float32)
    weights = np.exp(np.random.default_rng(4).standard_normal(scheme.granularity.size)) if weighted else None
    heavy = np.ones(scheme.granularity.size) if weights is None else weights

    def errors(rule: str) -> np.ndarray:
        back = quantize(values, scales_of_blocks(values, scheme, rule, weights)).dequantize()
        return np.asarray((heavy * (values.astype(np.float64) - back) ** 2).sum(axis=1))

    grid, swept = errors(WEIGHTED if weighted else MSE), errors(EXACT_WEIGHTED if weighted else EXACT)
    print(f"{name}: {swept.sum() / grid.sum():.3f} of the grid's error")
    # A scale in float32 moves a value at a threshold to either code; both have the same error but for its rounding.
    power = (heavy * values.astype(np.float64) ** 2).sum(axis=1)
    assert np.all(swept <= grid + 2.0**-22 * power)
    assert swept.sum() < grid.sum()
