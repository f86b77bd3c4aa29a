"""Smoothing: the sizes of an activation's channels are shared out between it and the weights that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace, ordered_sum
from fewbits.algorithms.transforms._channels import ChannelScale, powers_of_two
from fewbits.algorithms.transforms.base import Transform

# Exponents in quarters: all the size goes to the weights at 4, all of it to the activation at 0.
QUARTERS = (0, 1, 2, 3, 4)
# Sweeps over the channels, and the part of the error that must be left for another one to be worth it.
_SWEEPS = 4
_SETTLED = 0.995


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channels:
    """What was seen of an activation's channels, [channels] each, float64.

    Args:
      low: Smallest value, at most 0.
      high: Largest value, at least 0.
      power: Mean square.
    """

    low: Array
    high: Array
    power: Array

    @property
    def amax(self) -> Array:
        """Largest magnitude."""
        return namespace(self.low).maximum(-self.low, self.high)


def smoothing_factors(inputs: Array, weights: Array, *, quarters: int) -> Array:
    """Returns the factors of one link: s = inputs**a / weights**(1 - a), with a in quarters.

    A channel that is zero on either side keeps factor 1.

    Args:
      inputs: Largest magnitude of each channel of the activation, [channels], >= 0.
      weights: Largest magnitude of the weights that read it, [channels], >= 0.
      quarters: Four times a, 0 to 4; square roots alone give the same bits in every library.
    Returns: [channels] float32, powers of two.
    Source: Xiao et al. 2022 (arXiv 2211.10438), equation 4; rounded to powers of two here.
    """
    xp = namespace(inputs, weights)
    alive = (inputs > 0) & (weights > 0)
    ones = xp.ones_like(inputs)
    large = _quarter_power(xp.where(alive, inputs, ones), quarters)
    small = _quarter_power(xp.where(alive, weights, ones), 4 - quarters)
    return powers_of_two(xp.astype(xp.where(alive, large / small, ones), xp.float32))


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
    largest value in a row, the activation's that of its whole range, and each error is carried by the other operand:

        sum over rows of (Dw**2 * sum of E[x**2] / s**2  +  Dx**2 * sum of (w * s)**2) / 12

    Args:
      readings: Each weight that reads the activation.
      factors: s, [channels].
      weight_steps: Steps from 0 to the largest weight, e.g. 127.
      activation_steps: Steps over the whole range of the activation, e.g. 255.
    """
    xp = namespace(factors)
    wide = xp.astype(factors, xp.float64)
    total = 0.0
    for each in readings:
        groups, _, inputs = each.sizes.shape
        largest = xp.max(each.sizes * xp.reshape(wide, (groups, 1, inputs)), axis=2) / weight_steps
        power = ordered_sum(xp.reshape(each.seen.power / (wide * wide), (groups, inputs)), (1,)) * each.taps
        step = (float(xp.max(each.seen.high / wide)) - float(xp.min(each.seen.low / wide))) / activation_steps
        of_weights = ordered_sum(xp.reshape(largest * largest * power, (-1,)), (0,))
        of_inputs = ordered_sum(each.carried * wide * wide, (0,))
        total += (float(of_weights[0]) + step * step * float(of_inputs[0])) / 12
    return total


def least_error_factors(
    readings: Sequence[Reading], *, weight_steps: int, activation_steps: int, free: Array | None = None
) -> tuple[Array, float, float]:
    """Returns factors under which little error is expected, that error, and the one without.

    The exponent under which it is least comes first; then one channel after the other is doubled or halved where that
    makes it less, until none is or the sweeps are used up.

    Args: those of ``predicted_error``, and
      free: Channels that may have a factor, [channels] bool; the others keep 1, as a branch of a Concat does that
        nothing can be folded into. All where None.
    Returns: [channels] float32, powers of two; the two errors.
    """
    xp = namespace(readings[0].carried)
    amax, largest = readings[0].seen.amax, _column_sizes(readings[0])
    for each in readings[1:]:
        amax, largest = xp.maximum(amax, each.seen.amax), xp.maximum(largest, _column_sizes(each))

    def error(factors: Array) -> float:
        return predicted_error(readings, factors, weight_steps=weight_steps, activation_steps=activation_steps)

    best = xp.ones(amax.shape, dtype=xp.float32)
    before = least = error(best)
    for quarters in QUARTERS:
        factors = smoothing_factors(amax, largest, quarters=quarters)
        factors = factors if free is None else xp.where(free, factors, xp.ones_like(factors))
        found = error(factors)
        if found < least:
            best, least = factors, found
    places = xp.arange(best.shape[0])
    for _ in range(_SWEEPS):
        start = least
        for channel in range(best.shape[0]):
            if free is not None and not bool(free[channel]):
                continue
            for times in (2.0, 0.5):
                factors = xp.where(places == channel, best * times, best)
                found = error(factors)
                if found < least:
                    best, least = factors, found
                    break
        if least >= _SETTLED * start:
            break
    return best, least, before


def _column_sizes(each: Reading) -> Array:
    """Returns the largest magnitude of the weights that read each channel, [channels] float64."""
    xp = namespace(each.sizes)
    return xp.reshape(xp.max(each.sizes, axis=1), (-1,))


ALGORITHM: type[Transform] = ChannelScale
