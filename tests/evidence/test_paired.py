import math

import numpy as np
import pytest

from fewbits._base.errors import DataError, UsageError
from fewbits.evidence import betting, paired_bound, relative_bound, trinomial_bound

ALPHA = 0.05


def _flips(harmful, helpful, n):
    before, after = np.ones(n), np.ones(n)
    after[:harmful] = 0
    before[harmful : harmful + helpful] = 0
    return before, after


def test_zero_one_scores_take_the_exact_bound_of_their_flip_counts():
    got = paired_bound(*_flips(4, 2, 300))
    assert got == trinomial_bound(4, 2, 300)
    assert got.exact
    assert got.method == "exact-trinomial"


def test_two_valued_scores_of_another_scale_scale_the_bound():
    before, after = _flips(4, 2, 300)
    got = paired_bound(10 * before - 5, 10 * after - 5, bounds=(-5.0, 5.0))
    assert got.bound == pytest.approx(10 * trinomial_bound(4, 2, 300).bound, rel=1e-12)


def test_the_method_follows_from_scores_bounds_and_groups():
    rng = np.random.default_rng(0)
    x, y = rng.random(60), rng.random(60)
    even, uneven = np.repeat(np.arange(20), 3), np.r_[np.repeat(np.arange(20), 2), np.full(20, 99)]
    assert paired_bound(x, y).method == "betting"
    assert paired_bound(x, y, groups=even).method == "betting-by-group"
    assert paired_bound(x, y, groups=uneven).method == "betting-mixture-by-group"
    assert paired_bound(x, y, groups=[f"speaker {i}" for i in range(60)]).method == "betting"
    free = paired_bound(x, y, bounds=None)
    assert (free.method, free.exact) == ("asymptotic-t", False)
    for bound in (paired_bound(x, y), paired_bound(x, y, groups=even), paired_bound(x, y, groups=uneven), free):
        assert bound.lower <= bound.drop <= bound.bound
        assert bound.drop == pytest.approx(float((x - y).mean()), abs=1e-15)


def test_exact_methods_stay_sound_where_nothing_changed():
    same = np.full(600, 0.5)
    # Betting: wealth (1 + m/(1 - m))^600 at the largest bet at best; it cannot beat the closed form, and comes near it.
    closed = 1 - ALPHA ** (1 / 600)
    assert closed <= paired_bound(same, same).bound <= 1.15 * closed
    by_group = paired_bound(same, same, groups=np.r_[np.repeat(np.arange(299), 2), 299, 300]).bound
    assert by_group > 1 - ALPHA ** (1 / 301)  # 301 groups are worth no more than 301 examples


def test_the_betting_bound_is_reproducible_and_its_seed_only_moves_it_a_little():
    rng = np.random.default_rng(3)
    before = rng.random(1500)
    after = np.clip(before - rng.normal(0.002, 0.05, 1500), 0, 1)
    limits = [paired_bound(before, after, seed=seed).bound for seed in (0, 0, 1, 2)]
    assert limits[0] == limits[1]
    normal = float((before - after).mean()) + 1.645 * float((before - after).std()) / math.sqrt(1500)
    assert all(normal < limit < normal + 0.003 for limit in limits)  # one and a half margins of the normal bound


@pytest.mark.parametrize(
    ("name", "draw", "mean"),
    [
        ("rare large losses", lambda rng, shape: rng.choice([1.0, 0.0], shape, p=[0.02, 0.98]), 0.02),
        ("dense small noise", lambda rng, shape: 0.01 + rng.uniform(-0.1, 0.1, shape), 0.01),
        ("skewed", lambda rng, shape: 0.5 * rng.beta(0.1, 4.9, shape), 0.01),
    ],
)
def test_betting_falls_below_the_true_mean_no_more_often_than_the_level(name, draw, mean):
    trials, rng = 300, np.random.default_rng(11)
    values = draw(rng, (trials, 150))
    missed = sum(betting.hedged_upper_limit(row, 1.0, ALPHA, seed=5) < mean for row in values)
    # Standard error of a share of 5 % in 300 trials: 1.26 points; three of them.
    assert missed / trials <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)


@pytest.mark.parametrize("effect", [0.0, 0.02])
def test_bounds_over_unequal_groups_cover_the_weighted_mean_given_the_sizes(effect):
    """Group losses differ with the size (given the sizes they are not identically distributed), and share a draw."""
    trials, rng = 400, np.random.default_rng(2)
    sizes = np.tile([1.0, 2.0, 10.0], 40)
    rates = 0.03 + effect * np.array([-1.0, 0.0, 1.0])
    true = float((np.tile(rates, 40) * sizes).sum() / sizes.sum())
    missed = 0
    for _ in range(trials):
        harmed = rng.random(sizes.size) < np.tile(rates, 40)  # a whole group flips or none of it: fully dependent
        missed += betting.mixture_upper_limit(harmed * sizes, sizes, 1.0, ALPHA) < true
    # Standard error of a share of 5 % in 400 trials: 1.09 points; three of them.
    assert missed / trials <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)


def test_false_met_of_zero_one_scores_in_groups_stays_within_the_level():
    """At the edge of the budget, whole groups flip together; counting examples would be wrong far more often."""
    budget, trials, rng = 0.04, 150, np.random.default_rng(9)
    before, groups = np.ones(600), np.repeat(np.arange(120), 5)
    naive = {flips: trinomial_bound(flips, 0, 600).bound <= budget for flips in range(0, 25, 5)}
    met = wrong = 0
    for _ in range(trials):
        harmed = np.repeat(rng.random(120) < budget * (1 + 1e-9), 5).astype(float)
        met += paired_bound(before, before - harmed, groups=groups).bound <= budget
        wrong += naive.get(int(harmed.sum()), False)
    # Standard error of a share of 5 % in 150 trials: 1.78 points; three of them.
    assert met / trials <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)
    assert wrong / trials > 2 * ALPHA


def test_the_mixture_bound_ignores_the_order_and_rises_with_harm():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 9, 80).astype(float)
    sums = sizes * np.clip(rng.normal(0.01, 0.1, 80), -1, 1)
    order = rng.permutation(80)
    limit = betting.mixture_upper_limit(sums, sizes, 1.0, ALPHA)
    assert betting.mixture_upper_limit(sums[order], sizes[order], 1.0, ALPHA) == pytest.approx(limit, abs=1e-9)
    assert betting.mixture_upper_limit(np.minimum(sums + 0.2, sizes), sizes, 1.0, ALPHA) > limit


def test_the_asymptotic_bound_is_students_t():
    loss = np.array([0.1, 0.3, -0.1, 0.2, 0.05])
    got = paired_bound(10 + loss, np.full(5, 10.0), bounds=None)
    margin = 2.131846786 * loss.std(ddof=1) / math.sqrt(5)  # t(4), 95 %: any table of Student's t
    assert got.bound == pytest.approx(loss.mean() + margin, rel=1e-8)
    assert got.lower == pytest.approx(loss.mean() - margin, rel=1e-8)


def test_groups_widen_the_asymptotic_bound_of_dependent_examples():
    rng = np.random.default_rng(8)
    loss = np.repeat(rng.normal(0, 1, 50), 20)
    base = np.zeros(1000)
    alone = paired_bound(base + loss, base, bounds=None)
    grouped = paired_bound(base + loss, base, bounds=None, groups=np.repeat(np.arange(50), 20))
    # The effective number is 50, not 1000: the margin grows by sqrt(20) = 4.47, up to t(49) over t(999) (2 %).
    assert (grouped.bound - grouped.drop) / (alone.bound - alone.drop) == pytest.approx(math.sqrt(20), rel=0.04)


def test_a_relative_bound_solves_fiellers_equation():
    rng = np.random.default_rng(5)
    before = -rng.gamma(4.0, 0.5, 400)  # negated losses
    after = before - np.abs(rng.normal(0.02, 0.02, 400))
    got = relative_bound(before, after)
    assert got.drop == pytest.approx((before - after).mean() / abs(before.mean()))
    for limit, sign in ((got.bound, -1), (got.lower, 1)):
        residual = (before - after) - limit * -before
        t = residual.mean() / (residual.std(ddof=1) / 20)
        assert t == pytest.approx(sign * 1.64868, abs=1e-4)  # t(399), 95 %


def test_half_the_asymptotic_bounds_are_refused_where_the_base_is_noise():
    with pytest.raises(DataError, match="relative-base"):
        relative_bound([1.0, -1.0, 0.5, -0.6], [1.0, -1.1, 0.4, -0.6])


@pytest.mark.parametrize(
    ("scores", "options", "error", "slug"),
    [
        (([1.0, np.nan], [1.0, 1.0]), {}, DataError, "score-nonfinite"),
        (([1.0, 1.0], [1.0, np.inf]), {}, DataError, "score-nonfinite"),
        (([1.0, 1.0], [1.0]), {}, DataError, "score-shape"),
        (([[1.0]], [[1.0]]), {}, DataError, "score-shape"),
        ((["a"], ["b"]), {}, DataError, "score-shape"),
        (([], []), {}, DataError, "no-examples"),
        (([1.0], [1.5]), {}, DataError, "score-out-of-bounds"),
        (([1.0], [0.5]), {"bounds": None}, DataError, "too-few-groups"),
        (([1.0, 0.0], [0.5, 0.0]), {"bounds": None, "groups": ["a", "a"]}, DataError, "too-few-groups"),
        (([1.0, 0.0], [1.0, 0.0]), {"groups": [1]}, DataError, "group-labels"),
        (([1.0, 0.0], [1.0, 0.0]), {"groups": [1.0, np.nan]}, DataError, "group-labels"),
        (([1.0], [1.0]), {"bounds": (1.0, 0.0)}, UsageError, "score-bounds"),
        (([1.0], [1.0]), {"confidence": 0.5}, UsageError, "confidence-range"),
        (([1.0], [1.0]), {"confidence": 1.0}, UsageError, "confidence-range"),
        (([1.0], [1.0]), {"confidence": math.nan}, UsageError, "confidence-range"),
    ],
)
def test_bad_scores_are_refused_with_their_slug(scores, options, error, slug):
    with pytest.raises(error) as caught:
        paired_bound(*scores, **options)
    assert caught.value.slug == slug


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0), (1.5, 0, 5)])
def test_impossible_flip_counts_are_refused(counts):
    with pytest.raises(DataError, match="flip-counts"):
        trinomial_bound(*counts)
