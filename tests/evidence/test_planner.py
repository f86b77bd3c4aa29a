import math

import numpy as np
import pytest

from fewbits._base.errors import UsageError
from fewbits.evidence import examples_needed, planner, smallest_certifiable_budget, trinomial


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("budget", [0.001, 0.005, 0.01, 0.02, 0.1, 0.5])
def test_without_flips_it_is_the_smallest_number_whose_bound_is_inside(budget, confidence):
    n = examples_needed(budget, confidence)
    assert smallest_certifiable_budget(n, confidence) <= budget
    assert n == 1 or smallest_certifiable_budget(n - 1, confidence) > budget


def test_known_numbers():
    assert [examples_needed(b) for b in (0.005, 0.01, 0.02)] == [598, 299, 149]
    assert smallest_certifiable_budget(600) == pytest.approx(1 - 0.05 ** (1 / 600), rel=1e-12)


def test_none_where_the_rates_alone_use_up_the_budget():
    assert examples_needed(0.01, harmful_rate=0.02, helpful_rate=0.01) is None
    assert examples_needed(0.0) is None
    assert examples_needed(0.01, harmful_rate=0.03) is None


def test_more_flips_smaller_budgets_and_more_power_need_more_examples():
    few = examples_needed(0.02, harmful_rate=0.01, helpful_rate=0.005)
    assert examples_needed(0.02, harmful_rate=0.03, helpful_rate=0.025) > few
    assert examples_needed(0.015, harmful_rate=0.01, helpful_rate=0.005) > few
    assert examples_needed(0.02, harmful_rate=0.01, helpful_rate=0.005, power=0.95) > few


def _power_of_the_bound(n, budget, harmful, helpful):
    """The probability of "met" by the exact bound itself, over every outcome that matters: the oracle."""
    total = 0.0
    for b in range(60):
        for c in range(60):
            rest = n - b - c
            chance = math.exp(
                math.lgamma(n + 1)
                - math.lgamma(b + 1)
                - math.lgamma(c + 1)
                - math.lgamma(rest + 1)
                + b * math.log(harmful)
                + c * math.log(helpful)
                + rest * math.log(1 - harmful - helpful)
            )
            if chance > 2e-5 and (b - c) / n <= budget:
                tail, level = trinomial.observed_tail(b, c, n, 0.05)
                total += chance * (tail.certified(budget) <= level)
    return total


@pytest.mark.parametrize(
    ("budget", "harmful", "helpful"),
    [
        (0.03, 0.01, 0.005),
        (0.02, 0.006, 0.006),
        pytest.param(0.02, 0.01, 0.005, marks=pytest.mark.slow),
        pytest.param(0.03, 0.02, 0.015, marks=pytest.mark.slow),
    ],
)
def test_the_planned_number_gives_the_wanted_power(budget, harmful, helpful):
    n = examples_needed(budget, harmful_rate=harmful, helpful_rate=helpful)
    # The outcomes left out hold under 0.01. The power is a sawtooth in n with teeth of up to 0.03 at these counts, and
    # the plan's nuisance limits differ from the bound's, which moves at most a tooth.
    assert _power_of_the_bound(n, budget, harmful, helpful) == pytest.approx(0.8, abs=0.04)


def test_the_normal_approximation_meets_the_exact_power_where_it_takes_over():
    """At about the number of examples where the planner switches, its power differs from the wanted one by little."""
    n = planner.normal_guess(0.005, 0.05, 0.018, 0.0165, 0.8)
    assert 10_000 < n < 20_000
    # dpower / dln(n) = phi(0.84) * (1.645 + 0.84) / 2 = 0.35: 0.01 of power is 3 % of n.
    assert planner.certainty(n, 0.005, 0.05, 0.018, 0.0165) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (1.5, {}),
        (math.nan, {}),
        (0.01, {"harmful_rate": -0.1}),
        (0.01, {"harmful_rate": 0.6, "helpful_rate": 0.6}),
        (0.01, {"power": 1.0}),
        (0.01, {"confidence": 0.3}),
    ],
)
def test_impossible_plans_are_refused(budget, options):
    with pytest.raises(UsageError):
        examples_needed(budget, **options)


def test_no_example_certifies_nothing():
    with pytest.raises(UsageError, match="planner-range"):
        smallest_certifiable_budget(0)
    assert np.isfinite(smallest_certifiable_budget(1))
