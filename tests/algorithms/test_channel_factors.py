"""Factors of channels: nothing is lost by them, and they are what their formulas say."""

from __future__ import annotations

from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbits.algorithms.transforms._channels import ChannelScale, grouped, inside_float32
from fewbits.algorithms.transforms.equalization import equalizing_factors
from fewbits.algorithms.transforms.smoothing import (
    QUARTERS,
    Channels,
    Reading,
    Rounding,
    least_error_factors,
    predicted_error,
    reading,
    smoothing_factors,
)

POSITIVE = st.floats(2.0**-19, 2.0**19, width=32)
STEPS = {"weight_steps": 127, "activation_steps": 255}


def test_factors_end_where_float32_has_room() -> None:
    assert inside_float32(np.array([1e-30, 0.3, 1e30])).tolist() == [2.0**-20, 0.3, 2.0**20]


@given(hnp.arrays(np.float64, (2, 6), elements=POSITIVE), st.sampled_from(QUARTERS))
def test_factors_are_the_same_in_every_library(values: np.ndarray, quarters: int) -> None:
    inputs, weights = values
    strict = smoothing_factors(*(array_api_strict.asarray(side) for side in values), quarters=quarters)
    assert np.asarray(strict).tobytes() == smoothing_factors(inputs, weights, quarters=quarters).tobytes()


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
def test_smoothing_is_its_formula(quarters: int) -> None:
    rng = np.random.default_rng(quarters)
    inputs, weights = np.exp(rng.normal(0, 2, (2, 50)))
    inputs[0] = 0.0
    weights[1] = 0.0
    found = smoothing_factors(inputs, weights, quarters=quarters)
    a = quarters / 4
    assert found[:2].tolist() == [1.0, 1.0]
    wanted = inputs[2:] ** a / weights[2:] ** (1 - a)
    # Eight roundings of float64 at most: four roots, three products, a quotient; those of ``**`` beside them.
    assert np.abs(found[2:] / wanted - 1).max() <= 16 * 2.0**-53


def test_equalized_channels_have_weights_of_one_size_on_both_sides() -> None:
    rng = np.random.default_rng(1)
    # A chain of three layers, the middle one depthwise.
    layers = [np.exp(rng.normal(0, 2, shape)) for shape in ((1, 6, 4), (6, 1, 1), (1, 5, 6))]
    first, second = equalizing_factors(layers, [(0, (1,)), (1, (2,))])
    sizes = layers[0][0].max(axis=1) / first, layers[1][:, 0, 0] * first / second, layers[2][0].max(axis=0) * second
    # The sweeps end where no factor changes by 1 %: of each of the two a neighbour has.
    for left, right in ((sizes[0], sizes[1]), (sizes[1], sizes[2])):
        assert np.abs(np.log(left / right)).max() <= 2 * np.log(1.01)
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
def test_powers_of_two_can_be_taken_back_to_the_bit(weight: np.ndarray, exponents: np.ndarray) -> None:
    scale = ChannelScale(factors=np.exp2(exponents.astype(np.float32)))
    back = ChannelScale(factors=1 / scale.factors)
    assert scale.keeps(weight, axis=1)
    assert scale.keeps_in(weight, axis=1)
    assert back.take(scale.take(weight, axis=1), axis=1).tobytes() == weight.tobytes()
    divided, bias = scale.fold(weight, None, axis=1)
    assert scale.take(divided, axis=1).tobytes() == weight.tobytes()
    assert bias.tolist() == [0, 0, 0]
    for channel in range(3):
        assert np.array_equal(divided[:, channel] * scale.factors[channel], weight[:, channel])


@given(
    hnp.arrays(np.float32, (4, 3, 2, 2), elements=st.floats(-8, 8, width=16)),
    hnp.arrays(np.float32, 3, elements=st.floats(2.0**-6, 2.0**6, width=32)),
)
def test_every_weight_is_rounded_once(weight: np.ndarray, factors: np.ndarray) -> None:
    scale = ChannelScale(factors=factors)
    assert scale.keeps(weight, axis=1)
    assert scale.keeps_in(weight, axis=1)
    wide, along = weight.astype(np.float64), factors.astype(np.float64)[:, None, None]
    for found, exact in (
        (scale.fold(weight, None, axis=1)[0], wide / along),
        (scale.take(weight, axis=1), wide * along),
    ):
        assert found.dtype == np.float32
        assert (np.abs(found - exact) <= 2.0**-24 * np.abs(exact)).all()


def test_weights_at_the_ends_of_float32_are_refused() -> None:
    tiny, huge = np.full((1, 1), 1e-38, np.float32), np.full((1, 1), 3e38, np.float32)
    up, down = (ChannelScale(factors=np.array([2.0**e], np.float32)) for e in (10, -10))
    assert not up.keeps(tiny, axis=0)
    assert not down.keeps_in(tiny, axis=1)
    with np.errstate(over="ignore"):
        assert not down.keeps(huge, axis=0)
        assert not up.keeps_in(huge, axis=1)


def test_groups_take_the_factors_of_their_own_channels() -> None:
    weight = np.ones((4, 2, 1, 1), np.float32)
    scale = ChannelScale(factors=np.array([1, 2, 4, 8], np.float32))
    taken = scale.take(weight, axis=1, groups=2)
    assert taken[:, :, 0, 0].tolist() == [[1, 2], [1, 2], [4, 8], [4, 8]]


def seen_of(high: np.ndarray, low: np.ndarray | None = None) -> Channels:
    """Returns channels of uniform values, rounded once."""
    low = -high if low is None else low
    power = (high**3 - low**3) / (3 * (high - low))
    return Channels(power=power, roundings=(Rounding(low=low, high=high, share=np.ones_like(high)),))


def readings(seed: int, spread: float) -> list[Reading]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 10, 1, 1)).astype(np.float32)
    return [reading(grouped(weight, axis=1), seen_of(np.exp(rng.normal(0, spread, 10))))]


def behind_leaky(seed: int) -> tuple[Reading, np.ndarray, np.ndarray]:
    """Returns a layer behind a LeakyRelu of 0.1 that rounds before and after, its weight, and what comes before."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((24, 10)).astype(np.float32)
    before = rng.normal(0, 1, (20_000, 10)) * np.exp(rng.normal(0, 1, 10)) - 0.5
    before[:, :5] = np.where(before[:, :5] < 0, 6 * before[:, :5], before[:, :5])  # these reach far down
    after = np.where(before < 0, 0.1 * before, before)
    share = np.where(before < 0, 0.01, 1.0).mean(axis=0)
    roundings = tuple(
        Rounding(low=values.min(axis=0), high=values.max(axis=0), share=part)
        for values, part in ((after, np.ones(10)), (before, share))
    )
    return (
        reading(grouped(weight, axis=1), Channels(power=(after**2).mean(axis=0), roundings=roundings)),
        weight,
        before,
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_predicted_error_is_that_of_rounding(seed: int) -> None:
    """Channels that the factors make alike, rounded for real: the squared error of the outputs, summed over outputs."""
    rng = np.random.default_rng(seed)
    own = np.exp2(rng.integers(-3, 4, 10)).astype(np.float32)
    factors = np.repeat(own, 4)  # ten channels, four taps of a kernel each
    weight = (rng.standard_normal((24, 40)) / factors).astype(np.float32)
    inputs = rng.uniform(-1, 1, (20_000, 40)) * factors
    taps = inputs.reshape(-1, 10, 4)
    rounding = Rounding(low=taps.min(axis=(0, 2)), high=taps.max(axis=(0, 2)), share=np.ones(10))
    seen = Channels(power=(taps**2).mean(axis=(0, 2)), roundings=(rounding,))
    told = predicted_error([reading(grouped(weight.reshape(24, 10, 2, 2), axis=1), seen)], own, **STEPS)
    scaled, small = weight * factors, inputs / factors
    rows = np.abs(scaled).max(axis=1, keepdims=True) / 127
    step = (small.max() - small.min()) / 255
    rounded = (np.rint(small / step) * step) @ (np.rint(scaled / rows) * rows).T
    error = ((rounded - inputs @ weight.T) ** 2).mean(axis=0).sum()
    # 960 errors of weights, whose squares have a relative variance of 0.8: five deviations are 0.15. Of each row's 40
    # weights the largest has no error: 0.025 less.
    assert told * (1 - 0.175) < error < told * 1.15


@pytest.mark.parametrize("seed", range(5))
def test_the_predicted_error_counts_the_rounding_before_a_leaky_relu(seed: int) -> None:
    """Rounded for real before and after, weights as they are: 16-bit steps make their part nothing."""
    each, weight, before = behind_leaky(seed)
    factors, _, _ = least_error_factors([each], **STEPS)
    told = predicted_error([each], factors, weight_steps=(1 << 24), activation_steps=255)

    def rounded(values: np.ndarray) -> np.ndarray:
        step = (values.max() - values.min()) / 255
        return np.rint(values / step) * step

    small = rounded(before / factors)
    small = rounded(np.where(small < 0, 0.1 * small, small))
    error = (((small * factors - np.where(before < 0, 0.1 * before, before)) @ weight.T) ** 2).mean(axis=0).sum()
    # Errors of a step are taken as uniform: 20,000 squares of them in each of ten channels have a relative deviation of
    # sqrt(0.8 / 2e5), 0.2 %, at best. That they are only as independent as steps are fine against the values makes 2 %
    # (seeds 0 to 11 gave 0.979 to 1.016); without the term of the first rounding, told would be less than half.
    assert told * 0.95 < error < told * 1.05
    blind = Channels(power=each.seen.power, roundings=each.seen.roundings[:1])
    without = predicted_error([replace(each, seen=blind)], factors, weight_steps=(1 << 24), activation_steps=255)
    assert without < 0.5 * error


@pytest.mark.parametrize("seed", range(5))
def test_factors_that_see_the_rounding_before_a_leaky_relu_make_less_of_it(seed: int) -> None:
    each, _, _ = behind_leaky(seed)
    blind = replace(each, seen=Channels(power=each.seen.power, roundings=each.seen.roundings[:1]))
    seeing, after, before = least_error_factors([each], **STEPS)
    other, _, _ = least_error_factors([blind], **STEPS)
    assert after < predicted_error([each], other, **STEPS) < before
    assert not np.array_equal(seeing, other)


def test_the_descent_is_the_same_in_array_api_strict() -> None:
    each, _, _ = behind_leaky(0)
    xp = array_api_strict
    strict = Reading(
        sizes=xp.asarray(each.sizes),
        carried=xp.asarray(each.carried),
        taps=1,
        seen=Channels(
            power=xp.asarray(each.seen.power),
            roundings=tuple(
                Rounding(low=xp.asarray(r.low), high=xp.asarray(r.high), share=xp.asarray(r.share))
                for r in each.seen.roundings
            ),
        ),
    )
    ours, theirs = (least_error_factors([one], **STEPS) for one in (each, strict))
    assert np.asarray(theirs[0]).tobytes() == ours[0].tobytes()
    assert theirs[1:] == ours[1:]


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
    plain, skewed = seen_of(np.ones(10)), seen_of(opposite)
    _, _, wanted = least_error_factors([reading(grouped(weight, axis=1), plain)], **STEPS)
    _, after, before = least_error_factors([reading(grouped(weight / opposite, axis=1), skewed)], **STEPS)
    assert before > 50 * wanted
    assert after <= wanted * (1 + 1e-9)
