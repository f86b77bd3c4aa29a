"""How tight is the exact bound, and what does its exactness cost?  Prints three tables; all draws are seeded.

    python benchmarks/bench_bounds.py            bounds beside the usual alternatives, their size, seconds
    python benchmarks/bench_bounds.py --table    how many examples a budget needs (the table of docs/evidence.md)

Alternatives, all one-sided at 95 %:
  split      Clopper-Pearson at 97.5 % for p(harmful) minus Clopper-Pearson at 97.5 % for p(helpful): valid, wide.
  mcnemar    Clopper-Pearson at 97.5 % for the harmful share of the flips (the conditional test behind McNemar's), times
             a 97.5 % limit of the flip rate: valid, for losses at or above 0.
  wald       normal approximation; says 0 where nothing flips.
  tango      inverted score test (Tango 1998); asymptotic.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
from scipy import optimize, special

from fewbits.evidence import examples_needed, paired_bound, trinomial, trinomial_bound

ALPHA = 0.05
Z = -float(special.ndtri(ALPHA))


def clopper_pearson(count: int, n: int, alpha: float) -> tuple[float, float]:
    low = 0.0 if count == 0 else float(special.betaincinv(count, n - count + 1, alpha))
    high = 1.0 if count == n else float(special.betaincinv(count + 1, n - count, 1 - alpha))
    return low, high


def split(b: int, c: int, n: int) -> float:
    return clopper_pearson(b, n, ALPHA / 2)[1] - clopper_pearson(c, n, ALPHA / 2)[0]


def mcnemar(b: int, c: int, n: int) -> float:
    share = 1.0 if b + c == 0 else clopper_pearson(b, b + c, ALPHA / 2)[1]
    low, high = clopper_pearson(b + c, n, ALPHA / 2)
    return max((2 * share - 1) * high, (2 * share - 1) * low)


def wald(b: int, c: int, n: int) -> float:
    loss = (b - c) / n
    return loss + Z * math.sqrt(((b + c) / n - loss**2) / n)


def tango(b: int, c: int, n: int) -> float:
    def score(loss: float) -> float:
        slope = (b + c) * (1 - loss) - 2 * loss * (n - b)
        helped = (slope + math.sqrt(slope**2 + 8 * n * c * loss * (1 - loss))) / (4 * n)
        return (b - c - n * loss) / math.sqrt(n * (2 * max(helped, 0.0, -loss) + loss * (1 - loss))) + Z

    low = max((b - c) / n, 0.0) + 1e-9  # losses below 0 do not matter here
    return low if score(low) <= 0 else float(optimize.brentq(score, low, 1 - 1e-9))


def exact(b: int, c: int, n: int) -> float:
    return trinomial.upper_limit(b, c, n, ALPHA)


METHODS = {"exact": exact, "tango": tango, "wald": wald, "mcnemar": mcnemar, "split": split}


def compare() -> None:
    print("Upper 95 % bound of the loss, points\n")
    print(f"{'n':>6} {'harmful':>8} {'helpful':>8} {'loss':>7}", *(f"{name:>9}" for name in METHODS), f"{'seconds':>9}")
    cases = [(600, 0, 0), (600, 1, 0), (600, 3, 1), (600, 5, 5), (600, 12, 10), (600, 40, 38)]
    cases += [(4500, 0, 0), (4500, 12, 10), (4500, 60, 40), (4500, 300, 280), (50_000, 300, 200)]
    for n, b, c in cases:
        limits = [100 * method(b, c, n) for method in METHODS.values()]
        start = time.perf_counter()
        trinomial_bound(b, c, n)  # both sides, as a verdict computes them
        seconds = time.perf_counter() - start
        print(f"{n:>6} {b:>8} {c:>8} {100 * (b - c) / n:>7.3f}", *(f"{x:>9.3f}" for x in limits), f"{seconds:>9.2f}")


def sizes() -> None:
    print("\nLargest probability of a bound below the true loss, n = 25, over losses and nuisance values (5 % allowed)")
    n = 25
    outcomes = np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)])
    b, c = outcomes.T
    ways = special.gammaln(n + 1) - special.gammaln(b + 1) - special.gammaln(c + 1) - special.gammaln(n - b - c + 1)
    for name, method in METHODS.items():
        limit = np.array([1.0 if x == n else method(int(x), int(y), n) for x, y in outcomes])
        worst = 0.0
        for loss in np.unique(np.concatenate([limit[(limit > 0) & (limit < 1)], np.linspace(0.01, 0.6, 60)])):
            for share in np.linspace(0, 1, 60) ** 2:
                q = share * (1 - loss) / 2
                p, rest = q + loss, max(1 - 2 * q - loss, 0.0)
                log = ways + special.xlogy(b, p) + special.xlogy(c, q) + special.xlogy(n - b - c, rest)
                worst = max(worst, float(np.exp(log)[limit < loss - 1e-9].sum()))
        print(f"  {name:>9} {100 * worst:6.2f} %")


def bounded() -> None:
    print("\nScores in [0, 1]: upper 95 % bound of the loss, points, mean of 5 seeded samples")
    print(f"{'n':>6} {'sd of loss':>10} {'betting':>9} {'t (asymptotic)':>15} {'seconds':>9}")
    for n in (600, 4500, 50_000):
        for deviation in (0.02, 0.1):
            rows, start = [], time.perf_counter()
            for seed in range(5):
                rng = np.random.default_rng(seed)
                before = 0.3 + 0.4 * rng.random(n)
                after = np.clip(before - rng.normal(0.002, deviation, n), 0, 1)
                rows.append(
                    (paired_bound(before, after).bound, paired_bound(before, after, bounds=None).bound),
                )
            seconds = (time.perf_counter() - start) / 5
            betting, student = 100 * np.mean(rows, axis=0)
            print(f"{n:>6} {deviation:>10} {betting:>9.3f} {student:>15.3f} {seconds:>9.2f}")


def table() -> None:
    rates = [(0.0, 0.0), (0.002, 0.001), (0.005, 0.005), (0.02, 0.018)]
    print("| budget |", " | ".join(f"{100 * h:g} % / {100 * g:g} %" for h, g in rates), "|")
    print("|---" * (len(rates) + 1) + "|")
    for budget in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05):
        needed = [examples_needed(budget, harmful_rate=h, helpful_rate=g) for h, g in rates]
        print(f"| {100 * budget:g} points |", " | ".join("none" if n is None else f"{n:,}" for n in needed), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the planner's table only")
    if parser.parse_args().table:
        table()
    else:
        compare()
        sizes()
        bounded()
