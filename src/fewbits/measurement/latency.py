"""Latency of several candidates against a baseline, interleaved in blocks, with an exact interval for every ratio.

Calls interleaved one by one tax each other (caches, thread pools) by up to a third; calls measured minutes apart drift
by more than the effect. So candidates run in turn in short blocks, and only ratios of the same round are compared.

The interval speaks of the sessions that were timed. Where a session's memory happens to lie is not in it: two sessions
of the same file differed by up to 0.7 % (bench_latency.py times the float model twice), so a ratio within 1 % of 1
decides nothing.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fewbits._base.errors import UsageError

Run = Callable[[], object]
Clock = Callable[[], int]

WARM_TIMINGS = 2
"""Timings at the head of each block that are thrown away: they pay for caches that the candidate before has filled."""
TIMINGS_PER_BLOCK = 10
SHORT_CALL_NS = 300_000
"""Below 0.3 ms single calls are mostly noise (measured: 40 %), so several calls share one timing."""
TIMING_NS = 1_000_000
"""How long one timing of a short call should take: ten thousand times the resolution of common clocks."""
CALLS_PER_TIMING_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one call of one candidate takes.

    Attributes:
      p50_ms: Median over blocks of the block medians, milliseconds.
      p90_ms: 90th percentile of all timings. Of calls under 0.3 ms a timing is the mean of several, and the tail of
        single calls may be longer.
      p99_ms: 99th percentile of the same.
      throughput: Examples per second at the median.
      calls: Timed calls in all, without the warm ones.
      blocks: Number of blocks.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    calls: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How many times faster a candidate is than what it is compared with: above 1 is faster.

    Attributes:
      ratio: Median over blocks of (block median of the other / block median of the candidate).
      low: Lower end of the two-sided interval of that median.
      high: Upper end.
      confidence: Least probability that the interval covers the true median ratio.
    """

    ratio: float
    low: float
    high: float
    confidence: float

    @property
    def faster(self) -> bool:
        """True where "faster" may be said: the whole interval is above 1."""
        return self.low > 1

    @property
    def slower(self) -> bool:
        """True where "slower" may be said: the whole interval is below 1."""
        return self.high < 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyResult:
    """What ``measure_latency`` found; the block medians are kept, so that every ratio can be recomputed.

    Attributes:
      baseline: Name of the candidate that ``speedups`` compares with.
      batch: Examples per call.
      seed: Seed of the order in which candidates ran.
      confidence: Confidence of the intervals.
      timings: By candidate, the baseline included.
      speedups: By candidate, over the baseline; without the baseline itself.
      block_ms: By candidate, the median of each block in milliseconds, in the order of the blocks.
    """

    baseline: str
    batch: int
    seed: int
    confidence: float
    timings: Mapping[str, Timing]
    speedups: Mapping[str, Speedup]
    block_ms: Mapping[str, tuple[float, ...]]

    def speedup(self, candidate: str, *, over: str) -> Speedup:
        """Returns how many times faster ``candidate`` is than ``over``, from the blocks of this measurement."""
        return paired_speedup(self.block_ms[over], self.block_ms[candidate], confidence=self.confidence)


def measure_latency(
    runs: Mapping[str, Run],
    *,
    baseline: str,
    batch: int = 1,
    seconds: float = 5.0,
    min_blocks: int = 12,
    seed: int = 0,
    confidence: float = 0.95,
    clock: Clock = time.perf_counter_ns,
) -> LatencyResult:
    """Returns timings of all candidates and their speedups over the baseline.

    One round gives each candidate one block: two warm timings and up to ten timed ones. The order changes from round to
    round such that every candidate runs equally often in every place, from a seeded start. Rounds are added until both
    ``seconds`` and ``min_blocks`` are reached; when to stop depends on the clock alone, never on who is ahead.
    Threads are the caller's business (the options of the sessions behind ``runs``).

    Args:
      runs: Candidates by name; each makes one call with its input ready.
      baseline: Name in ``runs``.
      batch: Examples per call, for the throughput.
      seconds: Aim for the whole, without the first warm calls; > 0.
      min_blocks: Least number of rounds; must be able to carry the confidence (6 for 95 %).
      seed: Seed of the starting order.
      confidence: Confidence of each interval by itself; several candidates are not corrected for.
      clock: Nanoseconds, monotonic; injected by tests.
    Raises: UsageError(slug="latency-request") if the baseline is not in runs, a number is not positive, or min_blocks
      is too small for the confidence.
    Source: the sign-test interval, Conover, Practical Nonparametric Statistics, section 3.2.
    """
    _check(runs, baseline=baseline, batch=batch, seconds=seconds, min_blocks=min_blocks, confidence=confidence)
    call_ns = {name: _estimate(run, clock) for name, run in runs.items()}
    repeats = {name: _calls_per_timing(ns) for name, ns in call_ns.items()}
    timing_ns = sum(call_ns[name] * repeats[name] for name in runs)
    timed = max(1, min(TIMINGS_PER_BLOCK, int(seconds * 1e9 / min_blocks / timing_ns) - WARM_TIMINGS))

    order = [list(runs)[i] for i in np.random.default_rng(seed).permutation(len(runs))]
    blocks: dict[str, list[list[float]]] = {name: [] for name in runs}
    start = clock()
    while len(blocks[baseline]) < min_blocks or clock() - start < seconds * 1e9:
        for name in _order(order, len(blocks[baseline])):
            blocks[name].append(_block(runs[name], repeats[name], timed, clock))

    block_ms = {name: tuple(float(np.median(b)) / 1e6 for b in found) for name, found in blocks.items()}
    return LatencyResult(
        baseline=baseline,
        batch=batch,
        seed=seed,
        confidence=confidence,
        timings={name: _timing(found, block_ms[name], repeats[name], batch) for name, found in blocks.items()},
        speedups={
            name: paired_speedup(block_ms[baseline], found, confidence=confidence)
            for name, found in block_ms.items()
            if name != baseline
        },
        block_ms=block_ms,
    )


def paired_speedup(
    other_ms: tuple[float, ...], candidate_ms: tuple[float, ...], *, confidence: float = 0.95
) -> Speedup:
    """Returns the median of other / candidate over paired blocks, and its distribution-free interval.

    With the n ratios sorted, [r(k), r(n+1-k)] covers their median with probability 1 - 2 P(Binomial(n, 1/2) < k) at
    least, whatever the distribution, if blocks are independent; k is the largest that keeps the confidence. Where n is
    too small for any k, the interval is (0, inf): nothing may be said.

    Raises: UsageError(slug="latency-request") if there is no block or the two differ in number.
    """
    n = len(candidate_ms)
    if n == 0 or len(other_ms) != n:
        raise UsageError(
            f"a speedup needs paired blocks, got {len(other_ms)} and {n}; time both in one measurement",
            slug="latency-request",
        )
    ratios = sorted(other / own for other, own in zip(other_ms, candidate_ms, strict=True))
    k = _order_statistic(n, confidence)
    low, high = (ratios[k - 1], ratios[n - k]) if k else (0.0, math.inf)
    return Speedup(ratio=float(np.median(ratios)), low=low, high=high, confidence=confidence)


def _order_statistic(n: int, confidence: float) -> int:
    """Returns the largest k such that r(k) .. r(n+1-k) covers the median with the confidence; 0 where there is none.

    >>> [_order_statistic(n, 0.95) for n in (5, 6, 12, 20)]
    [0, 1, 3, 6]
    """
    k, tail = 0, 0.0  # tail = P(Binomial(n, 1/2) < k)
    while k < n // 2 and 1 - 2 * (tail + math.comb(n, k) / 2**n) >= confidence:
        tail += math.comb(n, k) / 2**n
        k += 1
    return k


def _check(
    runs: Mapping[str, Run], *, baseline: str, batch: int, seconds: float, min_blocks: int, confidence: float
) -> None:
    if baseline not in runs:
        message = f"latency: baseline {baseline!r} is not among the candidates {', '.join(runs)}; name one of them"
    elif batch < 1 or not seconds > 0:
        message = f"latency: batch {batch} and seconds {seconds} must be positive; give at least 1 and a little"
    elif not 0 < confidence < 1:
        message = f"latency: confidence {confidence} is not between 0 and 1; 0.95 is usual"
    elif _order_statistic(max(min_blocks, 0), confidence) < 1:
        needed = math.ceil(1 - math.log2(1 - confidence))  # 1 - 2 / 2**n >= confidence
        message = f"latency: {min_blocks} blocks cannot carry a confidence of {confidence:g}; give at least {needed}"
    else:
        return
    raise UsageError(message, slug="latency-request")


def _estimate(run: Run, clock: Clock) -> int:
    """Returns roughly how many nanoseconds one warm call takes: the median of three after two warm ones."""
    for _ in range(WARM_TIMINGS):
        run()
    return max(1, sorted(_time(run, 1, clock) for _ in range(3))[1])


def _calls_per_timing(call_ns: int) -> int:
    """Returns how many calls share one timing: one, or enough to fill a millisecond where the call is short."""
    return 1 if call_ns >= SHORT_CALL_NS else min(CALLS_PER_TIMING_MAX, math.ceil(TIMING_NS / call_ns))


def _order(order: list[str], round_number: int) -> list[str]:
    """Returns the order of one round: rotated every second round, reversed in between, so that places are balanced.

    >>> ["".join(_order(["a", "b"], i)) for i in range(4)]
    ['ab', 'ba', 'ba', 'ab']
    """
    shift = round_number // 2 % len(order)
    rotated = order[shift:] + order[:shift]
    return rotated[::-1] if round_number % 2 else rotated


def _block(run: Run, repeats: int, timed: int, clock: Clock) -> list[float]:
    """Returns the nanoseconds per call of each timed timing of one block; the garbage collector rests meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(WARM_TIMINGS):
            _time(run, repeats, clock)
        return [max(1, _time(run, repeats, clock)) / repeats for _ in range(timed)]
    finally:
        if collecting:
            gc.enable()


def _time(run: Run, repeats: int, clock: Clock) -> int:
    start = clock()
    for _ in range(repeats):
        run()
    return clock() - start


def _timing(blocks: list[list[float]], block_ms: tuple[float, ...], repeats: int, batch: int) -> Timing:
    every = np.concatenate([np.asarray(block) for block in blocks]) / 1e6
    p50 = float(np.median(block_ms))
    p90, p99 = (float(q) for q in np.quantile(every, [0.9, 0.99]))
    return Timing(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        throughput=batch * 1e3 / p50,
        calls=len(every) * repeats,
        blocks=len(block_ms),
    )
