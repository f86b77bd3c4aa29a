"""How many examples a budget needs, before any is spent."""

from __future__ import annotations

import math

from fewbits._base.errors import UsageError
from fewbits.evidence import trinomial
from fewbits.evidence.paired import check_confidence

_LARGE = 20_000  # examples from which the normal approximation is used alone (it is within one percent there)
_RESOLUTION = 0.005  # relative, of the number of examples that a power calculation returns


def smallest_certifiable_budget(n: int, confidence: float = 0.95) -> float:
    """Returns the bound that n examples give when not one of them flips: 1 - (1 - confidence)^(1/n).

    No budget below it can be met with n examples on 0/1 scores, unless flips help.

    >>> round(smallest_certifiable_budget(600), 6)
    0.00498

    Raises: UsageError(slug="confidence-range"); UsageError(slug="planner-range") if n < 1.
    Source: paired.trinomial_bound without flips.
    """
    alpha = check_confidence(confidence)
    if n < 1:
        raise UsageError(f"{n} examples certify nothing; ask for at least 1", slug="planner-range")
    return -math.expm1(math.log(alpha) / n)


def examples_needed(
    budget: float,
    confidence: float = 0.95,
    harmful_rate: float = 0.0,
    helpful_rate: float = 0.0,
    power: float = 0.8,
) -> int | None:
    """Returns how many 0/1-scored examples certify the budget with probability ``power`` at these flip rates.

    Without flips it is exact: the smallest n with 1 - (1 - confidence)^(1/n) <= budget (598 for 0.5 points at 95 %), at
    any power. Otherwise from the power of the trinomial test, with its nuisance placed near the given rates (the test
    suite compares it with the bound itself), and from 20 000 examples on from the normal approximation. None if no
    number would do: the rates' loss is not below the budget.

    >>> examples_needed(0.005), examples_needed(0.01, harmful_rate=0.02, helpful_rate=0.01)
    (598, None)

    Args:
      budget: Largest acceptable mean loss, in (-1, 1]; 0.01 is one point.
      harmful_rate, helpful_rate: Expected shares of examples that get worse and better.
      power: Wanted probability of "met", in (0, 1).
    Raises: UsageError(slug="confidence-range" | "planner-range").
    Source: trinomial.py; power by summing the exact distribution.
    """
    alpha = check_confidence(confidence)
    if not -1.0 < budget <= 1.0:
        raise UsageError(f"budget {budget!r} is not a loss in (-1, 1]; 0.01 is one point", slug="planner-range")
    if not (harmful_rate >= 0.0 and helpful_rate >= 0.0 and harmful_rate + helpful_rate <= 1.0):
        raise UsageError(
            f"flip rates {harmful_rate!r} and {helpful_rate!r} are not shares of the examples; use numbers in [0, 1] "
            "that add up to at most 1",
            slug="planner-range",
        )
    if not 0.0 < power < 1.0:
        raise UsageError(f"power {power!r} is not between 0 and 1; use 0.8", slug="planner-range")
    if harmful_rate - helpful_rate >= budget:
        return None
    if budget >= 1.0:
        return 1
    if harmful_rate == 0.0 and helpful_rate == 0.0:
        n = max(1, math.ceil(math.log(alpha) / math.log1p(-budget)))
        return n - 1 if n > 1 and smallest_certifiable_budget(n - 1, confidence) <= budget else n
    n = normal_guess(budget, alpha, harmful_rate, helpful_rate, power)
    return n if n > _LARGE else _search(n, budget, alpha, harmful_rate, helpful_rate, power)


def normal_guess(budget: float, alpha: float, harmful_rate: float, helpful_rate: float, power: float) -> int:
    """Returns n from the normal approximation of the score test; a good start, too small where flips are few.

    n = ((z_alpha sigma_0 + z_power sigma_1) / (budget - loss))^2, sigma_0 at the nearest rates that lose the budget.
    """
    from scipy import special

    loss = harmful_rate - helpful_rate
    # The nuisance that n -> infinity observations at these rates would be fitted with under "loss = budget".
    scale = 1e9
    helped = _restricted_rate(harmful_rate * scale, helpful_rate * scale, scale, budget)
    under_null = 2.0 * helped + budget - budget**2
    actual = harmful_rate + helpful_rate - loss**2
    z = -float(special.ndtri(alpha)) * math.sqrt(under_null) + float(special.ndtri(power)) * math.sqrt(actual)
    return max(1, math.ceil((z / (budget - loss)) ** 2))


def _restricted_rate(harmful: float, helpful: float, n: float, delta: float) -> float:
    """Returns the most likely helpful rate given that the loss is delta (Tango 1998, Statistics in Medicine 17)."""
    unchanged = n - harmful - helpful
    slope = (harmful + helpful) * (1.0 - delta) - 2.0 * delta * (unchanged + helpful)
    root = math.sqrt(max(slope**2 + 8.0 * n * helpful * delta * (1.0 - delta), 0.0))
    return max(0.0, -delta, (slope + root) / (4.0 * n))


def _search(n: int, budget: float, alpha: float, harmful: float, helpful: float, power: float) -> int:
    """Returns the smallest n of enough power, to a relative resolution, by bracketing and bisection from a guess."""

    def enough(count: int) -> bool:
        return certainty(count, budget, alpha, harmful, helpful) >= power

    low, high = n, n
    while not enough(high):
        low, high = high, math.ceil(high * 1.15) + 1
    if low == high:
        while low > 1:
            low = math.floor(high / 1.15)
            if not enough(low):
                break
            high = low
    while high - low > max(1, _RESOLUTION * high):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def certainty(n: int, budget: float, alpha: float, harmful: float, helpful: float) -> float:
    """Returns the probability, at these flip rates, that n examples put the exact bound at or below the budget.

    The largest set of the exact bound's chain whose worst tail at loss = budget is at most alpha, the nuisance being
    limited to what the expected counts allow (there the bound limits it to what the observed counts allow).
    """
    import numpy as np
    from scipy import special

    z = -float(special.ndtri(alpha))
    expected = round(n * harmful), round(n * helpful)
    p_high, q_low = trinomial.nuisance_limits(*expected, n, 1e-4)
    flips = trinomial.flips_to_sum(max(p_high, harmful), min(budget, harmful - helpful), n)
    best = 0.0
    spread = z * math.sqrt((harmful + helpful + abs(budget)) / n) + 3.0 / n
    low, high = max(budget - spread, -1.0), min(budget + spread, 1.0)
    for _ in range(12):
        middle = 0.5 * (low + high)
        region = trinomial.Region.below(middle, n, z, flips)
        tail = trinomial.Tail(region=region, harmful_most=p_high, helpful_least=q_low)
        if tail.sampled(budget) <= alpha:
            low = middle
            best = float(region.probability(np.array([harmful]), np.array([helpful]))[0])
        else:
            high = middle
    return best
