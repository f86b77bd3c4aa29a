"""The exact bound against brute force: every outcome, a dense nuisance grid, no shared code with the implementation."""

import math

import numpy as np
import pytest

from fewbits.evidence import trinomial, trinomial_bound

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE


def _outcomes(n):
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


def _probabilities(n, outcomes, p, q):
    """Trinomial probabilities by math.comb: the oracle, slow and obvious."""
    rest = max(1 - p - q, 0.0)
    return np.array(
        [math.comb(n, b) * math.comb(n - b, c) * p**b * q**c * rest ** (n - b - c) for b, c in outcomes],
    )


@pytest.fixture(scope="module")
def bounds():
    """Upper bounds of every outcome for some small n."""
    return {n: {o: trinomial.upper_limit(*o, n, ALPHA) for o in _outcomes(n)} for n in (1, 2, 3, 7, 12)}


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_the_bound_covers_at_every_loss_and_nuisance(bounds, n):
    outcomes = list(bounds[n])
    limit = np.array(list(bounds[n].values()))
    # The true losses where coverage is least lie just above a bound's value; 1e-9 is far above the bounds' rounding.
    losses = np.unique(np.concatenate([limit + 1e-9, np.linspace(-0.999, 0.999, 101)]))
    worst = 0.0
    for loss in losses[losses < 1]:
        missed = limit < loss
        for share in np.linspace(0, 1, 41):
            smaller = share * (1 - abs(loss)) / 2
            chance = _probabilities(n, outcomes, smaller + max(loss, 0), smaller + max(-loss, 0))
            worst = max(worst, float(chance[missed].sum()))
    assert worst <= ALPHA + 1e-9  # rounding of sums of at most 91 products
    assert worst > 0.9 * ALPHA or n == 1  # and it wastes little of the level somewhere


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_more_harm_never_lowers_and_more_help_never_raises_the_bound(bounds, n):
    for (b, c), limit in bounds[n].items():
        slack = 1e-8  # root finding stops within 1e-9
        if b + c < n:
            assert bounds[n][b + 1, c] >= limit - slack
            assert bounds[n][b, c + 1] <= limit + slack
        assert (b - c) / n <= limit <= 1


def test_monotone_at_hundreds_of_examples():
    limits = np.array([[trinomial.upper_limit(b, c, 400, ALPHA) for c in range(7)] for b in range(4)])
    assert np.all(np.diff(limits, axis=0) >= -1e-8)
    assert np.all(np.diff(limits, axis=1) <= 1e-8)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("n", [1, 2, 10, 30, 600, 4500, 50_000])
def test_without_flips_the_bound_is_the_closed_form(n, confidence):
    alpha = 1 - confidence
    expected = -math.expm1(math.log(alpha) / n)
    bound = trinomial.upper_limit(0, 0, n, alpha)
    # gamma costs a relative 1e-8 / |ln alpha| <= 2e-8, the allowances for rounding and cut 1.1e-11 / alpha <= 1.1e-8
    assert expected * (1 - 1e-12) <= bound <= expected * (1 + 1e-7)


def test_all_harmful_is_bounded_by_one_and_all_helpful_by_less_than_nothing_lost():
    assert trinomial.upper_limit(20, 0, 20, ALPHA) == 1.0
    assert trinomial.upper_limit(0, 20, 20, ALPHA) < -0.6


def test_the_lower_bound_mirrors_the_upper_bound():
    one, other = trinomial_bound(7, 3, 300), trinomial_bound(3, 7, 300)
    assert one.lower == -other.bound
    assert one.lower < one.drop < one.bound


@pytest.mark.parametrize(("b", "c", "n"), [(3, 1, 60), (5, 5, 150), (12, 10, 600), (0, 4, 90), (40, 38, 700)])
def test_the_certified_maximum_is_not_below_a_dense_grid_and_hardly_above(b, c, n):
    """2,000 nuisance values against the certificate: above all of them, and by less than the grid's own coarseness."""
    z = 1.6448536269514722
    p_high, q_low = trinomial.nuisance_limits(b, c, n, 1e-9)
    region = trinomial.Region.below(trinomial.approximate_limit(b, c, n, z), n, z, n)
    tail = trinomial.Tail(region=region, harmful_most=p_high, helpful_least=q_low)
    for loss in (-0.02, 0.0, 0.004, 0.03):
        low = max(q_low - max(-loss, 0), 0.0)
        high = min(p_high - max(loss, 0), (1 - abs(loss)) / 2)
        smaller = np.linspace(math.sqrt(low), math.sqrt(high), 2000) ** 2
        dense = region.probability(smaller + max(loss, 0), smaller + max(-loss, 0)).max()
        certified = tail.certified(loss)
        assert certified >= dense - 1e-12
        # On the Fisher scale 2 sqrt(n) d(phi) the tail rises at most e s^2 / 8 between grid points s apart (Cauchy's
        # estimate); the whole range is under 60 such units here, s < 0.03.
        assert certified <= dense + math.e * 0.03**2 / 8 + 2e-9


def test_a_region_is_monotone_and_its_chain_is_nested():
    n, z = 200, 1.6448536269514722
    smaller = trinomial.Region.below(0.01, n, z, n).most
    larger = trinomial.Region.below(0.02, n, z, n).most
    assert np.all(larger >= smaller)
    assert np.all(np.diff(larger) >= 0)  # one more helpful flip never leaves the set
    assert np.all(np.diff(larger) <= 1)  # nor does one harmful flip less
    assert np.any(larger > smaller)


def test_probability_of_a_region_equals_the_sum_over_outcomes():
    n, p, q = 12, 0.2, 0.13
    region = trinomial.Region.below(0.3, n, 1.6448536269514722, n)
    outcomes = _outcomes(n)
    members = np.array([b <= region.most[b + c] for b, c in outcomes])
    expected = float(_probabilities(n, outcomes, p, q)[members].sum())
    got = float(region.probability(np.array([p]), np.array([q]))[0])
    assert members.any()
    assert not members.all()
    assert got == pytest.approx(expected, abs=1e-11)  # cut 1e-12 plus rounding


def _met(harmful, helpful, n, budget):
    if (harmful - helpful) / n > budget:
        return False
    tail, level = trinomial.observed_tail(harmful, helpful, n, ALPHA)
    return tail.certified(budget) <= level


@pytest.mark.parametrize(("harmful", "helpful"), [(0, 0), (3, 1), (5, 5), (2, 9)])
def test_the_bound_is_where_losses_begin_to_be_refuted(harmful, helpful):
    bound = trinomial.upper_limit(harmful, helpful, 600, ALPHA)
    assert _met(harmful, helpful, 600, bound)
    assert not _met(harmful, helpful, 600, bound - 1e-8)  # root finding stops within 1e-9


@pytest.mark.parametrize(("rate", "n"), [(0.0, 100), (0.003, 600), (0.01, 600), (0.03, 250), (0.1, 600)])
def test_false_met_at_the_edge_of_the_budget_stays_within_the_level(rate, n):
    """Seeded: the true loss is just above the budget, the helpful rate the nuisance; how often is it called "met"?"""
    budget, trials = 0.012, 3000
    rng = np.random.default_rng(7)
    harmful = rate + budget * (1 + 1e-9)
    draws = rng.multinomial(n, [harmful, rate, 1 - harmful - rate], size=trials)[:, :2]
    distinct, counts = np.unique(draws, axis=0, return_counts=True)
    # "met" is monotone in the helpful count (tested above): for each harmful count find the fewest helpful ones for it.
    met = 0
    for b in np.unique(distinct[:, 0]):
        rows = distinct[:, 0] == b
        options = np.sort(distinct[rows, 1])
        low, high = 0, options.size
        while low < high:
            middle = (low + high) // 2
            if _met(int(b), int(options[middle]), n, budget):
                high = middle
            else:
                low = middle + 1
        if low < options.size:
            met += int(counts[rows][distinct[rows, 1] >= options[low]].sum())
    # Standard error of a share of 5 % in 3,000 trials: 0.40 points; three of them.
    assert met / trials <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.4, 0.2, 0.1, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("n", [4, 9, 16])
def test_coverage_sweep(n, alpha):
    outcomes = _outcomes(n)
    limit = np.array([trinomial.upper_limit(*o, n, alpha) for o in outcomes])
    for loss in np.unique(limit + 1e-9):
        if loss >= 1:
            continue
        for share in np.linspace(0, 1, 61) ** 2:
            smaller = share * (1 - abs(loss)) / 2
            chance = _probabilities(n, outcomes, smaller + max(loss, 0), smaller + max(-loss, 0))
            assert chance[limit < loss].sum() <= alpha + 1e-9
