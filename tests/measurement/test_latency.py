"""Laws of the latency measurement, on a clock that the test owns: nothing here depends on how fast the machine is."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from fewbits._base.errors import UsageError
from fewbits.measurement.latency import (
    CALLS_PER_TIMING_MAX,
    TIMINGS_PER_BLOCK,
    LatencyResult,
    Speedup,
    Timing,
    measure_latency,
    paired_speedup,
)

MS = 1_000_000


class World:
    """A clock that only the candidates move; each call is written down."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def clock(self) -> int:
        return self.now

    def candidate(self, name: str, ns: int | Callable[[int], int]) -> Callable[[], object]:
        """Returns a run whose call takes ns, or ns(index of its call)."""

        def run() -> None:
            index = self.calls.count(name) if callable(ns) else 0
            self.now += ns(index) if callable(ns) else ns
            self.calls.append(name)

        return run


def visits(calls: list[str]) -> list[str]:
    """Returns the candidates in the order of their blocks: runs of equal neighbours, each once."""
    return [calls[0], *(b for a, b in pairwise(calls) if a != b)]


def test_constant_candidates_give_their_exact_times_and_ratio() -> None:
    world = World()
    runs = {"float": world.candidate("float", 6 * MS), "int8": world.candidate("int8", 2 * MS)}
    result = measure_latency(runs, baseline="float", batch=4, seconds=2.0, seed=3, clock=world.clock)
    # A block has 2 + 10 timings of 8 ms a round: 96 ms. 20 rounds reach 1.92 s, 21 reach 2.016 s.
    assert result.timings["int8"] == Timing(
        p50_ms=2.0, p90_ms=2.0, p99_ms=2.0, throughput=2000.0, calls=21 * TIMINGS_PER_BLOCK, blocks=21
    )
    assert result.timings["float"].throughput == pytest.approx(4 / 0.006)
    assert result.speedups == {"int8": Speedup(ratio=3.0, low=3.0, high=3.0, confidence=0.95)}
    assert result.speedups["int8"].faster
    assert not result.speedups["int8"].slower


def test_the_same_seed_gives_the_same_order_and_another_seed_can_differ() -> None:
    def order(seed: int) -> list[str]:
        world = World()
        runs = {name: world.candidate(name, MS) for name in "abcde"}
        measure_latency(runs, baseline="a", seconds=0.001, seed=seed, clock=world.clock)
        return visits(world.calls)

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_candidate_runs_equally_often_in_every_place(count: int) -> None:
    world = World()
    names = [f"c{i}" for i in range(count)]
    runs = {name: world.candidate(name, MS) for name in names}
    rounds = 2 * count  # One full period of the order.
    result = measure_latency(runs, baseline="c0", seconds=1e-9, min_blocks=rounds, confidence=0.5, clock=world.clock)
    assert result.timings["c0"].blocks == rounds
    # seconds is tiny, so each block is 2 warm and 1 timed call; 5 calls a candidate came before, for the estimate.
    blocks = np.array(world.calls[5 * count :]).reshape(rounds, count, 3)
    assert (blocks == blocks[:, :, :1]).all()
    for place in range(count):
        assert sorted(blocks[:, place, 0]) == sorted(names * 2)


def test_two_candidates_alternate_who_goes_first() -> None:
    world = World()
    runs = {name: world.candidate(name, MS) for name in "ab"}
    measure_latency(runs, baseline="a", seconds=1e-9, min_blocks=6, clock=world.clock)
    first = [world.calls[10 + 6 * i] for i in range(6)]
    assert sorted(first) == ["a"] * 3 + ["b"] * 3


def test_the_warm_timings_of_a_block_do_not_count() -> None:
    world = World()

    # 5 calls of estimate; then in each block of 2 + 10 the first two take 50 times as long.
    def slow_start(index: int) -> int:
        return 100 * MS if index < 2 or (index >= 5 and (index - 5) % 12 < 2) else 2 * MS

    runs = {"float": world.candidate("float", slow_start), "int8": world.candidate("int8", MS)}
    result = measure_latency(runs, baseline="float", seconds=1.0, clock=world.clock)
    assert result.timings["float"].p99_ms == 2.0
    assert result.speedups["int8"].ratio == 2.0


def test_drift_that_hits_both_candidates_leaves_the_ratio_exact() -> None:
    world = World()

    def drifting(ns: int) -> Callable[[], object]:
        def run() -> None:
            # The machine becomes one time slower every 240 calls, alike for both.
            world.now += ns * slowdown[0]
            world.calls.append("x")
            slowdown[0] = 1 + len(world.calls) // 240

        return run

    slowdown = [1]
    runs = {"float": drifting(6 * MS), "int8": drifting(2 * MS)}
    result = measure_latency(runs, baseline="float", seconds=0.1, min_blocks=40, clock=world.clock)
    assert max(result.block_ms["int8"]) > 1.5 * min(result.block_ms["int8"])
    assert result.speedups["int8"].low <= 3.0 <= result.speedups["int8"].high
    assert result.speedups["int8"].ratio == pytest.approx(3.0)


def test_the_tail_shows_in_p99_and_not_in_p50() -> None:
    world = World()
    runs = {
        "float": world.candidate("float", 4 * MS),
        "int8": world.candidate("int8", lambda i: 9 * MS if i % 20 == 0 else MS),
    }
    timing = measure_latency(runs, baseline="float", seconds=2.0, clock=world.clock).timings["int8"]
    assert (timing.p50_ms, timing.p90_ms, timing.p99_ms) == (1.0, 1.0, 9.0)


def test_a_short_call_is_timed_in_bundles_of_about_a_millisecond() -> None:
    world = World()
    runs = {"float": world.candidate("float", 20_000), "int8": world.candidate("int8", 400_000)}
    result = measure_latency(runs, baseline="float", seconds=0.01, min_blocks=6, clock=world.clock)
    # 20 us -> 50 calls a timing; 0.4 ms is above the limit -> one. Either way the timing is per call.
    assert result.timings["float"].p50_ms == 0.02
    assert result.timings["float"].calls == 50 * result.timings["int8"].calls
    assert result.speedups["int8"].ratio == pytest.approx(0.05, rel=1e-15)
    assert result.speedups["int8"].slower


def test_a_clock_that_stands_still_does_not_divide_by_zero() -> None:
    runs: dict[str, Callable[[], object]] = {"a": lambda: None, "b": lambda: None}
    reads = iter(range(10**9))

    def clock() -> int:  # One nanosecond in 500 readings: nearly every timing is 0.
        return next(reads) // 500

    result = measure_latency(runs, baseline="a", seconds=1e-9, min_blocks=6, clock=clock)
    assert result.speedups["b"].ratio == 1.0
    assert result.timings["a"].calls == result.timings["a"].blocks * CALLS_PER_TIMING_MAX


def test_slow_candidates_get_fewer_timings_a_block_so_that_the_time_is_kept() -> None:
    world = World()
    runs = {"float": world.candidate("float", 300 * MS), "int8": world.candidate("int8", 100 * MS)}
    result = measure_latency(runs, baseline="float", seconds=24.0, min_blocks=12, clock=world.clock)
    # 24 s / 12 rounds / 0.4 s = 5 timings a round, two of them warm.
    assert result.timings["float"].calls == 3 * 12
    # 5 estimating calls of each come before the measured 24 s.
    assert world.now == (24_000 + 5 * 400) * MS


def test_rounds_go_on_until_the_seconds_are_reached_and_never_stop_below_min_blocks() -> None:
    for seconds, blocks in ((0.001, 7), (2.4, 10)):
        world = World()
        runs = {name: world.candidate(name, 10 * MS) for name in "ab"}
        result = measure_latency(runs, baseline="a", seconds=seconds, min_blocks=7, clock=world.clock)
        assert result.timings["a"].blocks == blocks  # 2.4 s: 12 timings of 20 ms are 0.24 s a round


def test_any_two_candidates_can_be_compared_from_one_measurement() -> None:
    world = World()
    runs = {name: world.candidate(name, ms * MS) for name, ms in (("float", 8), ("peer", 4), ("own", 2))}
    result = measure_latency(runs, baseline="float", seconds=0.5, clock=world.clock)
    assert set(result.speedups) == {"peer", "own"}
    assert result.speedup("own", over="peer").ratio == 2.0
    assert result.speedup("float", over="own").ratio == 0.25
    assert result.speedup("own", over="float") == result.speedups["own"]


def test_garbage_collection_is_restored_even_if_a_candidate_fails() -> None:
    calls = 0

    def fails_in_the_block() -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise RuntimeError("boom")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="boom"):
        measure_latency({"a": fails_in_the_block}, baseline="a")
    assert gc.isenabled()


def test_the_interval_holds_the_ratio_and_ignores_how_far_out_outliers_are() -> None:
    own = (1.0,) * 12
    # n = 12: P(Binomial < 3) = (1 + 12 + 66) / 4096 = 0.0193 <= 0.025, with 220 more 0.073: k = 3, so 3rd and 10th.
    other = (0.1, 0.2, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2, 50.0, 1e9)
    found = paired_speedup(other, own)
    assert (found.low, found.high) == (1.5, 2.2)
    assert found.ratio == pytest.approx(1.85)
    assert found.faster


def test_faster_is_not_claimed_where_the_interval_holds_one() -> None:
    found = paired_speedup((0.9, 0.95, 0.99, 1.2, 1.3, 1.4, 1.5, 1.6), (1.0,) * 8)
    assert found.ratio > 1
    assert not found.faster
    assert not found.slower


@pytest.mark.parametrize("n", [1, 5])
def test_too_few_blocks_say_nothing(n: int) -> None:
    found = paired_speedup((3.0,) * n, (1.0,) * n)
    assert (found.ratio, found.low, found.high) == (3.0, 0.0, math.inf)
    assert not found.faster


@pytest.mark.parametrize("n", [6, 9, 12, 25, 60])
def test_the_interval_covers_the_true_median_at_least_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    trials, covered = 2000, 0
    for noise in rng.lognormal(0.0, 0.5, (trials, n)):  # Skewed; its median is exactly 1.
        found = paired_speedup(tuple(noise * 1.3), (1.0,) * n)
        covered += found.low <= 1.3 <= found.high
    # The true coverage is >= 0.95, so the count lies below 0.95 - 4 sqrt(0.95 * 0.05 / 2000) = 0.9305 once in 30,000.
    assert covered / trials >= 0.9305


def test_swapping_the_two_inverts_ratio_and_interval() -> None:
    rng = np.random.default_rng(5)
    a, b = tuple(rng.uniform(1, 2, 21)), tuple(rng.uniform(1, 3, 21))
    forward, back = paired_speedup(a, b), paired_speedup(b, a)
    # n is odd: the median is one of the ratios; 1/(a/b) differs from b/a by three roundings of 1.1e-16 at most.
    assert (1 / forward.ratio, 1 / forward.high, 1 / forward.low) == pytest.approx(
        (back.ratio, back.low, back.high), rel=4e-16
    )


def test_fewer_blocks_than_the_confidence_needs_are_refused_with_the_number_needed() -> None:
    def runs() -> None:
        return None

    for confidence, needed in ((0.95, 6), (0.99, 8), (0.5, 2)):
        with pytest.raises(UsageError, match=f"give at least {needed} ") as caught:
            measure_latency({"a": runs}, baseline="a", min_blocks=needed - 1, confidence=confidence)
        assert caught.value.slug == "latency-request"
        world = World()
        run = world.candidate("a", MS)
        result = measure_latency(
            {"a": run}, baseline="a", min_blocks=needed, seconds=1e-9, confidence=confidence, clock=world.clock
        )
        assert isinstance(result, LatencyResult)
        assert result.timings["a"].blocks == needed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "b"}, "baseline 'b' is not among"),
        ({"baseline": "a", "batch": 0}, "batch 0"),
        ({"baseline": "a", "seconds": 0.0}, "seconds 0.0"),
        ({"baseline": "a", "seconds": math.nan}, "seconds nan"),
        ({"baseline": "a", "confidence": 1.0}, "confidence 1.0"),
    ],
)
def test_an_impossible_request_is_refused_before_anything_runs(options: dict[str, object], message: str) -> None:
    world = World()
    with pytest.raises(UsageError, match=message):
        measure_latency({"a": world.candidate("a", MS)}, **options)
    assert world.calls == []


def test_unpaired_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="got 3 and 2"):
        paired_speedup((1.0, 1.0, 1.0), (1.0, 1.0))
