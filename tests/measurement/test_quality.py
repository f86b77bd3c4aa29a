"""KL, SQNR and agreement against the plainest code that could compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbits.measurement.quality import QualityMeter, kl_per_example, log_probabilities

LOGITS = arrays(np.float32, (4, 5), elements=st.floats(-30, 30, width=32))


def naive_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    total = 0.0
    for p_row, q_row in zip(p_logits.tolist(), q_logits.tolist(), strict=True):
        p = [math.exp(v) for v in p_row]
        q = [math.exp(v) for v in q_row]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return total / len(p_logits)


@given(LOGITS, LOGITS)
def test_kl_equals_the_naive_sum(p: np.ndarray, q: np.ndarray) -> None:
    # Doubles on both sides; exp of at most 30 keeps 1e-16 relative, a difference of logs up to 60 keeps 1e-14.
    assert kl_per_example(p, q).mean() == pytest.approx(naive_kl(p, q), rel=1e-9, abs=1e-12)


@given(LOGITS, LOGITS)
def test_kl_is_never_negative_and_zero_for_equal_outputs(p: np.ndarray, q: np.ndarray) -> None:
    assert (kl_per_example(p, q) >= -1e-12).all()
    assert kl_per_example(p, p).tolist() == [0.0] * 4


@given(LOGITS, LOGITS, st.floats(-1000, 1000, width=32))
def test_kl_of_logits_does_not_see_a_shift(p: np.ndarray, q: np.ndarray, shift: float) -> None:
    # float32 logits of 1000 are exact to 6e-5, which moves a KL of at most 60 by less than 60 * 6e-5.
    moved = kl_per_example(p + np.float32(shift), q)
    assert np.allclose(moved, kl_per_example(p, q), atol=4e-3)


def test_logits_too_large_for_exp_give_a_finite_kl() -> None:
    p = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert np.isfinite(kl_per_example(p, -p)).all()


def test_probabilities_are_taken_as_they_are() -> None:
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    q = np.array([[0.6, 0.3, 0.1]], np.float32)
    wanted = 0.7 * math.log(0.7 / 0.6) + 0.2 * math.log(0.2 / 0.3)
    assert kl_per_example(p, q)[0] == pytest.approx(wanted, abs=2e-7)  # float32 inputs: 6e-8 each


def test_probabilities_on_an_8_bit_grid_are_still_probabilities() -> None:
    # An integer softmax writes multiples of 1/256: a row of 64 classes may sum to 1 +- 64/512. Taken for logits beside
    # the float model's probabilities, that row would look like a uniform answer.
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(64, 0.3), size=50).astype(np.float32)
    q = np.round(p * 256) / np.float32(256)
    kl = kl_per_example(p, np.maximum(q, 1 / 512).astype(np.float32))
    assert kl.mean() < 0.1
    uniform = kl_per_example(p, np.full_like(p, 1 / 64))
    assert uniform.mean() > 1


def test_log_probabilities_add_up_to_one() -> None:
    logits = np.random.default_rng(1).standard_normal((3, 7, 11)).astype(np.float32)
    for values, known in ((logits, False), (np.abs(logits), True)):
        rows = np.exp(log_probabilities(values, probabilities=known)).sum(axis=-1)
        assert rows == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("batches", [1, 3, 10])
def test_the_meter_gives_the_same_for_any_batching(batches: int) -> None:
    rng = np.random.default_rng(2)
    reference = rng.standard_normal((60, 10)).astype(np.float32)
    outputs = (reference + 0.3 * rng.standard_normal((60, 10))).astype(np.float32)
    meter = QualityMeter()
    for part, other in zip(np.array_split(reference, batches), np.array_split(outputs, batches), strict=True):
        meter.add(part, other)
    found = meter.result()
    wide = reference.astype(np.float64)
    noise = ((outputs - wide) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10((wide**2).sum() / noise), rel=1e-12)
    assert found.kl == pytest.approx(naive_kl(reference, outputs), rel=1e-9)
    same = sum(int(np.argmax(a) == np.argmax(b)) for a, b in zip(reference, outputs, strict=True))
    assert found.agreement == same / 60
    assert 0 < same < 60, "the example separates nothing"


def test_equal_outputs_have_infinite_sqnr_and_outputs_without_classes_no_kl() -> None:
    meter = QualityMeter()
    values = np.arange(6, dtype=np.float32)
    meter.add(values, values)
    found = meter.result()
    assert (found.sqnr_db, found.kl, found.agreement) == (math.inf, None, None)
    assert found.gauge == 0.0


def test_a_silent_float_model_gives_a_number() -> None:
    meter = QualityMeter()
    meter.add(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert math.isfinite(meter.result().sqnr_db)


def test_the_gauge_orders_by_harm_with_and_without_classes() -> None:
    rng = np.random.default_rng(3)
    for shape in ((40, 10), (40,)):
        reference = rng.standard_normal(shape).astype(np.float32)
        noise = rng.standard_normal(shape).astype(np.float32)
        gauges = []
        for size in (0.01, 0.1, 1.0):
            meter = QualityMeter()
            meter.add(reference, reference + size * noise)
            gauges.append(meter.result().gauge)
        assert gauges == sorted(gauges)
        assert gauges[0] < gauges[2]


def test_a_class_that_both_mask_costs_nothing() -> None:
    rng = np.random.default_rng(4)
    p = rng.standard_normal((6, 5)).astype(np.float32)
    q = (p + 0.1 * rng.standard_normal((6, 5))).astype(np.float32)
    masked_p, masked_q = p.copy(), q.copy()
    masked_p[:, 2] = masked_q[:, 2] = -np.inf
    kept = [0, 1, 3, 4]
    assert np.allclose(kl_per_example(masked_p, masked_q), kl_per_example(p[:, kept], q[:, kept]), rtol=1e-12)
    whole, part = QualityMeter(), QualityMeter()
    whole.add(masked_p, masked_q)
    part.add(p[:, kept], q[:, kept])
    assert whole.result().sqnr_db == pytest.approx(part.result().sqnr_db, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_no_number_is_the_worst_of_candidates_and_still_finite(value: float) -> None:
    rng = np.random.default_rng(5)
    reference = rng.standard_normal((8, 5)).astype(np.float32)
    awful, broken = -reference, reference.copy()
    broken[3, reference[3].argmax()] = value
    gauges = []
    for outputs in (awful, broken):
        meter = QualityMeter()
        meter.add(reference, outputs)
        found = meter.result()
        assert math.isfinite(found.gauge) and math.isfinite(found.sqnr_db)
        gauges.append(found.gauge)
    # A class of +inf takes all the probability: bad for the other classes only.
    assert value == np.inf or gauges[1] > gauges[0]


def test_all_classes_masked_is_no_answer_and_no_crash() -> None:
    nothing = np.full((2, 3), -np.inf, np.float32)
    assert kl_per_example(nothing, nothing).tolist() == [0.0, 0.0]
