"""GPTQ: the theorem it rests on, a naive scalar loop of the paper's own form, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import NumericsError
from fewbits.algorithms.rounders import ROUNDERS
from fewbits.algorithms.rounders.gptq import feedback, gptq_codes
from fewbits.numerics.qtensor import QParams, QTensor

SCHEMES = ["int4-g32", "uint4-g32-asym", "int2-g16", "uint2-g16-asym", "int8-channel", "int3-tensor", "fp4_e2m1-g16"]


def inputs(columns: int, *, samples: int = 400, seed: int = 0) -> np.ndarray:
    """Correlated inputs, some much larger than others, as behind a layer of a real model."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, max(2, columns // 4))) @ rng.standard_normal((max(2, columns // 4), columns))
    return (mixed + 0.3 * rng.standard_normal((samples, columns))) * np.exp(rng.standard_normal(columns))


def weight(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def loss(values: np.ndarray, codes: np.ndarray, params: QParams, moment: np.ndarray) -> float:
    """tr(E H E^T), the output error over the samples."""
    error = values.astype(np.float64) - QTensor(codes=codes, params=params).dequantize()
    return float(np.sum((error @ moment) * error))


def by_the_paper(values: np.ndarray, moment: np.ndarray, params: QParams, damping: float) -> np.ndarray:
    """GPTQ as its paper writes it, a scalar at a time: U = chol(H^-1)^T, w_j -= (w_k - q_k) / U_kk * U_kj."""
    rows, columns = values.shape
    moment = moment.copy()
    dead = np.diagonal(moment) == 0
    moment[dead, dead] = np.diagonal(moment)[~dead].mean() if not dead.all() else 1.0
    order = sorted(range(columns), key=lambda k: -moment[k, k] if not dead[k] else 0.0)
    mean = np.diagonal(moment)[~dead].mean() if not dead.all() else 1.0
    damped = moment + damping * mean * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    scale = np.broadcast_to(params.scheme.granularity.expand(params.scale, values.shape), values.shape)
    zero = np.broadcast_to(params.scheme.granularity.expand(params.zero_point, values.shape), values.shape)
    fmt = params.scheme.format
    codes = np.empty(values.shape, dtype=fmt.code_dtype)
    for n in range(rows):
        work = [float(values[n, k]) for k in order]
        for i, k in enumerate(order):
            wanted = np.float32(work[i])
            if fmt.name.startswith("fp"):
                codes[n, k] = fmt.nearest(np.array([wanted / scale[n, k]]))[0]
                back = float(fmt.decode(codes[n, k : k + 1])[0] * scale[n, k])
            else:
                place = np.rint(wanted / scale[n, k]) + zero[n, k]
                codes[n, k] = int(min(max(place, fmt.min_value), fmt.max_value))
                back = float((np.float32(codes[n, k]) - zero[n, k]) * scale[n, k])
            passed = (work[i] - back) / upper[i, i]
            for j in range(i + 1, columns):
                work[j] -= passed * upper[i, j]
    return codes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("columns", [1, 31, 33, 96])
def test_codes_are_those_of_the_papers_scalar_loop(scheme, columns):
    # The two forms differ by float64's roundings alone; a value that lies that near to a tie is not in this data.
    values, x = weight(6, columns), inputs(columns)
    q = fewbits.quantize_array(values, scheme)
    moment = x.T @ x
    assert np.array_equal(gptq_codes(values, moment, q.params), by_the_paper(values, moment, q.params, 0.01))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gptq_lowers_output_error_and_raises_weight_error(scheme):
    values, x = weight(48, 192), inputs(192)
    moment = x.T @ x
    q = fewbits.quantize_array(values, scheme)
    codes = gptq_codes(values, moment, q.params)
    nearest, fed = loss(values, q.codes, q.params, moment), loss(values, codes, q.params, moment)
    print(f"{scheme}: output error {fed / nearest:.3f} of that of nearest codes")
    # Nearest codes have the least error of the weight that there is, for every norm: each element has its own least.
    eye = np.eye(192)
    assert fed < nearest
    assert loss(values, codes, q.params, eye) > loss(values, q.codes, q.params, eye)


def test_the_output_error_is_the_sum_that_the_theorem_says():
    # tr(E H E^T) = sum_k D_kk |E M_k|^2, and nothing saturates: each |E M_k| is at most half a step.
    values, x = weight(64, 128), inputs(128)
    passed = feedback(x.T @ x, damping=0.01)
    q = fewbits.quantize_array(values, "int8-g32")
    params = QParams(scheme=q.scheme, scale=q.scale * np.float32(4), zero_point=q.zero_point)  # room: nothing saturates
    error = values.astype(np.float64) - QTensor(codes=gptq_codes(values, passed, params), params=params).dequantize()
    step = params.scheme.granularity.expand(params.scale, values.shape)
    mixed = error[:, passed.order] @ passed.upper
    # float32 holds what is rounded to 2**-24 of it, at most 128 steps: 2**-17 of a step; and so its quotient.
    assert np.all(np.abs(mixed) <= step[:, passed.order] * (0.5 + 2.0**-15))


@settings(max_examples=40, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_a_diagonal_moment_codes_are_the_nearest(scheme, shape, seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-8, 8)).astype(np.float32)
    q = fewbits.quantize_array(values, scheme)
    moment = np.diag(rng.choice([0.0, 1e-30, 1.0, 3.7, 1e30], shape[1]))
    assert np.array_equal(gptq_codes(values, moment, q.params), q.codes)


def test_inputs_that_were_never_seen_get_the_nearest_codes():
    values, x = weight(8, 64), inputs(64)
    x[:, 10:30] = 0
    q = fewbits.quantize_array(values, "int4-g32")
    codes = gptq_codes(values, x.T @ x, q.params)
    assert feedback(x.T @ x).dead == 20
    assert np.array_equal(codes[:, 10:30], q.codes[:, 10:30])
    assert not np.array_equal(codes, q.codes)


def test_weights_on_the_grid_keep_their_codes_under_any_moment():
    q = fewbits.quantize_array(weight(16, 96), "uint4-g32-asym")
    x = inputs(96)
    assert np.array_equal(gptq_codes(q.dequantize(), x.T @ x, q.params), q.codes)


def test_fewer_samples_than_inputs_and_repeated_inputs_are_no_obstacle():
    values, x = weight(8, 96), inputs(96, samples=5)
    x[:, 50] = x[:, 51]
    q = fewbits.quantize_array(values, "int4-g32")
    moment = x.T @ x
    assert loss(values, gptq_codes(values, moment, q.params), q.params, moment) < loss(
        values, q.codes, q.params, moment
    )


def test_a_moment_that_is_none_is_damped_until_it_will_do():
    # Not positive semidefinite, as a moment summed in too few bits may be: eigenvalues 3 and -1, of mean diagonal 1.
    found = feedback(np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert 1 < found.damping <= 2.56
    # And beyond ten times the mean, eigenvalues are raised.
    hopeless = feedback(np.array([[1.0, 50.0], [50.0, 1.0]]))
    assert hopeless.damping == float("inf") and np.isfinite(hopeless.upper).all()


def test_rows_do_not_depend_on_each_other(monkeypatch):
    import fewbits.algorithms.rounders.gptq as module

    values, x = weight(20, 64), inputs(64)
    q = fewbits.quantize_array(values, "int4-g32")
    whole = gptq_codes(values, x.T @ x, q.params)
    monkeypatch.setattr(module, "_CHUNK", 64 * 3)
    assert np.array_equal(gptq_codes(values, x.T @ x, q.params), whole)


def test_a_factor_of_the_moment_changes_nothing():
    values, x = weight(8, 64), inputs(64)
    q = fewbits.quantize_array(values, "int4-g32")
    moment = x.T @ x
    assert np.array_equal(gptq_codes(values, moment * 2.0**-60, q.params), gptq_codes(values, moment, q.params))


def test_the_catalogs_entry_rounds_with_a_moment_and_without():
    values, x = weight(8, 64), inputs(64)
    q = fewbits.quantize_array(values, "int4-g32")
    rounder = ROUNDERS["gptq"]
    assert rounder.choose(values, q.params).same(q)
    fed = rounder.choose(values, q.params, x.T @ x)
    assert np.array_equal(fed.codes, gptq_codes(values, x.T @ x, q.params)) and not fed.same(q)


@pytest.mark.parametrize(
    "moment",
    [np.eye(3), np.full((4, 4), np.nan), np.ones((4, 3)), np.ones(4), -np.eye(4)],
    ids=["other-size", "nan", "not-square", "vector", "negative"],
)
def test_a_moment_that_does_not_fit_is_refused(moment):
    q = fewbits.quantize_array(weight(2, 4), "int4-g32")
    with pytest.raises(NumericsError) as caught:
        gptq_codes(weight(2, 4), moment, q.params)
    assert caught.value.slug == "second-moment"


def test_codes_come_back_in_the_library_of_the_weight():
    strict = pytest.importorskip("array_api_strict")
    values, x = weight(4, 32), inputs(32)
    q = fewbits.quantize_array(values, "int4-g32")
    codes = gptq_codes(strict.asarray(values), x.T @ x, q.params)
    assert isinstance(codes, type(strict.asarray(values)))
    assert np.array_equal(np.asarray(codes), gptq_codes(values, x.T @ x, q.params))
