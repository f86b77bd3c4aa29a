"""Parts of the data, and the forecast of the verdict's bound."""

from __future__ import annotations

import numpy as np
import pytest

from fewbits._base.errors import DataError
from fewbits.datasets import open_dataset
from fewbits.datasets.base import Dataset
from fewbits.evidence import paired_bound
from fewbits.measurement.metrics import METRICS
from fewbits.measurement.metrics.base import FunctionMetric
from fewbits.measurement.outcome import Outcome
from fewbits.measurement.quality import Quality
from fewbits.search.verdict_data import CALIBRATION_CAP, SHARES, assign_parts, forecast, loss_bound

NONE = Quality(kl=0.0, sqnr_db=0.0, agreement=1.0)


def examples(count: int, *, start: int = 0, **more: np.ndarray) -> Dataset:
    return open_dataset({"x": np.arange(start, start + count, dtype=np.float32)[:, None], **more})


def flips(n: int, harmful: int, helpful: int) -> Outcome:
    before, after = np.zeros(n), np.zeros(n)
    before[:harmful] = 1
    after[harmful : harmful + helpful] = 1
    return Outcome(float_scores=before, scores=after, quality=NONE)


def test_parts_are_disjoint_and_near_their_shares() -> None:
    shares = SHARES[True, False]
    parts = assign_parts(examples(2000), None, shares=shares, seed=0)
    every = np.concatenate([parts.calibration, parts.selection, parts.verdict])
    assert len(every) == len(set(every.tolist())) == 2000
    for name in ("calibration", "selection", "verdict"):
        share = shares[name]
        # A binomial count: five of its standard deviations.
        assert abs(len(getattr(parts, name)) - 2000 * share) < 5 * np.sqrt(2000 * share * (1 - share))


def test_the_order_of_the_examples_plays_no_part() -> None:
    x = np.arange(500, dtype=np.float32)[:, None]
    order = np.random.default_rng(0).permutation(500)
    straight, mixed = (
        assign_parts(open_dataset({"x": a}), None, shares=SHARES[True, False], seed=3) for a in (x, x[order])
    )
    assert set(x[straight.verdict, 0]) == set(x[order][mixed.verdict, 0])
    other = assign_parts(open_dataset({"x": x}), None, shares=SHARES[True, False], seed=4)
    assert set(straight.verdict.tolist()) != set(other.verdict.tolist())


def test_what_is_over_the_calibration_cap_never_becomes_verdict_data() -> None:
    count = 8 * CALIBRATION_CAP
    capped = assign_parts(examples(count), None, shares=SHARES[True, False], seed=0)
    assert len(capped.calibration) == CALIBRATION_CAP
    assert len(capped.verdict) < 0.55 * count


def test_groups_are_never_divided() -> None:
    groups = np.arange(600) // 5
    parts = assign_parts(examples(600, groups=groups), None, shares=SHARES[True, False], seed=0)
    held = [set(groups[getattr(parts, name)]) for name in ("calibration", "selection", "verdict")]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    assert parts.groups is not None and set(parts.groups) == held[2]
    assert "group" in parts.rule


def test_eval_is_all_verdict_and_what_it_shares_is_left_out() -> None:
    parts = assign_parts(examples(300), examples(200, start=250), shares=SHARES[True, True], seed=0)
    assert len(parts.verdict) == 200
    assert max(*parts.calibration, *parts.selection) < 250
    assert len(parts.calibration) + len(parts.selection) == 250
    assert any(note.startswith("50 examples") for note in parts.notes)


def test_data_within_eval_leave_nothing() -> None:
    with pytest.raises(DataError, match="data-overlap"):
        assign_parts(examples(100), examples(300), shares=SHARES[False, True], seed=0)


def test_copies_stay_in_one_part_and_are_told() -> None:
    x = np.repeat(np.arange(100, dtype=np.float32), 4)[:, None]
    parts = assign_parts(open_dataset({"x": x}), None, shares=SHARES[True, False], seed=0)
    assert not set(x[parts.verdict, 0]) & set(x[parts.calibration, 0])
    assert any("duplicate-examples" in note and note.startswith("300 ") for note in parts.notes)


def test_the_forecast_at_its_own_size_is_the_bound() -> None:
    outcome = flips(500, 6, 2)
    bound = loss_bound(METRICS["top-1"], outcome, confidence=0.95)
    seen = forecast(METRICS["top-1"], outcome, confidence=0.95, verdict_examples=500)
    assert (seen.bound, seen.drop) == (bound.bound, bound.drop)


def test_the_forecast_scales_the_flips_to_the_verdicts_examples() -> None:
    seen = forecast(METRICS["top-1"], flips(200, 4, 2), confidence=0.95, verdict_examples=1000)
    assert (seen.n, seen.harmful, seen.helpful) == (1000, 20, 10)
    wanted = flips(1000, 20, 10)
    assert seen.bound == paired_bound(wanted.float_scores, wanted.scores, confidence=0.95).bound
    assert seen.drop == pytest.approx(0.01)


def test_more_verdict_examples_make_the_forecast_tighter() -> None:
    bounds = [
        forecast(METRICS["top-1"], flips(300, 3, 0), confidence=0.95, verdict_examples=n).bound
        for n in (100, 300, 900, 2700)
    ]
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize(("n", "harmful", "verdict"), [(2, 1, 3), (8, 4, 7), (1, 1, 1)])
def test_scaled_flips_never_exceed_the_examples(n: int, harmful: int, verdict: int) -> None:
    # Every example flips, and both counts scale to a half, which rounds up (1.5 and 1.5 of 3; 3.5 and 3.5 of 7).
    seen = forecast(METRICS["top-1"], flips(n, harmful, n - harmful), confidence=0.95, verdict_examples=verdict)
    assert seen.harmful + seen.helpful == verdict


def test_other_scores_keep_their_loss_and_scale_the_margin() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.4, 0.6, 400)
    outcome = Outcome(float_scores=before, scores=before - 0.01 + 0.02 * rng.standard_normal(400), quality=NONE)
    metric = FunctionMetric.of(lambda outputs, labels: None, name="m:f")
    here, more = (forecast(metric, outcome, confidence=0.95, verdict_examples=n) for n in (400, 1600))
    assert here.drop == more.drop
    assert more.bound - more.drop == pytest.approx((here.bound - here.drop) / 2)


def test_a_lower_is_better_metric_loses_when_it_rises() -> None:
    def error(outputs: object, labels: object) -> None: ...

    error.higher_is_better = False  # type: ignore[attr-defined]
    metric = FunctionMetric.of(error, name="m:error")
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 3, 200)
    bound = loss_bound(metric, Outcome(float_scores=before, scores=before * 1.1, quality=NONE), confidence=0.95)
    assert bound.drop == pytest.approx(0.1)
    assert bound.harmful == 200
    error.bounds = (0.0, 1.0)  # type: ignore[attr-defined]
    metric = FunctionMetric.of(error, name="m:error")
    outcome = Outcome(float_scores=np.zeros(100), scores=np.eye(100)[0], quality=NONE)
    bound = loss_bound(metric, outcome, confidence=0.95)
    assert bound.drop == pytest.approx(0.01)
    assert bound.exact
