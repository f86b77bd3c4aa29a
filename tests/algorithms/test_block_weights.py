"""Weights in blocks: the search for scales against brute force, and which error each rule makes small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import UsageError
from fewbits.algorithms.block_weights import BLOCK_RULES, check_block_rule, quantize_blocks, scales_of_blocks
from fewbits.numerics.qtensor import QParams, QTensor, quantize
from fewbits.numerics.scheme import parse_scheme

SCHEMES = [
    f"{'u' if asym else ''}int{bits} per-group(1, {size}) {'a' if asym else ''}symmetric"
    for bits in (2, 4, 8)
    for size in (16, 32)
    for asym in (False, True)
] + [f"int{bits} per-group(1, 32) symmetric, scale fp32" for bits in (2, 4, 8)]
each_scheme = pytest.mark.parametrize("scheme", [parse_scheme(s) for s in SCHEMES], ids=SCHEMES)


def matrix(rows: int = 12, columns: int = 100, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    values[1] = 0
    values[2] *= np.float32(1e-30)
    values[3] *= np.float32(1e30)
    values[4, 5] = 40
    values[5] = np.abs(values[5])
    return values


def importance(columns: int = 100) -> np.ndarray:
    return np.exp(2 * np.random.default_rng(3).standard_normal(columns))


def block_errors(values: np.ndarray, params: QParams, weights: np.ndarray) -> np.ndarray:
    """Returns sum_k h_k (w_k - q_k)^2 of each block over its largest square, [rows, blocks]."""
    size = params.scheme.granularity.size
    off = (values.astype(np.float64) - quantize(values, params).dequantize()) ** 2 * weights
    pad = ((0, 0), (0, -values.shape[1] % size))
    largest = np.pad(np.abs(values.astype(np.float64)), pad).reshape(len(values), -1, size).max(axis=2)
    sums = np.pad(off, pad).reshape(len(values), -1, size).sum(axis=2)
    return sums / np.where(largest == 0, 1, largest) ** 2


def test_scales_that_may_be_negative_give_the_larger_side_the_code_more():
    scheme = parse_scheme("int4 per-group(1, 32) symmetric, scale fp32")
    values = np.random.default_rng(8).standard_normal((500, 32)).astype(np.float32)
    for rule in ("minmax", "mse"):
        params, plain = scales_of_blocks(values, scheme, rule), scales_of_blocks(values, parse_scheme(SCHEMES[6]), rule)
        assert (params.scale < 0).any() and (params.scale > 0).any()
        ones = np.ones(32)
        assert block_errors(values, params, ones).sum() < 0.95 * block_errors(values, plain, ones).sum()
    full = scales_of_blocks(values, scheme, "minmax")
    assert np.array_equal(quantize(values, full).codes.min(axis=1), np.full(500, -8))


@pytest.mark.parametrize("scheme", [parse_scheme(s) for s in SCHEMES if "scale" not in s], ids=str)
def test_minmax_is_what_an_array_by_itself_is_quantized_with(scheme):
    values = matrix()
    assert scales_of_blocks(values, scheme, "minmax").same(fewbits.quantize_array(values, scheme).params)


@each_scheme
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_the_search_errs_in_no_block_more_than_the_full_range(scheme, weighted):
    values = matrix()
    weights = importance() if weighted else np.ones(100)
    full = block_errors(values, scales_of_blocks(values, scheme, "minmax"), weights)
    rule = "weighted-mse" if weighted else "mse"
    searched = block_errors(values, scales_of_blocks(values, scheme, rule, weights), weights)
    # The search sees quotients in float32, to 2**(bits - 24) of a step; errors are 0.29 steps in the root of the mean
    # square, so that squared ones are seen to 2 * 2**(bits - 24) / 0.29 of themselves.
    assert np.all(searched <= full * (1 + 2.0 ** (scheme.format.stored_bits - 21)) + 1e-12)
    assert searched.sum() < full.sum()


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("name", [s for s in SCHEMES if "int8" not in s])
def test_in_few_bits_the_search_comes_near_the_best_of_two_thousand_scales(name, weighted):
    # Brute force over parts of the range. The search tries 16 of them, but gives each its best scale: that makes up for
    # the grid, and the claim is that what is left is a small part of what the full range loses.
    scheme = parse_scheme(name)
    size = scheme.granularity.size
    values = np.random.default_rng(5).standard_normal((40, size)).astype(np.float32)
    weights = np.exp(np.random.default_rng(3).standard_normal(size)) if weighted else np.ones(size)
    full = block_errors(values, scales_of_blocks(values, scheme, "minmax"), weights).sum()
    found = block_errors(values, scales_of_blocks(values, scheme, "weighted-mse", weights), weights).sum()
    every = np.full((40, 1), np.inf)
    for part in np.linspace(0.1, 1.1, 2000):
        tried = scales_of_blocks(values * np.float32(part), scheme, "minmax")
        every = np.minimum(every, block_errors(values, tried, weights))
    best = every.sum()
    print(f"full range {full / best:.2f}, search {found / best:.2f} of brute force")
    assert found - best < (full - best) / 2


@each_scheme
def test_each_rule_is_best_at_its_own_error(scheme):
    values, weights = matrix(columns=96)[6:], importance(96)
    alike, weighted = scales_of_blocks(values, scheme, "mse"), scales_of_blocks(values, scheme, "weighted-mse", weights)
    ones = np.ones(96)
    assert block_errors(values, alike, ones).sum() < block_errors(values, weighted, ones).sum()
    assert block_errors(values, weighted, weights).sum() < block_errors(values, alike, weights).sum()


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70)),
    power=st.integers(-100, 100),
    rule=st.sampled_from(BLOCK_RULES),
    seed=st.integers(0, 2**32 - 1),
)
def test_scales_follow_a_power_of_two_and_belong_to_the_scheme(scheme, shape, power, rule, seed):
    parsed = parse_scheme(scheme)
    rng = np.random.default_rng(seed)
    values, weights = rng.standard_normal(shape).astype(np.float32), rng.uniform(0, 3, shape[1])
    one = scales_of_blocks(values, parsed, rule, weights)
    other = scales_of_blocks(np.ldexp(values, power), parsed, rule, weights)
    one.check_fits(shape)
    assert np.array_equal(np.ldexp(one.scale, power), other.scale)
    assert np.array_equal(one.zero_point, other.zero_point)


def test_inputs_that_were_never_seen_weigh_nothing_and_all_of_them_alike():
    scheme, values = parse_scheme(SCHEMES[0]), matrix()
    zeros = np.zeros(100)
    assert scales_of_blocks(values, scheme, "weighted-mse", zeros).same(scales_of_blocks(values, scheme, "mse"))
    # A factor of the importance changes nothing.
    weights = importance()
    assert scales_of_blocks(values, scheme, "weighted-mse", weights * 2.0**40).same(
        scales_of_blocks(values, scheme, "weighted-mse", weights)
    )


@pytest.mark.parametrize("rounder", ["nearest", "gptq"])
@pytest.mark.parametrize("rule", BLOCK_RULES)
def test_blocks_along_the_first_axis_are_those_of_the_turned_matrix(rule, rounder):
    values = np.ascontiguousarray(matrix()[6:].T)
    x = np.random.default_rng(2).standard_normal((300, 100))
    moment = x.T @ x
    first = parse_scheme("uint4 per-group(0, 32) asymmetric")
    last = parse_scheme("uint4 per-group(1, 32) asymmetric")
    one = quantize_blocks(values, first, rule=rule, rounder=rounder, second_moment=moment)
    other = quantize_blocks(values.T, last, rule=rule, rounder=rounder, second_moment=moment)
    assert isinstance(one, QTensor) and one.scheme == first
    assert np.array_equal(one.codes, other.codes.T)
    assert np.array_equal(one.scale, other.scale.T)
    assert np.array_equal(one.dequantize(), other.dequantize().T)


def test_other_rules_and_rounders_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'weighted-mse'"):
        check_block_rule("weigted-mse", "nearest")
    with pytest.raises(UsageError, match="did you mean 'gptq'"):
        check_block_rule("mse", "gtpq")
    check_block_rule("minmax", "gptq")
