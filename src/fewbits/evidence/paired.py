"""Bounds on the paired loss float - quantized: which method holds for which scores, and how surely."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits._base.errors import DataError, UsageError
from fewbits.evidence import asymptotic, betting, trinomial

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedBound:
    """What paired scores say about the mean loss float - quantized (a higher score is better).

    ``drop`` estimates the loss; with probability ``confidence`` the true loss is at most ``bound``, and with the same
    probability at least ``lower`` (two statements of one side each). ``exact``: holds at this n, else only in the limit
    of many examples. ``harmful`` and ``helpful`` count the examples whose score got worse and better.
    """

    drop: float
    bound: float
    lower: float
    method: str
    exact: bool
    n: int
    harmful: int
    helpful: int
    confidence: float


def check_confidence(confidence: float) -> float:
    """Returns alpha = 1 - confidence.

    Raises: UsageError(slug="confidence-range") unless 0.5 < confidence < 1.
    """
    if not 0.5 < confidence < 1.0:
        raise UsageError(
            f"confidence {confidence!r} is not between 0.5 and 1 (both excluded); use 0.95, or 95% on the command line",
            slug="confidence-range",
        )
    return 1.0 - confidence


def trinomial_bound(harmful: int, helpful: int, n: int, confidence: float = 0.95) -> PairedBound:
    """Returns the exact bound on p(harmful) - p(helpful) from counts of flips among n independent examples.

    With no flip at all the bound is 1 - (1 - confidence)^(1/n): 0.498 points at n = 600 and 95 %.

    >>> bound = trinomial_bound(0, 0, 600)
    >>> f"{bound.drop} {bound.bound:.5f} {bound.method}"
    '0.0 0.00498 exact-trinomial'

    Raises: DataError(slug="flip-counts") unless 0 <= harmful, helpful, harmful + helpful <= n and n >= 1;
      UsageError(slug="confidence-range").
    Source: trinomial.py, module docstring.
    """
    alpha = check_confidence(confidence)
    try:
        harmful, helpful, n = operator.index(harmful), operator.index(helpful), operator.index(n)
        fits = n >= 1 and harmful >= 0 and helpful >= 0 and harmful + helpful <= n
    except TypeError:
        fits = False
    if not fits:
        raise DataError(
            f"{harmful!r} harmful and {helpful!r} helpful flips among {n!r} examples are not counts of one paired "
            "comparison; expected integers >= 0 that add up to at most the number of examples",
            slug="flip-counts",
        )
    return PairedBound(
        drop=(harmful - helpful) / n,
        bound=trinomial.upper_limit(harmful, helpful, n, alpha),
        lower=-trinomial.upper_limit(helpful, harmful, n, alpha),
        method="exact-trinomial",
        exact=True,
        n=n,
        harmful=harmful,
        helpful=helpful,
        confidence=confidence,
    )


def paired_bound(
    float_scores: ArrayLike,
    quantized_scores: ArrayLike,
    *,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> PairedBound:
    """Returns the confidence bound on the mean loss float - quantized over paired examples.

    - Scores that are all at one of the two bounds (0/1), no groups: exact trinomial bound.
    - Other scores within bounds, or groups of one size (on group means): betting bound; valid at every n.
    - Groups of unequal size: betting bound on the mean over examples, given the sizes; valid for independent groups at
      every number of groups, and wider. What matters then is the number of groups, not of examples.
    - ``bounds=None``: Student's t (by group); holds in the limit of many only: ``exact=False``.

    Examples (with groups: groups) must be an independent sample of what the model will meet. Which row of the table
    applies must not be picked by its outcome.

    Args:
      float_scores, quantized_scores: [n], row i of both is example i; higher is better (negate losses).
      groups: [n] labels of any type; examples with equal labels may depend on one another (speaker, document, video).
      seed: Order in which the betting bound reads the examples; no other method uses it.
      bounds: (lowest, highest) possible score, known in advance and not from the data; None if there is none.
    Raises: DataError(slug="no-examples" | "score-shape" | "score-nonfinite" | "score-out-of-bounds" | "group-labels" |
      "too-few-groups"); UsageError(slug="confidence-range" | "score-bounds").
    Source: trinomial.py, betting.py, asymptotic.py.
    """
    alpha = check_confidence(confidence)
    before, after = _checked(float_scores, quantized_scores)
    loss = before - after
    sums, sizes = _by_group(loss, groups)
    if bounds is None:
        lower, upper = asymptotic.t_limits(sums, sizes, alpha)
        method = "asymptotic-t"
    else:
        low, high = _check_bounds(bounds, before, after)
        span = high - low
        two_valued = bool(np.all((before == low) | (before == high)) and np.all((after == low) | (after == high)))
        if two_valued and sums.size == loss.size:
            harmful, helpful = int((loss > 0).sum()), int((loss < 0).sum())
            upper = span * trinomial.upper_limit(harmful, helpful, loss.size, alpha)
            lower = -span * trinomial.upper_limit(helpful, harmful, loss.size, alpha)
            method = "exact-trinomial"
        elif sizes.min() == sizes.max():
            means = sums / sizes
            upper = betting.hedged_upper_limit(means, span, alpha, seed)
            lower = -betting.hedged_upper_limit(-means, span, alpha, seed)
            method = "betting"
        else:
            upper = betting.mixture_upper_limit(sums, sizes, span, alpha)
            lower = -betting.mixture_upper_limit(-sums, sizes, span, alpha)
            method = "betting-mixture"
    return PairedBound(
        drop=float(loss.mean()),
        bound=upper,
        lower=lower,
        method=method if sums.size == loss.size else f"{method}-by-group",
        exact=bounds is not None,
        n=loss.size,
        harmful=int((loss > 0).sum()),
        helpful=int((loss < 0).sum()),
        confidence=confidence,
    )


def relative_bound(
    float_scores: ArrayLike,
    quantized_scores: ArrayLike,
    *,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> PairedBound:
    """Returns the bound on the loss relative to the float mean: mean(float - quantized) / |mean(float)|; asymptotic.

    For losses and errors (lower is better) pass them negated: a mean error of 2.0 that grows to 2.1 is a loss of 0.05.

    Args:
      float_scores, quantized_scores, groups: As for ``paired_bound``.
    Raises: As ``paired_bound``, and DataError(slug="relative-base") if the float mean cannot be told from 0.
    Source: asymptotic.fieller_limits.
    """
    alpha = check_confidence(confidence)
    before, after = _checked(float_scores, quantized_scores)
    loss = before - after
    sums, _ = _by_group(loss, groups)
    base, _ = _by_group(before, groups)
    lower, upper = asymptotic.fieller_limits(sums, base, alpha)
    return PairedBound(
        drop=float(loss.sum() / abs(before.sum())),
        bound=upper,
        lower=lower,
        method="asymptotic-fieller" if sums.size == loss.size else "asymptotic-fieller-by-group",
        exact=False,
        n=loss.size,
        harmful=int((loss > 0).sum()),
        helpful=int((loss < 0).sum()),
        confidence=confidence,
    )


def _checked(float_scores: ArrayLike, quantized_scores: ArrayLike) -> tuple[Floats, Floats]:
    """Returns both score arrays as float64 [n], or refuses them."""
    named: dict[str, Floats] = {}
    for name, scores in (("float", float_scores), ("quantized", quantized_scores)):
        try:
            array = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"the {name} scores are not numbers; expected one number per example", slug="score-shape"
            ) from None
        if array.ndim != 1:
            raise DataError(
                f"the {name} scores have shape {list(array.shape)}; expected one number per example, shape [n]",
                slug="score-shape",
            )
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            raise DataError(
                f"the {name} score of example {bad[0]} is {array[bad[0]]} ({bad.size} such of {array.size}); a loss "
                "cannot be taken from it: mend the metric or leave these examples out of both models' scores",
                slug="score-nonfinite",
            )
        named[name] = array
    before, after = named["float"], named["quantized"]
    if before.size != after.size:
        raise DataError(
            f"got {before.size} float and {after.size} quantized scores; a paired loss needs the same examples, in the "
            "same order, for both",
            slug="score-shape",
        )
    if before.size == 0:
        raise DataError("got no scores; a bound needs at least one example", slug="no-examples")
    return before, after


def _check_bounds(bounds: tuple[float, float], before: Floats, after: Floats) -> tuple[float, float]:
    low, high = float(bounds[0]), float(bounds[1])
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(
            f"score bounds {bounds!r} are not a finite (lowest, highest) pair; use (0, 1), or None if there is none",
            slug="score-bounds",
        )
    for name, scores in (("float", before), ("quantized", after)):
        outside = np.flatnonzero((scores < low) | (scores > high))
        if outside.size:
            raise DataError(
                f"the {name} score of example {outside[0]} is {scores[outside[0]]}, outside the metric's bounds "
                f"[{low}, {high}]; declare the bounds that the metric has, or None if it has none",
                slug="score-out-of-bounds",
            )
    return low, high


def _by_group(values: Floats, groups: ArrayLike | None) -> tuple[Floats, Floats]:
    """Returns the sum and the number of the values of each group, in the order in which the groups first appear."""
    if groups is None:
        return values, np.ones(values.size)
    labels: NDArray[Any] = np.asarray(groups)
    if labels.shape != values.shape:
        raise DataError(
            f"groups have shape {list(labels.shape)} for {values.size} scores; expected one label per example",
            slug="group-labels",
        )
    if labels.dtype.kind == "f" and bool(np.isnan(labels).any()):
        raise DataError(
            f"the group label of example {int(np.flatnonzero(np.isnan(labels))[0])} is NaN; every example needs one",
            slug="group-labels",
        )
    _, first, index = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.intp)
    rank[np.argsort(first)] = np.arange(first.size)
    index = rank[index.reshape(-1)]
    sums: Floats = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)
