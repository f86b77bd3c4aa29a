"""The exact upper confidence bound on p(harmful) - p(helpful), from counts of harmful and helpful flips.

One example is harmful with probability p, helpful with probability q, unchanged otherwise; delta = p - q is the loss.
The bound is an unconditional exact one: it holds at every number of examples, not in the limit of many. Three steps:

1. **Order.** Outcomes (b harmful, c helpful) are ordered by an approximate upper limit S, the largest delta whose
   minimum power divergence D (Cressie and Read, k = 2/3) from the outcome is z^2.  ``A_s = {outcomes: S <= s}``
   is a nested chain of sets. D(delta) is the minimum over the nuisance of a jointly convex function, hence convex in
   delta with its zero at the point estimate: "delta-hat < s and D(s) >= z^2" says S <= s, and the chain is nested.
   By the envelope theorem dD/dc - dD/da has the sign of (c/q)^k - (a/(1-p-q))^k at the minimiser, which
   stationarity makes >= 0 where D increases in delta; likewise for b with the other sign. So a set that holds (b, c)
   also holds (b - 1, c) and (b, c + 1): it is monotone (Barnard's convexity condition).
2. **Tail.** For the observed s, P(A_s; p, q) falls in p and rises in q, so among all (p, q) with p - q >= delta the
   worst lies on the line p - q = delta, and that worst value F(delta) cannot rise with delta (Buehler 1957; Lloyd and
   Moldovan 2007). The bound is the delta at which F reaches alpha: no larger delta is compatible with the data.
3. **Nuisance.** Berger and Boos (1994): the worst case is taken over p <= p_high(b) and q >= q_low(c) only,
   Clopper-Pearson limits that both hold with probability 1 - gamma, and gamma is added to F.  gamma = 1e-8 alpha
   costs nothing that can be seen (no flip at all: 1 - (alpha - gamma)^(1/n)), and because the set shrinks with
   helpful and grows with harmful flips, the bound keeps both monotonicities exactly.

The maximum over the nuisance is certified, not sampled. With t = min(p, q) = (1 - |delta|)/2 sin^2(phi) the tail is an
entire function of phi, and since |sin(u + iv)|^2 = sin^2 u + sinh^2 v, the moduli of the three cell probabilities at
u + iv add up to at most 1 + 2 (1 - |delta|) sinh^2 v: the tail is below the n-th power of that. Chebyshev interpolation
of degree N on an interval of half-width h then errs by at most 4 M rho^-N / (rho - 1), M being that bound at
v = h (rho - 1/rho)/2 (Trefethen, Approximation Theory and Practice, theorem 8.2). The polynomial's maximum is taken
over its critical points, and the error is added, as is an allowance for rounding (1e-11).

Everything here takes alpha in (0, 1/2) and checked integers; ``paired.trinomial_bound`` is the public, checked face.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

_POWER = 2.0 / 3.0  # k of the ordering; Cressie and Read (1984) recommend it; see benchmarks/bench_bounds.py
_POWER_STRICT = (
    1.0 / 3.0
)  # k at levels below 2 %: with 2/3 four helpful flips would outrank a harmful one too soon there,
_STRICT_Z = 2.054  # and the bound without any flip would exceed the closed form
_GAMMA = 1e-8  # share of alpha spent on the confidence set of the nuisance
_WINDOW = 28.3  # ln(2 / 1e-12): mass of the flip count outside the window that is summed
_CUT = 1e-12  # that mass; added to every tail
_ROUNDING = 1e-11  # of sums and of interpolation (Lebesgue constant 3.2 times _CUT and double rounding)
_DEGREE = 28  # of the interpolation, on intervals of half-width _HALF in units of 1 / (2 sqrt(n (1 - |delta|)))
_HALF = 3.0  # with _DEGREE: interpolation error below 1e-9
_RHO = 3.5


def _power(z: float) -> float:
    """Returns the power of the divergence for a level; a function of the level alone, never of the data."""
    return _POWER if z <= _STRICT_Z else _POWER_STRICT


def divergence(harmful: ArrayLike, helpful: ArrayLike, n: int, delta: float, *, power: float = _POWER) -> Floats:
    """Returns the least Cressie-Read divergence between counts and a trinomial with p - q = delta.

    D = min over q of  2/(k(k+1)) * sum_cells o ((o / (n pi))^k - 1),  k = power.  Zero at the estimate.

    Args:
      harmful, helpful: Counts, any one shape; harmful + helpful <= n.
      delta: In (-1, 1).
    Returns: Same shape, >= 0; infinite where no trinomial with this delta could give the counts.
    Source: Cressie and Read, Multinomial goodness-of-fit tests, JRSS B 46 (1984), section 2.
    """
    b, c = np.asarray(harmful, np.float64), np.asarray(helpful, np.float64)
    a = n - b - c
    low = np.full(b.shape, max(0.0, -delta))
    high = np.full(b.shape, (1.0 - delta) / 2.0)
    order = power + 1.0
    with np.errstate(divide="ignore", over="ignore"):
        # The derivative falls in q, from +inf (or a negative value: then the minimum is at the end) to -inf.
        for _ in range(48):
            q = 0.5 * (low + high)
            p, rest = q + delta, np.maximum(1.0 - delta - 2.0 * q, 0.0)
            slope = _ratio(b, p) ** order + _ratio(c, q) ** order - 2.0 * _ratio(a, rest) ** order
            low, high = np.where(slope > 0, q, low), np.where(slope > 0, high, q)
        q = 0.5 * (low + high)
        p, rest = q + delta, np.maximum(1.0 - delta - 2.0 * q, 0.0)
        total = b * _ratio(b, n * p) ** power + c * _ratio(c, n * q) ** power + a * _ratio(a, n * rest) ** power
    return np.asarray(np.maximum(2.0 / (power * order) * (total - n), 0.0))


def _ratio(count: Floats, expected: Floats) -> Floats:
    """Returns count / expected, with 0 / 0 = 0."""
    return np.asarray(np.divide(count, expected, out=np.where(count > 0, np.inf, 0.0), where=expected > 0))


def approximate_limit(harmful: int, helpful: int, n: int, z: float) -> float:
    """Returns S, the delta above the point estimate at which the divergence reaches z^2."""
    from scipy import optimize

    def excess(delta: float) -> float:
        return float(divergence(harmful, helpful, n, delta, power=_power(z))) - z * z

    low, high = (harmful - helpful) / n, 1.0 - 1e-9
    if low >= high or excess(high) <= 0.0:
        return 1.0
    return float(optimize.brentq(excess, low, high, xtol=1e-15, rtol=1e-12)) if excess(low) < 0.0 else low


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Region:
    """A monotone set of outcomes: m flips belong to it when at most ``most[m]`` of them are harmful (-1: never)."""

    n: int
    most: Floats  # [flips + 1]

    @classmethod
    def below(cls, limit: float, n: int, z: float, flips: int) -> Region:
        """Returns A_s for s = limit, for up to ``flips`` flips (the caller sums no further)."""
        m = np.arange(flips + 1.0)
        inside, outside = np.full(m.shape, -1.0), m + 1.0
        while np.any(outside - inside > 1.0):
            # Monotone in the harmful count at a fixed number of flips, so bisection finds the border.
            b = np.clip(np.floor(0.5 * (inside + outside)), 0.0, m)
            member = ((2.0 * b - m) < limit * n) & (divergence(b, m - b, n, limit, power=_power(z)) >= z * z - 1e-9)
            active = outside - inside > 1.0
            inside = np.where(active & member, b, inside)
            outside = np.where(active & ~member, b, outside)
        return cls(n=n, most=_monotone(inside))

    def holding(self, harmful: int, helpful: int) -> Region:
        """Returns the set made to hold one outcome, against rounding at its border."""
        most = self.most.copy()
        if harmful + helpful < most.size:
            most[harmful + helpful] = max(most[harmful + helpful], harmful)
        return Region(n=self.n, most=_monotone(most))

    def probability(self, p: Floats, q: Floats) -> Floats:
        """Returns an upper bound, tight to 1e-12, of the set's probability for each pair of flip rates.

        Sums over the number of flips m ~ Binomial(n, p + q); given m, the harmful ones are Binomial(m, p / (p + q)).
        """
        from scipy import special

        n, result = self.n, np.empty(len(p))
        for i, (harm, helped) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
            rate = min(harm + helped, 1.0)
            if rate == 0.0:
                result[i] = 1.0 if self.most[0] >= 0 else 0.0
                continue
            # Bernstein's inequality: the count leaves this window with probability 1e-12 at most.
            reach = _WINDOW / 3.0 + math.sqrt(_WINDOW**2 / 9.0 + 2.0 * _WINDOW * n * rate * (1.0 - rate))
            first = max(0, math.floor(n * rate - reach))
            last = min(n, math.ceil(n * rate + reach), self.most.size - 1)
            m = np.arange(first, last + 1.0)
            most = self.most[first : last + 1]
            log_mass = (
                special.gammaln(n + 1.0) - special.gammaln(m + 1.0) - special.gammaln(n - m + 1.0)
            ) + special.xlogy(m, rate)
            mass = np.exp(log_mass + special.xlog1py(n - m, -rate))
            share = special.betainc(np.maximum(m - most, 0.5), np.maximum(most + 1.0, 0.5), min(1.0, helped / rate))
            share = np.where(most < 0, 0.0, np.where(most >= m, 1.0, share))
            result[i] = min(1.0, float(mass @ share) + _CUT)
        return result


def _monotone(most: Floats) -> Floats:
    """Returns the smallest monotone set around a given one; already equal to it but for rounding."""
    most = np.maximum.accumulate(most)
    m = np.arange(float(most.size))
    return np.asarray(np.maximum(np.maximum.accumulate((most - m)[::-1])[::-1] + m, -1.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tail:
    """The probability of a region on the lines p - q = delta, with p <= harmful_most and q >= helpful_least."""

    region: Region
    harmful_most: float
    helpful_least: float

    def _angles(self, delta: float) -> tuple[float, float] | None:
        """Returns the range of phi, where min(p, q) = (1 - |delta|)/2 sin^2 phi; None where it is empty."""
        size = (1.0 - abs(delta)) / 2.0
        low = max(0.0, self.helpful_least - max(-delta, 0.0))
        high = min(size, self.harmful_most - max(delta, 0.0))
        if high < low:
            return None
        if size <= 0.0:
            return 0.0, 0.0
        return math.asin(math.sqrt(min(1.0, low / size))), math.asin(math.sqrt(min(1.0, high / size)))

    def _at(self, delta: float, phi: Floats) -> Floats:
        smaller = (1.0 - abs(delta)) / 2.0 * np.sin(phi) ** 2
        return self.region.probability(smaller + max(delta, 0.0), smaller + max(-delta, 0.0))

    def sampled(self, delta: float) -> float:
        """Returns the largest tail on a coarse grid of the nuisance: a quick look, too small by a little."""
        angles = self._angles(delta)
        if angles is None:
            return 0.0
        units = 2.0 * math.sqrt(self.region.n * (1.0 - abs(delta))) * (angles[1] - angles[0])
        return float(self._at(delta, np.linspace(*angles, math.ceil(2.0 * units) + 2)).max())

    def certified(self, delta: float) -> float:
        """Returns an upper bound of the tail over the whole nuisance range (see the module's third step)."""
        angles = self._angles(delta)
        if angles is None:
            return 0.0
        low, high = angles
        n, spread = self.region.n, 1.0 - abs(delta)
        if high == low:
            return float(self._at(delta, np.array([low]))[0])
        pieces = max(1, math.ceil((high - low) * math.sqrt(n * spread) / _HALF))
        half = (high - low) / (2.0 * pieces)
        growth = n * math.log1p(2.0 * spread * math.sinh(half * (_RHO - 1.0 / _RHO) / 2.0) ** 2)
        error = 4.0 * math.exp(growth - _DEGREE * math.log(_RHO)) / (_RHO - 1.0)
        worst = 0.0
        nodes = np.cos(np.pi * np.arange(_DEGREE + 1) / _DEGREE)
        for piece in range(pieces):
            values = self._at(delta, low + half * (2 * piece + 1 + nodes))
            worst = max(worst, _polynomial_maximum(values))
        return worst + error + _ROUNDING


def _polynomial_maximum(values: Floats) -> float:
    """Returns the maximum on [-1, 1] of the polynomial through values at the Chebyshev points of the second kind."""
    from numpy.polynomial import chebyshev

    degree = values.size - 1
    weights = np.ones(degree + 1)
    weights[[0, -1]] = 0.5
    grid = np.pi * np.outer(np.arange(degree + 1), np.arange(degree + 1)) / degree
    coefficients = 2.0 / degree * weights * (np.cos(grid) @ (weights * values))
    derivative = chebyshev.chebder(coefficients)
    scale = np.abs(derivative).max()
    if scale == 0.0:
        return float(values.max())
    # Trailing coefficients at the level of rounding would only put spurious roots far away, or overflow them.
    keep = np.flatnonzero(np.abs(derivative) > 1e-15 * scale)[-1] + 1
    roots = chebyshev.chebroots(derivative[:keep])
    inside = roots.real[(np.abs(roots.imag) < 1e-3) & (np.abs(roots.real) <= 1.0)]
    return float(max(values.max(), chebyshev.chebval(inside, coefficients).max(initial=0.0)))


def nuisance_limits(harmful: int, helpful: int, n: int, gamma: float) -> tuple[float, float]:
    """Returns (p_high, q_low), Clopper-Pearson limits that both hold with probability 1 - gamma."""
    from scipy import special

    high = 1.0 if harmful == n else float(special.betaincinv(harmful + 1.0, float(n - harmful), 1.0 - gamma / 2.0))
    low = 0.0 if helpful == 0 else float(special.betaincinv(float(helpful), n - helpful + 1.0, gamma / 2.0))
    return high, low


def flips_to_sum(p_high: float, delta_low: float, n: int) -> int:
    """Returns the largest number of flips that any window of ``Region.probability`` can reach."""
    rate = min(1.0, 2.0 * p_high + abs(delta_low))
    reach = _WINDOW / 3.0 + math.sqrt(_WINDOW**2 / 9.0 + 2.0 * _WINDOW * n * rate)
    return min(n, math.ceil(n * rate + reach) + 1)


def observed_tail(harmful: int, helpful: int, n: int, alpha: float) -> tuple[Tail, float]:
    """Returns the tail that judges losses at or above the observed one, and the level that it is compared with.

    A loss is refuted, and with it all larger ones, where ``tail.certified(loss) <= level``.
    """
    from scipy import special

    z = -float(special.ndtri(alpha))
    gamma = _GAMMA * alpha
    p_high, q_low = nuisance_limits(harmful, helpful, n, gamma)
    flips = flips_to_sum(p_high, (harmful - helpful) / n, n)
    region = Region.below(approximate_limit(harmful, helpful, n, z), n, z, flips).holding(harmful, helpful)
    return Tail(region=region, harmful_most=p_high, helpful_least=q_low), alpha - gamma


def upper_limit(harmful: int, helpful: int, n: int, alpha: float) -> float:
    """Returns the exact one-sided upper confidence bound of p(harmful) - p(helpful) at level 1 - alpha.

    Never below the point estimate. Non-decreasing in ``harmful``, non-increasing in ``helpful`` (up to 1e-8).

    Args:
      harmful, helpful: Numbers of examples that got worse and better, harmful + helpful <= n.
      alpha: In (0, 1/2).
    Source: Buehler (1957), JASA 52; Lloyd and Moldovan (2007), Statistics in Medicine 26, 3369-3384 (paired data);
      Berger and Boos (1994), JASA 89; ordering and certificate: module docstring.
    """
    from scipy import optimize

    if harmful == n:
        return 1.0
    estimate = (harmful - helpful) / n
    tail, level = observed_tail(harmful, helpful, n, alpha)
    if tail.certified(estimate) <= level:
        return estimate
    guess = float(optimize.brentq(lambda delta: tail.sampled(delta) - level, estimate, 1.0, xtol=1e-12, rtol=1e-9))
    step = 1e-9 * max(guess - estimate, 1e-3)
    # The true worst case falls with delta, so one certified delta speaks for all larger ones.
    open_end, limit = estimate, guess
    while limit < 1.0 and tail.certified(limit) > level:
        open_end, limit, step = limit, min(limit + step, 1.0), 2.0 * step
    if open_end >= guess and tail.certified(limit) < level:
        root = optimize.brentq(lambda delta: tail.certified(delta) - level, open_end, limit, xtol=1e-10)
        closer = float(root) + 2e-10
        limit = closer if closer < limit and tail.certified(closer) <= level else limit
    return limit
