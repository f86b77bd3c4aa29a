import math

import numpy as np
import pytest

from fewbits._base.errors import UsageError
from fewbits.evidence import decide, paired_bound, trinomial_bound


def test_met_when_the_bound_and_not_the_estimate_is_inside():
    assert decide(trinomial_bound(0, 0, 600), 0.005).status == "met"
    assert decide(trinomial_bound(0, 0, 500), 0.005).status == "undecided"


def test_the_budget_itself_is_inside():
    bound = trinomial_bound(3, 2, 400)
    assert decide(bound, bound.bound).status == "met"
    assert decide(bound, math.nextafter(bound.bound, 0)).status == "undecided"


def test_not_met_when_the_estimate_exceeds_the_budget():
    verdict = decide(trinomial_bound(12, 2, 600), 0.01)
    assert verdict.status == "not met"
    assert verdict.examples_needed is None
    assert "more examples would not help" in verdict.reason


def test_undecided_names_more_examples_than_there_were():
    verdict = decide(trinomial_bound(3, 1, 600), 0.01)
    assert verdict.status == "undecided"
    assert verdict.examples_needed > 600
    assert str(verdict.examples_needed) in verdict.reason


def test_undecided_without_flips_names_the_closed_form():
    assert decide(trinomial_bound(0, 0, 100), 0.01).examples_needed == 299


def test_undecided_at_the_very_budget_says_that_no_number_decides():
    verdict = decide(trinomial_bound(6, 0, 600), 0.01)
    assert (verdict.status, verdict.examples_needed) == ("undecided", None)
    assert "no number" in verdict.reason


def test_undecided_on_other_scores_extrapolates_the_margin():
    rng = np.random.default_rng(0)
    before = rng.random(300)
    after = np.clip(before - rng.normal(0, 0.1, 300), 0, 1)
    verdict = decide(paired_bound(before, after), 0.012)
    assert verdict.status == "undecided"
    assert verdict.examples_needed > 300


@pytest.mark.parametrize("budget", [math.nan, math.inf])
def test_a_budget_that_is_no_number_is_refused(budget):
    with pytest.raises(UsageError, match="budget"):
        decide(trinomial_bound(0, 0, 10), budget)
