"""Confidence bounds for the mean of bounded values by betting; valid at every number of examples.

A gambler bets against the claim "the mean is at least m". A bet of size b on the next value d multiplies his wealth by
``1 + b (m - d)``; with 0 <= b <= 1 / (largest - m) it stays >= 0, and if the claim holds it is a supermartingale that
starts at 1, however b was chosen from earlier values. By Markov's inequality it ends at 1 / alpha or more with
probability at most alpha; the claims that made him that rich are refuted (Waudby-Smith and Ramdas, Estimating means of
bounded random variables by betting, JRSS B 86 (2024), section 4).

Two gamblers:

- ``hedged_upper_limit`` for independent, identically distributed values. Waudby-Smith and Ramdas maximise the growth of
  wealth; only reaching 1 / alpha by the last value counts here, so the bet is the one that replicates a bet of all or
  nothing on the final sum: with k values to go, p = alpha * wealth, w = probit(p), ``b = phi(w) / (p sigma sqrt(k))``,
  the hedge of a digital option under a normal walk. Were the values normal with known sigma, its bound would be the
  z-test's. sigma^2 is the running second moment about m; a poor sigma costs width, never validity.
- ``mixture_upper_limit`` for values that are only independent, not identically distributed: groups of unequal size,
  given their sizes. Fixed bets, averaged over a grid; E prod(1 - u z_i) = prod(1 - u E z_i) <= (1 - u mean(E z))^n by
  the inequality of the means, so the average expectation is what is bounded. Wider, but order plays no part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_FINEST = 1e-5  # smallest claim other than 0, in units of the largest value
_RATIO = 1.01  # of neighbouring claims: a bound is rounded up by at most one percent of itself
_PRIOR = 0.25  # second moment assumed before the first value, counted as one value, in squared units of the largest
_STEPS = 4096  # bets are renewed at most this often; values in between share a bet (still chosen before they are seen)
_RUINED = -600.0  # log wealth from which no one returns


def _claims() -> Floats:
    """Returns the claims about the mean in ascending order, in units of the largest value; fixed before any data."""
    steps = math.ceil(math.log(1.0 / _FINEST) / math.log(_RATIO))
    positive = _RATIO ** -np.arange(float(steps), -1.0, -1.0)
    return np.concatenate([-positive[::-1], [0.0], positive])


def hedged_upper_limit(values: Floats, largest: float, alpha: float, seed: int) -> float:
    """Returns an upper confidence bound, at level 1 - alpha, of the mean of i.i.d. values in [-largest, largest].

    Claims are tested from the largest down, each at level alpha, until one is not refuted; the last refuted one is the
    bound. The first true claim in that fixed order is refuted with probability at most alpha, and only then can the
    bound be wrong. Values are taken in an order drawn from the seed: a fixed permutation of i.i.d. values is i.i.d., so
    the level holds for every seed; the bound itself moves a little from seed to seed.

    Args:
      values: [n], n >= 1, within [-largest, largest].
      alpha: In (0, 1/2).
    Returns: In [mean, largest].
    Source: module docstring.
    """
    from scipy import special

    x = np.random.default_rng(seed).permutation(np.clip(values / largest, -1.0, 1.0))
    n, mean = x.size, float(x.mean())
    claims = _claims()
    claims = claims[(claims > mean) & (claims < 1.0)]  # claims below the mean count as not refuted: conservative
    target = -math.log(alpha)
    wealth, moment = np.zeros(claims.size), np.full(claims.size, _PRIOR)
    limit = 1.0  # claims from here on are refuted
    block = -(-n // _STEPS)
    for first in range(0, n, block):
        won = wealth >= target
        if claims.size == 0 or bool(won.all()):
            break
        if first % (64 * block) == 0:
            claims, wealth, moment, limit = _drop_decided(claims, wealth, moment, limit, target)
            won = wealth >= target
        chance = np.exp(np.minimum(wealth - target, -1e-12))
        w = special.ndtri(chance)
        sigma = np.sqrt(moment / (1.0 + first) * (n - first))
        bet = np.exp(-0.5 * w * w) / (math.sqrt(2.0 * math.pi) * chance * sigma)
        bet = np.where(won, 0.0, np.minimum(bet, 1.0 / (1.0 - claims)))
        gain = claims - x[first : first + block, None]
        factor = np.maximum(bet * gain, -1.0)
        with np.errstate(divide="ignore"):
            wealth = np.maximum(wealth + np.log1p(factor).sum(axis=0), _RUINED)
        moment = moment + (gain * gain).sum(axis=0)
    standing = np.flatnonzero(wealth < target)
    if standing.size == 0:
        limit = float(claims[0]) if claims.size else limit
    elif standing[-1] + 1 < claims.size:
        limit = float(claims[standing[-1] + 1])
    return max(limit, mean) * largest


def _drop_decided(
    claims: Floats, wealth: Floats, moment: Floats, limit: float, target: float
) -> tuple[Floats, Floats, Floats, float]:
    """Returns the claims that can still move the bound: below the refuted top, above the highest that ruined him."""
    ruined = np.flatnonzero(wealth <= _RUINED)
    start = int(ruined[-1]) if ruined.size else 0  # the ruined claim itself stays: it stands
    standing = np.flatnonzero(wealth < target)
    stop = int(standing[-1]) + 1 if standing.size else 0
    if stop < claims.size:
        limit = float(claims[stop])
    return claims[start:stop], wealth[start:stop], moment[start:stop], limit


def mixture_upper_limit(sums: Floats, sizes: Floats, largest: float, alpha: float) -> float:
    """Returns an upper confidence bound of the size-weighted mean over independent groups, given their sizes.

    For a claim m and a bet u in (0, 1], group g multiplies the wealth by
    1 - u (sum_g - m size_g) / ((largest - m) max size), which is >= 0 and rises with m; so does the average wealth over
    the grid of bets, and bisection finds the bound.

    Args:
      sums: Sum of the values of each group, [groups]; each value is within [-largest, largest].
      sizes: Number of values of each group, [groups], >= 1.
      alpha: In (0, 1/2).
    Returns: In [weighted mean, largest].
    Source: module docstring.
    """
    from scipy import special

    total = sums / largest
    biggest = float(sizes.max())
    bets = np.exp(np.linspace(math.log(0.5 / math.sqrt(sums.size)), 0.0, 48))
    # A quarter on the full bet, the best one where nothing changed; the rest evenly over the orders of magnitude.
    shares = np.full(bets.size, 0.75 / (bets.size - 1))
    shares[-1] = 0.25

    def log_wealth(claim: float) -> float:
        losses = np.minimum((total - claim * sizes) / ((1.0 - claim) * biggest), 1.0)
        with np.errstate(divide="ignore"):
            grown = np.array([np.log1p(-bet * losses).sum() for bet in bets.tolist()])
        return float(special.logsumexp(grown, b=shares))

    low, high = float(total.sum() / sizes.sum()), 1.0
    target = -math.log(alpha)
    for _ in range(40):
        middle = 0.5 * (low + high)
        if log_wealth(middle) >= target:
            high = middle
        else:
            low = middle
    return high * largest
