"""The betting bounds against slow gamblers who play one claim at a time, in plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from fewbits.evidence import betting

GRID = sorted([0.0, *(sign * 1.01**-k for k in range(1158) for sign in (1, -1))])


def hedged_wealth(values: list[float], claim: float, alpha: float) -> float:
    """Returns what the hedger of the module's docstring ends with against one claim; values within [-1, 1]."""
    wealth, moment = 1.0, 0.25
    for place, value in enumerate(values):
        if wealth >= 1 / alpha:
            break
        chance = min(alpha * wealth, 1.0 - 1e-12)  # the hedge of a goal all but reached goes to zero: kept above it
        if chance <= 0:
            break
        w = float(special.ndtri(chance))
        sigma = math.sqrt(moment / (1 + place))
        density = math.exp(-0.5 * w * w) / math.sqrt(2 * math.pi)
        bet = min(density / (chance * sigma * math.sqrt(len(values) - place)), 1 / (1 - claim))
        wealth *= max(0.0, 1 + bet * (claim - value))
        moment += (claim - value) ** 2
    return wealth


def hedged_oracle(values: np.ndarray, alpha: float, seed: int) -> float:
    """Returns the last claim refuted when claims are tested from the largest down."""
    ordered = np.random.default_rng(seed).permutation(values).tolist()
    limit = 1.0
    for claim in reversed([c for c in GRID if float(np.mean(values)) < c < 1.0]):
        if hedged_wealth(ordered, claim, alpha) < 1 / alpha:
            break
        limit = claim
    return limit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_hedged_bound_is_the_last_claim_that_the_gambler_refutes(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0.02, 0.05 + 0.1 * seed, 60 + 30 * seed), -1, 1)
    got = betting.hedged_upper_limit(3.0 * values, 3.0, alpha, seed) / 3.0
    # Claims are one part in 100 apart; rounding moves none past another.
    assert got == pytest.approx(hedged_oracle(values, alpha, seed), rel=1e-9)
    assert got > values.mean()


def mixture_wealth(sums: np.ndarray, sizes: np.ndarray, claim: float) -> float:
    """Returns the average wealth of 48 fixed bets, a quarter of the money on the full one."""
    bets = np.geomspace(0.5 / math.sqrt(sums.size), 1.0, 48)
    total = 0.0
    for number, bet in enumerate(bets):
        share = 0.25 if number == 47 else 0.75 / 47
        grown = 1.0
        for value, size in zip(sums, sizes, strict=True):
            grown *= 1 - bet * (value - claim * size) / ((1 - claim) * sizes.max())
        total += share * grown
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_at_the_mixture_bound_the_wealth_is_one_over_alpha(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 50).astype(float)
    sums = np.array([np.clip(rng.normal(0.02, 0.1, int(size)), -1, 1).sum() for size in sizes])
    limit = betting.mixture_upper_limit(2.0 * sums, sizes, 2.0, alpha) / 2.0
    assert mixture_wealth(sums, sizes, limit) >= (1 - 1e-9) / alpha
    assert mixture_wealth(sums, sizes, limit - 1e-9) < 1 / alpha
    # The claim is about the mean over examples, and each factor stays >= 0 whatever a group does.
    assert limit > sums.sum() / sizes.sum()
    worst = sums.copy()
    worst[0] = sizes[0] = sizes.max()
    assert mixture_wealth(worst, sizes, limit) >= 0


def test_claims_refuted_early_stay_refuted_when_the_rest_speaks_for_them() -> None:
    # 128 examples without loss refute the large claims; 64 that lose more than any other claim leave those standing.
    wanted = np.repeat([0.0, 0.0, 0.25], 64)
    values = np.empty(192)
    values[np.random.default_rng(3).permutation(192)] = wanted
    got = betting.hedged_upper_limit(values, 1.0, 0.05, 3)
    assert got == pytest.approx(hedged_oracle(values, 0.05, 3), rel=1e-9)
    assert got < 0.25, "else nothing was refuted early"
