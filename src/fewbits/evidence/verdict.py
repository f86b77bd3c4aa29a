"""The verdict: does the evidence put the loss inside the budget?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fewbits._base.errors import UsageError
from fewbits.evidence.paired import PairedBound
from fewbits.evidence.planner import examples_needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One decision about one budget, taken once, on examples that played no part in choosing the model.

    ``examples_needed`` is None where it has no meaning or no number would do; ``reason`` then says which.
    """

    status: Literal["met", "not met", "undecided"]
    budget: float
    bound: PairedBound
    examples_needed: int | None
    reason: str


def decide(bound: PairedBound, budget: float, *, power: float = 0.8) -> Verdict:
    """Returns "met", "not met" or "undecided" for a budget in the units of the bound.

    - met: the upper confidence bound of the loss is at most the budget. A wrong "met" has probability at most
      1 - confidence (where ``bound.exact``; else about that).
    - not met: the point estimate exceeds the budget. The bound is never below the point estimate, so if the rates seen
      are the true ones no number of further examples would bring it inside: the model has to change, not the sample.
    - undecided: the estimate is inside, the bound is not. ``examples_needed`` examples would be enough with probability
      ``power`` if the true rates are those observed (that is a guess: they are estimated from this sample).

    For 0/1 scores the number comes from the planner; for others from the margin's fall with 1 / sqrt(n).

    Raises: UsageError(slug="budget") if the budget is not a finite number.
    """
    if not math.isfinite(budget):
        raise UsageError(f"budget {budget!r} is not a finite number; use 1% or 0.01", slug="budget")
    if bound.bound <= budget:
        sure = f"{100 * bound.confidence:g} %"
        reason = f"with {sure} confidence the loss is at most {bound.bound:.4g}, inside the budget of {budget:.4g}"
        return Verdict(status="met", budget=budget, bound=bound, examples_needed=None, reason=reason)
    if bound.drop > budget:
        reason = f"the observed loss {bound.drop:.4g} exceeds the budget of {budget:.4g}; more examples would not help"
        return Verdict(status="not met", budget=budget, bound=bound, examples_needed=None, reason=reason)
    needed = _needed(bound, budget, power)
    if needed is None:
        reason = f"the observed loss {bound.drop:.4g} equals the budget: no number of examples at this rate decides"
    else:
        reason = (
            f"the observed loss {bound.drop:.4g} is inside the budget of {budget:.4g}, its bound {bound.bound:.4g} is "
            f"not; about {needed} examples would decide at the observed rates ({bound.n} were there)"
        )
    return Verdict(status="undecided", budget=budget, bound=bound, examples_needed=needed, reason=reason)


def _needed(bound: PairedBound, budget: float, power: float) -> int | None:
    """Returns how many examples would do at the observed rates, more than there are; None at the edge of the budget."""
    from scipy import special

    if bound.drop >= budget:
        return None
    flip_rates = bound.harmful / bound.n, bound.helpful / bound.n
    if bound.method == "exact-trinomial" and math.isclose(
        bound.drop, flip_rates[0] - flip_rates[1], rel_tol=1e-9, abs_tol=1e-12
    ):
        needed = examples_needed(budget, bound.confidence, *flip_rates, power)
    else:
        # The margin falls with 1 / sqrt(n); a future estimate must lie below the observed one with probability `power`.
        slack = 1.0 + float(special.ndtri(power)) / float(special.ndtri(bound.confidence))
        needed = math.ceil(bound.n * ((bound.bound - bound.drop) * max(slack, 1.0) / (budget - bound.drop)) ** 2)
    return None if needed is None else max(needed, bound.n + 1)
