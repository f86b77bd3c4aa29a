"""Smoothing: the sizes of an activation's channels are shared out between it and the weights that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace, ordered_sum
from fewbits.algorithms.transforms._channels import ChannelScale, inside_float32
from fewbits.algorithms.transforms.base import Transform

# Exponents in quarters: all the size goes to the weights at 4, all of it to the activation at 0.
QUARTERS = (0, 1, 2, 3, 4)
# By what a channel's factor is multiplied or divided where that makes the error less: 2 to the 1, 1/2, 1/4 and 1/8.
_MOVES = tuple(move for root in (2.0, 2**0.5, 2**0.25, 2**0.125) for move in (root, 1 / root))
# Sweeps over the channels, and the part of the error that must be left for another one to be worth it.
_SWEEPS = 6
_SETTLED = 0.995


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounding:
    """A tensor that is rounded on its way to a reader, [channels] each, float64.

    Args:
      low: Smallest value, at most 0.
      high: Largest value, at least 0.
      share: Mean square of the slope from here to the reader: 1 where nothing is between, 0.01 for the channels that
        are negative before a LeakyRelu of 0.1.
    """

    low: Array
    high: Array
    share: Array

    def reach(self) -> Array:
        """Returns how much of the tensor's range each channel takes, from 0 to 1."""
        xp = namespace(self.low)
        low, high = xp.max(-self.low), xp.max(self.high)
        one = xp.ones_like(low)
        below, above = xp.where(low > 0, low, one), xp.where(high > 0, high, one)
        return xp.maximum(-self.low / below, self.high / above)

    def step(self, factors: Array, steps: int) -> float:
        """Returns the step of the tensor's whole range under factors."""
        xp = namespace(self.low)
        return (float(xp.max(self.high / factors)) - float(xp.min(self.low / factors))) / steps


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channels:
    """What was seen of an activation's channels, [channels] each, float64.

    Args:
      power: Mean square.
      roundings: Where it is rounded: at the reader, and before operators in between that round once more.
    """

    power: Array
    roundings: tuple[Rounding, ...]

    @property
    def size(self) -> Array:
        """How much of the range each channel takes where it takes most, from 0 to 1."""
        found = self.roundings[0].reach()
        for each in self.roundings[1:]:
            found = namespace(found).maximum(found, each.reach())
        return found


def smoothing_factors(inputs: Array, weights: Array, *, quarters: int) -> Array:
    """Returns the factors of one link: s = inputs**a / weights**(1 - a), with a in quarters.

    A channel that is zero on either side keeps factor 1.

    Args:
      inputs: Largest magnitude of each channel of the activation, [channels], >= 0.
      weights: Largest magnitude of the weights that read it, [channels], >= 0.
      quarters: Four times a, 0 to 4; square roots alone give the same bits in every library.
    Returns: [channels] float64, between 2**-20 and 2**20.
    Source: Xiao et al. 2022 (arXiv 2211.10438), equation 4.
    """
    xp = namespace(inputs, weights)
    alive = (inputs > 0) & (weights > 0)
    ones = xp.ones_like(inputs)
    large = _quarter_power(xp.where(alive, inputs, ones), quarters)
    small = _quarter_power(xp.where(alive, weights, ones), 4 - quarters)
    return inside_float32(xp.where(alive, large / small, ones))


def _quarter_power(values: Array, quarters: int) -> Array:
    xp = namespace(values)
    root = xp.sqrt(values)
    powers = (xp.ones_like(values), xp.sqrt(root), root, root * xp.sqrt(root), values)
    return powers[quarters]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A weight and what feeds it, as far as rounding errors depend on them.

    Args:
      sizes: Largest magnitude of the weights between each output and input, [groups, outputs, inputs] float64.
      carried: Sum of the squared weights that read each channel, [channels] float64.
      taps: Positions of a kernel.
      seen: The activation's channels.
    """

    sizes: Array
    carried: Array
    taps: int
    seen: Channels


def reading(weight: Array, seen: Channels) -> Reading:
    """Returns what rounding errors depend on of a weight, [groups, outputs, inputs, taps], and what feeds it."""
    xp = namespace(weight)
    wide = xp.astype(weight, xp.float64)
    carried = ordered_sum(ordered_sum(wide * wide, (1,)), (3,))
    return Reading(
        sizes=xp.max(xp.abs(wide), axis=3), carried=xp.reshape(carried, (-1,)), taps=weight.shape[3], seen=seen
    )


def predicted_error(readings: Sequence[Reading], factors: Array, *, weight_steps: int, activation_steps: int) -> float:
    """Returns the mean square error, summed over outputs, that rounding under these factors leads one to expect.

    Rounding errors are taken as uniform and independent: a step D makes D**2 / 12. The weight's step is that of its
    largest value in a row, an activation's that of its whole range, and each error is carried by the other operand:

        sum over rows of (Dw**2 * sum of E[x**2] / s**2  +  sum over roundings of Dx**2 * share * (w * s)**2) / 12

    Args:
      readings: Each weight that reads the activation.
      factors: s, [channels].
      weight_steps: Steps from 0 to the largest weight, e.g. 127.
      activation_steps: Steps over the whole range of an activation, e.g. 255.
    """
    xp = namespace(factors)
    wide = xp.astype(factors, xp.float64)
    total = 0.0
    for each in readings:
        groups, _, inputs = each.sizes.shape
        largest = xp.max(each.sizes * xp.reshape(wide, (groups, 1, inputs)), axis=2) / weight_steps
        power = ordered_sum(xp.reshape(each.seen.power / (wide * wide), (groups, inputs)), (1,)) * each.taps
        of_weights = ordered_sum(xp.reshape(largest * largest * power, (-1,)), (0,))
        total += float(of_weights[0]) / 12
        for rounding in each.seen.roundings:
            carried = ordered_sum(each.carried * rounding.share * wide * wide, (0,))
            total += rounding.step(wide, activation_steps) ** 2 * float(carried[0]) / 12
    return total


def least_error_factors(
    readings: Sequence[Reading], *, weight_steps: int, activation_steps: int, free: Array | None = None
) -> tuple[Array, float, float]:
    """Returns factors under which little error is expected, that error, and the one without.

    The exponent under which it is least comes first; then one channel after the other is made larger or smaller where
    that makes it less, until none is or the sweeps are used up.

    Args: those of ``predicted_error``, and
      free: Channels that may have a factor, [channels] bool; the others keep 1, as a branch of a Concat does that
        nothing can be folded into. All where None.
    Returns: [channels] float32, between 2**-20 and 2**20; the two errors.
    """
    xp = namespace(readings[0].carried)
    size, largest = readings[0].seen.size, _column_sizes(readings[0])
    for each in readings[1:]:
        size, largest = xp.maximum(size, each.seen.size), xp.maximum(largest, _column_sizes(each))

    def error(factors: Array) -> float:
        return predicted_error(readings, factors, weight_steps=weight_steps, activation_steps=activation_steps)

    def narrow(factors: Array) -> Array:
        return xp.astype(factors if free is None else xp.where(free, factors, xp.ones_like(factors)), xp.float32)

    ones = xp.ones(size.shape, dtype=xp.float32)
    starts = [ones, *(narrow(smoothing_factors(size, largest, quarters=quarters)) for quarters in QUARTERS)]
    errors = [error(start) for start in starts]
    least = min(errors)
    best = starts[errors.index(least)]
    descent = _Descent(readings, best, weight_steps=weight_steps, activation_steps=activation_steps)
    channels = [c for c in range(size.shape[0]) if free is None or bool(free[c])]
    for _ in range(_SWEEPS):
        for channel in channels:
            descent.improve(channel)
        factors = narrow(inside_float32(descent.factors))
        found = error(factors)
        if found >= least:
            break
        settled = found >= _SETTLED * least
        best, least = factors, found
        if settled:
            break
    return best, least, errors[0]


@final
class _Descent:
    """The working state of the descent: what one channel's factor changes is computed from that channel alone.

    Args: those of ``predicted_error``; ``factors`` are where it starts.
    """

    def __init__(
        self, readings: Sequence[Reading], factors: Array, *, weight_steps: int, activation_steps: int
    ) -> None:
        xp = self._xp = namespace(readings[0].carried)
        self.factors = xp.astype(factors, xp.float64, copy=True)
        self._readings = readings
        self._steps = weight_steps, activation_steps
        self._scaled = [
            each.sizes * xp.reshape(self.factors, (each.sizes.shape[0], 1, each.sizes.shape[2])) for each in readings
        ]

    def improve(self, channel: int) -> None:
        """Changes the factor of a channel to the best of the moves, if one makes the error less."""
        moves = self._xp.asarray([1.0, *_MOVES], dtype=self._xp.float64) * float(self.factors[channel])
        errors = self._xp.zeros_like(moves)
        for each, scaled in zip(self._readings, self._scaled, strict=True):
            errors = errors + self._of_weights(each, scaled, channel, moves)
            for rounding in each.seen.roundings:
                errors = errors + self._of_rounding(each, rounding, channel, moves)
        best = int(self._xp.argmin(errors))
        if best:
            self._set(channel, float(moves[best]))

    def _of_weights(self, each: Reading, scaled: Array, channel: int, moves: Array) -> Array:
        """Returns the error of a weight's rounding in the group of a channel, for each factor of the channel."""
        xp = self._xp
        inputs = each.sizes.shape[2]
        group, column = divmod(channel, inputs)
        own = each.sizes[group, :, column]
        others = xp.zeros_like(own)
        for rest in (scaled[group, :, :column], scaled[group, :, column + 1 :]):
            others = xp.maximum(others, xp.max(rest, axis=1)) if rest.shape[1] else others
        largest = xp.maximum(others[:, None], own[:, None] * moves[None, :]) / self._steps[0]
        powers = (each.seen.power / (self.factors * self.factors))[group * inputs : (group + 1) * inputs]
        power = _all_but(powers, column) + each.seen.power[channel] / (moves * moves)
        return xp.sum(largest * largest, axis=0) * power * each.taps

    def _of_rounding(self, each: Reading, rounding: Rounding, channel: int, moves: Array) -> Array:
        """Returns the error of an activation's rounding, for each factor of a channel."""
        xp = self._xp
        here = xp.arange(self.factors.shape[0]) == channel
        high, low = (xp.where(here, xp.zeros_like(side), side / self.factors) for side in (rounding.high, rounding.low))
        top = xp.maximum(xp.max(high), rounding.high[channel] / moves)
        step = (top - xp.minimum(xp.min(low), rounding.low[channel] / moves)) / self._steps[1]
        carried = each.carried * rounding.share
        rest = _all_but(carried * self.factors * self.factors, channel)
        return step * step * (rest + carried[channel] * moves * moves)

    def _set(self, channel: int, factor: float) -> None:
        self.factors[channel] = factor
        for each, scaled in zip(self._readings, self._scaled, strict=True):
            group, column = divmod(channel, each.sizes.shape[2])
            scaled[group, :, column] = each.sizes[group, :, column] * factor


def _all_but(values: Array, index: int) -> Array:
    """Returns the sum of all values but one, added in one order in every library."""
    xp = namespace(values)
    return ordered_sum(xp.where(xp.arange(values.shape[0]) == index, xp.zeros_like(values), values), (0,))[0]


def _column_sizes(each: Reading) -> Array:
    """Returns the largest magnitude of the weights that read each channel, [channels] float64."""
    xp = namespace(each.sizes)
    return xp.reshape(xp.max(each.sizes, axis=1), (-1,))


ALGORITHM: type[Transform] = ChannelScale
