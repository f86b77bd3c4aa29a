"""Half-quadratic quantization against a port that goes value by value, and against the authors' package."""

from __future__ import annotations

from math import copysign

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.algorithms import half_quadratic as module
from fewbits.algorithms.block_weights import scales_of_blocks
from fewbits.algorithms.half_quadratic import BETA, GROWTH, POWER, ROUNDS, half_quadratic
from fewbits.numerics.format import Int
from fewbits.numerics.qtensor import quantize
from fewbits.numerics.scheme import parse_scheme

UINT4 = Int(bits=4, signed=False)


def shrunk(off: float, beta: float) -> float:
    return 0.0 if off == 0 else copysign(max(abs(off) - abs(off) ** (POWER - 1) / beta, 0.0), off)


def by_value(places: list[float], zero: float, *, fit: str) -> list[tuple[float, float]]:
    """Returns step and zero point after each round, the start first; in float64, by the paper's two steps."""
    step, beta, seen = 1.0, BETA, [(1.0, zero)]
    for _ in range(ROUNDS):
        codes = [min(max(round(w / step + zero), 0), 15) for w in places]
        kept = [w - shrunk(w - (q - zero) * step, beta) for w, q in zip(places, codes, strict=True)]
        if fit == "zero":
            zero = sum(q - w / step for w, q in zip(kept, codes, strict=True)) / len(places)
        else:
            below = sum((q - zero) ** 2 for q in codes)
            above = sum((q - zero) * w for w, q in zip(kept, codes, strict=True))
            step = above / below if above > 0 and below > 0 else step
        seen.append((step, zero))
        beta *= GROWTH
    return seen


def cost(places: list[float], step: float, zero: float) -> float:
    codes = [min(max(round(w / step + zero), 0), 15) for w in places]
    return sum(abs(w - (q - zero) * step) ** POWER for w, q in zip(places, codes, strict=True))


@pytest.mark.parametrize("fit", ["scale", "zero"])
def test_it_is_the_port_that_goes_value_by_value(fit):
    rng = np.random.default_rng(0)
    places = rng.standard_t(4, (50, 32)).astype(np.float32)
    scale = ((places.max(axis=1) - places.min(axis=1)) / 15).astype(np.float32)
    zero = np.rint(-places.min(axis=1) / scale).astype(np.float32)
    found, shift = half_quadratic(places, scale, zero, UINT4, fit=fit)
    for row, (one, first) in enumerate(zip(places / scale[:, None], zero, strict=True)):
        values = [float(v) for v in one]
        costs = [cost(values, *pair) for pair in by_value(values, float(first), fit=fit)]
        ours = cost(values, float(found[row] / scale[row]), float(shift[row]))
        # Float32 against float64: a value at a threshold may fall to the other side, where its cost is the same.
        assert ours == pytest.approx(min(costs), rel=1e-3)
        assert ours <= costs[0] * (1 + 2.0**-20)


@settings(max_examples=40, deadline=None)
@given(power=st.integers(-60, 60), seed=st.integers(0, 2**32 - 1), fit=st.sampled_from(["scale", "zero"]))
def test_a_power_of_two_moves_the_scale_alone(power, seed, fit):
    values = np.random.default_rng(seed).standard_normal((3, 16)).astype(np.float32)
    scale, zero = np.full(3, 0.25, np.float32), np.full(3, 7, np.float32)
    one = half_quadratic(values, scale, zero, UINT4, fit=fit)
    other = half_quadratic(np.ldexp(values, power), np.ldexp(scale, power), zero, UINT4, fit=fit)
    assert np.array_equal(np.ldexp(one[0], power), other[0]) and np.array_equal(one[1], other[1])


@pytest.mark.parametrize("name", ["uint4 per-group(1, 64) asymmetric", "int4 per-group(1, 64) symmetric"])
def test_with_outliers_most_weights_err_less_than_under_the_least_squared_error(name):
    values = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    values[:, ::16] *= 6
    scheme = parse_scheme(name)

    def median(rule: str) -> float:
        back = quantize(values, scales_of_blocks(values, scheme, rule)).dequantize()
        return float(np.median(np.abs(values - back)))

    print(f"median error: hqq {median('hqq'):.4f}, mse {median('mse'):.4f}, minmax {median('minmax'):.4f}")
    assert median("hqq") < median("minmax")


def test_zero_points_are_those_of_the_authors_package_where_a_step_is_one(monkeypatch):
    torch = pytest.importorskip("torch", reason="the authors' package runs on torch: make test TORCH=1")
    optimize = pytest.importorskip("hqq.core.optimize", reason="pip install hqq, the authors' package")
    monkeypatch.setattr(module, "GROWTH", 1.0)  # theirs has a factor of 1.01, and does not apply it (hqq 0.2.8)
    rng = np.random.default_rng(2)
    values = np.clip(rng.standard_t(5, (64, 64)) * 2 + 7, 0, 15).astype(np.float32)
    values[:, 0], values[:, 1] = 0, 15  # a step of the full range is 1, so that their unit is ours
    ones, zeros = np.ones(64, np.float32), np.zeros(64, np.float32)
    scale, zero = half_quadratic(values, ones, zeros, UINT4, fit="zero")
    tensor = torch.from_numpy(values)
    options = {"lp_norm": POWER, "beta": BETA, "kappa": GROWTH, "iters": ROUNDS}
    _, theirs, moved = optimize.optimize_weights_proximal_legacy(
        tensor, torch.ones(64, 1), torch.zeros(64, 1), [0, 15], axis=1, device="cpu", opt_params=options
    )

    def total(step: np.ndarray, shift: np.ndarray) -> np.ndarray:
        codes = np.clip(np.rint(values / step[:, None] + shift[:, None]), 0, 15)
        return np.asarray((np.abs(values - (codes - shift[:, None]) * step[:, None]) ** POWER).sum(axis=1))

    ours, others = total(scale, zero), total(1 / theirs.numpy()[:, 0], moved.numpy()[:, 0])
    print(f"sum |error|^0.7: ours {ours.sum():.1f}, theirs {others.sum():.1f}, start {total(ones, zeros).sum():.1f}")
    # They stop for all blocks at once and keep the last round; we keep the best one of each block.
    assert np.all(ours <= others * (1 + 1e-4))
