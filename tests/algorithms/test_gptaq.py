"""GPTAQ: the aim solves its least-squares problem, scales are searched, and fresh inputs profit from both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import NumericsError, UsageError
from fewbits.algorithms.block_weights import check_block_rule
from fewbits.algorithms.rounders import ROUNDERS
from fewbits.algorithms.rounders.gptaq import FACTORS, RIDGE, aimed, codes_and_scales
from fewbits.algorithms.rounders.gptq import gptq_codes
from fewbits.numerics.qtensor import QParams, QTensor


def inputs(columns: int, *, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs of a float layer and of the same layer behind quantized ones, which err alike for alike inputs."""
    rng = np.random.default_rng(0)
    mix, wrong = rng.standard_normal((8, columns)), 0.3 * rng.standard_normal((8, columns))
    hidden = np.random.default_rng(seed).standard_normal((samples, 8))
    noise = 0.1 * np.random.default_rng(seed + 1).standard_normal((samples, columns))
    return hidden @ mix, hidden @ (mix + wrong) + noise


def weight(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(columns=st.integers(2, 24), seed=st.integers(0, 999), ridge=st.floats(0.01, 4))
def test_the_aim_is_the_least_squares_solution(columns, seed, ridge):
    values = weight(5, columns, seed)
    wanted, x = inputs(columns, samples=200, seed=seed)
    second = x.T @ x
    found = aimed(values, second, x.T @ wanted, ridge=ridge)
    # The ridge as rows of a larger least-squares problem, solved by another algorithm (SVD).
    root = np.sqrt(ridge * np.diagonal(second).mean())
    stacked = np.concatenate([x, root * np.eye(columns)])
    targets = np.concatenate([wanted @ values.T, root * values.T.astype(np.float64)])
    by_svd = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
    np.testing.assert_allclose(found, by_svd, rtol=1e-5, atol=1e-5 * np.abs(by_svd).max())


def test_equal_inputs_leave_the_weight_as_it_is():
    values = weight(6, 40)
    x = np.random.default_rng(3).integers(-255, 256, (300, 40)).astype(np.float64)
    assert np.abs(aimed(values, x.T @ x, x.T @ x, ridge=RIDGE) - values).max() <= 1e-6
    assert aimed(values, np.zeros((40, 40)), np.zeros((40, 40)), ridge=RIDGE) is values


def test_fresh_inputs_profit():
    """Judged on inputs that neither the aim nor the codes have seen."""
    columns = 64
    values = weight(32, columns)
    wanted, x = inputs(columns, samples=2000, seed=10)
    fresh_wanted, fresh = inputs(columns, samples=2000, seed=20)
    params = fewbits.quantize_array(values, "int4-channel").params
    second = x.T @ x

    def error(tensor: QTensor) -> float:
        return float(np.square(fresh_wanted @ values.T - fresh @ np.asarray(tensor.dequantize()).T).sum())

    plain = error(QTensor(codes=gptq_codes(values, second, params), params=params))
    aim = aimed(values, second, x.T @ wanted, ridge=RIDGE)
    aiming = error(QTensor(codes=gptq_codes(aim, second, params), params=params))
    both = error(codes_and_scales(aim, second, params))
    assert both < 0.95 * aiming < 0.95 * 0.8 * plain


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scheme=st.sampled_from(["int4-channel", "int3-channel", "int8-channel"]))
def test_each_row_has_the_best_of_nine_scales(seed, scheme):
    values = weight(7, 20, seed)
    x = np.random.default_rng(seed).standard_normal((100, 20))
    second = x.T @ x
    params = fewbits.quantize_array(values, scheme).params
    found = codes_and_scales(values, second, params)
    damped = second + 0.05 * np.diagonal(second).mean() * np.eye(20)
    errors = []
    for factor in FACTORS:
        scaled = (np.asarray(params.scale) * np.float32(factor)).astype(np.float32)
        tried = QParams(scheme=params.scheme, scale=scaled, zero_point=params.zero_point)
        tensor = QTensor(codes=gptq_codes(values, second, tried), params=tried)
        off = values.astype(np.float64) - np.asarray(tensor.dequantize())
        errors.append(((off @ damped) * off).sum(axis=1))
    off = values.astype(np.float64) - np.asarray(found.dequantize())
    np.testing.assert_allclose(((off @ damped) * off).sum(axis=1), np.min(errors, axis=0), rtol=1e-9)
    found.params.check_fits(values.shape)
    for row in range(7):  # codes are those of the row's own scale, made by themselves
        alone = QParams(scheme=params.scheme, scale=found.scale[row : row + 1], zero_point=found.zero_point[:1])
        assert np.array_equal(gptq_codes(values[row : row + 1], second, alone), found.codes[row : row + 1])


def test_one_scale_for_all_rows_stays():
    values, x = weight(6, 16), np.random.default_rng(0).standard_normal((80, 16))
    params = fewbits.quantize_array(values, "int4-tensor").params
    found = codes_and_scales(values, x.T @ x, params)
    assert np.array_equal(found.scale, params.scale)
    assert np.array_equal(found.codes, gptq_codes(values, x.T @ x, params))


def test_the_catalog_has_it_and_blocks_do_not():
    values, x = weight(6, 16), np.random.default_rng(0).standard_normal((80, 16))
    params = fewbits.quantize_array(values, "int4-channel").params
    found = ROUNDERS["gptaq"].choose(values, params, x.T @ x)
    assert found.same(codes_and_scales(values, x.T @ x, params))
    assert ROUNDERS["gptaq"].choose(values, params).same(ROUNDERS["nearest"].choose(values, params))
    with pytest.raises(UsageError, match="use 'gptq' or 'nearest'"):
        check_block_rule("mse", "gptaq")


@pytest.mark.parametrize("shapes", [((3, 3), (4, 4)), ((4, 4), (3, 3))])
def test_moments_that_do_not_fit_are_refused(shapes):
    with pytest.raises(NumericsError, match="do not fit a weight of shape"):
        aimed(weight(2, 4), np.ones(shapes[0]), np.ones(shapes[1]), ridge=1.0)


def test_moments_that_are_not_finite_are_refused():
    with pytest.raises(NumericsError, match="not finite"):
        aimed(weight(2, 4), np.eye(4), np.full((4, 4), np.nan), ridge=1.0)
