"""Rounding at random: the two neighbours and no others, with the value as the expectation, by the seed alone."""

from __future__ import annotations

from fractions import Fraction
from math import log

import numpy as np
import pytest

from fewbits.numerics import oracle
from fewbits.numerics.formats import FORMATS

LISTED = [name for name, fmt in FORMATS.items() if fmt.stored_bits <= 16]
STOCHASTIC = ["int4", "uint8", "mxint8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "fp6_e3m2", "nf4", "binary", "ternary"]
STOCHASTIC += ["e8m0", "ue4m3", "bf16", "fp16", "int16"]
SEEDS, COPIES = 16, 256
# Hoeffding: the mean of N draws, each low or high, misses its expectation by more than t * (high - low) with a
# probability of at most 2 * exp(-2 * N * t**2). t for 1e-9; the generator's 24 bits count for 2**-24 more.
SLACK = (log(2 / 1e-9) / (2 * SEEDS * COPIES)) ** 0.5 + 2.0**-24


@pytest.mark.parametrize("name", STOCHASTIC)
def test_random_rounding_gives_the_two_neighbours_with_the_value_as_the_mean(name):
    fmt = FORMATS[name]
    values, _ = oracle.listed(fmt)
    rng = np.random.default_rng(1)
    places = rng.integers(0, len(values) - 1, 12)
    between = [values[p] + Fraction(k, 13) * (values[p + 1] - values[p]) for k, p in enumerate(places.tolist(), 1)]
    some = np.array([*map(float, between), np.inf, -np.inf, 1e30, 0.0], dtype=np.float32)
    copies = np.repeat(some[:, None], COPIES, axis=1)
    drawn = np.stack([np.asarray(fmt.encode(copies, seed=seed)) for seed in range(SEEDS)])
    for place, value in enumerate(some.tolist()):
        low, high, share = oracle.neighbours(value, fmt)
        seen = drawn[:, place].ravel()
        assert set(seen.tolist()) <= {low, high}, (value, low, high)
        assert abs(np.mean(seen == high) - float(share)) <= SLACK or low == high, (value, share)


@pytest.mark.parametrize("name", LISTED)
def test_random_rounding_never_moves_a_value_of_the_format(name):
    fmt = FORMATS[name]
    grid = np.tile(np.asarray(fmt.grid), (3 if fmt.stored_bits > 8 else 30, 1))
    for seed in (0, 1, (2, 3)):
        assert np.array_equal(fmt.decode(fmt.encode(grid, seed=seed)), grid)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_random_rounding_repeats_itself_by_its_seed_alone(name):
    fmt = FORMATS[name]
    values = np.random.default_rng(0).uniform(max(fmt.min_value, -1e30), min(fmt.max_value, 1e30), 1000)
    values = values.astype(np.float32) * np.float32(2.0**-3)
    one, two = (np.asarray(fmt.encode(values, seed=5)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, fmt.encode(values, seed=6))
    assert not np.array_equal(fmt.encode(values, seed=(5, 0)), fmt.encode(values, seed=(5, 1)))
