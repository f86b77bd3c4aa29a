"""Factors of channels: nothing is lost by them, and they are what their formulas say."""

from __future__ import annotations

import math

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbits.algorithms.transforms._channels import ChannelScale, grouped, powers_of_two
from fewbits.algorithms.transforms.equalization import equalizing_factors
from fewbits.algorithms.transforms.smoothing import (
    QUARTERS,
    Channels,
    Reading,
    least_error_factors,
    predicted_error,
    reading,
    smoothing_factors,
)

POSITIVE = st.floats(2.0**-19, 2.0**19, width=32)
STEPS = {"weight_steps": 127, "activation_steps": 255}


@given(POSITIVE)
def test_a_power_of_two_is_the_nearest_by_its_logarithm(value: float) -> None:
    found = float(powers_of_two(np.array([value], np.float32))[0])
    mantissa, _ = math.frexp(found)
    assert mantissa == 0.5
    # Nearest: value lies between found / sqrt(2) and found * sqrt(2); squares are exact in float64 up to one rounding.
    assert found * found / 2 <= value * value * (1 + 1e-7)
    assert value * value <= 2 * found * found * (1 + 1e-7)


def test_powers_of_two_end_where_float32_has_room() -> None:
    ends = powers_of_two(np.array([1e-30, 1e30], np.float32))
    assert ends.tolist() == [2.0**-20, 2.0**20]


@given(hnp.arrays(np.float32, 6, elements=POSITIVE))
def test_powers_of_two_are_the_same_in_every_library(values: np.ndarray) -> None:
    strict = powers_of_two(array_api_strict.asarray(values))
    assert np.asarray(strict).tobytes() == powers_of_two(values).tobytes()


@pytest.mark.torch
def test_factors_are_the_same_in_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    rng = np.random.default_rng(0)
    inputs, weights = np.exp(rng.normal(0, 3, (2, 64)))
    for quarters in QUARTERS:
        ours = smoothing_factors(inputs, weights, quarters=quarters)
        theirs = smoothing_factors(torch.tensor(inputs), torch.tensor(weights), quarters=quarters)
        assert theirs.numpy().tobytes() == ours.tobytes()
    layers = [np.exp(rng.normal(0, 2, (1, 5, 4))), np.exp(rng.normal(0, 2, (1, 3, 5)))]
    (ours,) = equalizing_factors(layers, [(0, (1,))])
    (theirs,) = equalizing_factors([torch.tensor(layer) for layer in layers], [(0, (1,))])
    assert theirs.numpy().tobytes() == ours.tobytes()


@pytest.mark.parametrize("quarters", QUARTERS)
def test_smoothing_is_its_formula_to_the_nearest_power_of_two(quarters: int) -> None:
    rng = np.random.default_rng(quarters)
    inputs, weights = np.exp(rng.normal(0, 2, (2, 50)))
    inputs[0] = 0.0
    weights[1] = 0.0
    found = smoothing_factors(inputs, weights, quarters=quarters)
    a = quarters / 4
    assert found[:2].tolist() == [1.0, 1.0]
    off = np.log2(found[2:]) - np.log2(inputs[2:] ** a / weights[2:] ** (1 - a))
    assert np.abs(off).max() <= 0.5 + 1e-6


def test_equalized_channels_have_weights_of_one_size_on_both_sides() -> None:
    rng = np.random.default_rng(1)
    # A chain of three layers, the middle one depthwise.
    layers = [np.exp(rng.normal(0, 2, shape)) for shape in ((1, 6, 4), (6, 1, 1), (1, 5, 6))]
    first, second = equalizing_factors(layers, [(0, (1,)), (1, (2,))])
    sizes = layers[0][0].max(axis=1) / first, layers[1][:, 0, 0] * first / second, layers[2][0].max(axis=0) * second
    # Each factor is off by at most sqrt(2), so two neighbours by at most sqrt(2) ** 3; and the sweeps end at 1 %.
    for left, right in ((sizes[0], sizes[1]), (sizes[1], sizes[2])):
        assert np.abs(np.log2(left / right)).max() <= 1.5 + 0.05
    unequal = np.abs(np.log2(layers[0][0].max(axis=1) / layers[1][:, 0, 0])).max()
    assert unequal > 3


def test_a_channel_without_weights_keeps_its_size() -> None:
    layers = [np.ones((1, 2, 3)), np.ones((1, 4, 2)) * 64]
    layers[1][:, :, 1] = 0
    (found,) = equalizing_factors(layers, [(0, (1,))])
    assert found.tolist() == [2.0**-3, 1.0]


@given(
    hnp.arrays(np.float32, (4, 3, 2, 2), elements=st.floats(-8, 8, width=16)),
    hnp.arrays(np.int8, 3, elements=st.integers(-6, 6)),
)
def test_what_is_folded_can_be_taken_back_to_the_bit(weight: np.ndarray, exponents: np.ndarray) -> None:
    scale = ChannelScale(factors=np.exp2(exponents.astype(np.float32)))
    back = ChannelScale(factors=1 / scale.factors)
    assert scale.is_exact(weight, axis=1)
    assert scale.is_exact_in(weight, axis=1)
    assert back.take(scale.take(weight, axis=1), axis=1).tobytes() == weight.tobytes()
    divided, bias = scale.fold(weight, None, axis=1)
    assert scale.take(divided, axis=1).tobytes() == weight.tobytes()
    assert bias.tolist() == [0, 0, 0]
    for channel in range(3):
        assert np.array_equal(divided[:, channel] * scale.factors[channel], weight[:, channel])


def test_weights_at_the_ends_of_float32_are_refused() -> None:
    tiny, huge = np.full((1, 1), 1e-38, np.float32), np.full((1, 1), 3e38, np.float32)
    up, down = (ChannelScale(factors=np.array([2.0**e], np.float32)) for e in (10, -10))
    assert not up.is_exact(tiny, axis=0)
    assert not down.is_exact_in(tiny, axis=1)
    with np.errstate(over="ignore"):
        assert not down.is_exact(huge, axis=0)
        assert not up.is_exact_in(huge, axis=1)


def test_groups_take_the_factors_of_their_own_channels() -> None:
    weight = np.ones((4, 2, 1, 1), np.float32)
    scale = ChannelScale(factors=np.array([1, 2, 4, 8], np.float32))
    taken = scale.take(weight, axis=1, groups=2)
    assert taken[:, :, 0, 0].tolist() == [[1, 2], [1, 2], [4, 8], [4, 8]]


def readings(seed: int, spread: float) -> list[Reading]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 10, 1, 1)).astype(np.float32)
    high = np.exp(rng.normal(0, spread, 10))
    return [reading(grouped(weight, axis=1), Channels(low=-high, high=high, power=high**2 / 3))]


@pytest.mark.parametrize("seed", range(5))
def test_the_predicted_error_is_that_of_rounding(seed: int) -> None:
    """Channels that the factors make alike, rounded for real: the squared error of the outputs, summed over outputs."""
    rng = np.random.default_rng(seed)
    own = np.exp2(rng.integers(-3, 4, 10)).astype(np.float32)
    factors = np.repeat(own, 4)  # ten channels, four taps of a kernel each
    weight = (rng.standard_normal((24, 40)) / factors).astype(np.float32)
    inputs = rng.uniform(-1, 1, (20_000, 40)) * factors
    taps = inputs.reshape(-1, 10, 4)
    seen = Channels(low=taps.min(axis=(0, 2)), high=taps.max(axis=(0, 2)), power=(taps**2).mean(axis=(0, 2)))
    told = predicted_error([reading(grouped(weight.reshape(24, 10, 2, 2), axis=1), seen)], own, **STEPS)
    scaled, small = weight * factors, inputs / factors
    rows = np.abs(scaled).max(axis=1, keepdims=True) / 127
    step = (small.max() - small.min()) / 255
    rounded = (np.rint(small / step) * step) @ (np.rint(scaled / rows) * rows).T
    error = ((rounded - inputs @ weight.T) ** 2).mean(axis=0).sum()
    # 960 errors of weights, whose squares have a relative variance of 0.8: five deviations are 0.15. Of each row's 40
    # weights the largest has no error: 0.025 less.
    assert told * (1 - 0.175) < error < told * 1.15


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_factors_never_promise_more_error(spread: float) -> None:
    for seed in range(5):
        each = readings(seed, spread)
        factors, after, before = least_error_factors(each, **STEPS)
        assert after == predicted_error(each, factors, **STEPS) <= before
        assert before == predicted_error(each, np.ones(10, np.float32), **STEPS)


def test_channels_of_opposite_size_are_brought_to_one() -> None:
    """Where x * s meets w / s, factors 1 / s undo it: what is left is the error without s, but for their rounding."""
    rng = np.random.default_rng(0)
    weight, opposite = rng.uniform(-1, 1, (16, 10)), 2.0 ** rng.integers(-5, 6, 10)
    plain = Channels(low=-np.ones(10), high=np.ones(10), power=np.ones(10) / 3)
    skewed = Channels(low=-opposite, high=opposite, power=opposite**2 / 3)
    _, _, wanted = least_error_factors([reading(grouped(weight, axis=1), plain)], **STEPS)
    _, after, before = least_error_factors([reading(grouped(weight / opposite, axis=1), skewed)], **STEPS)
    assert before > 50 * wanted
    assert after <= wanted * (1 + 1e-9)
