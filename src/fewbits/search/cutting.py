"""Ranges of tensors that only a LeakyRelu reads: how far their negative end is cut, by what the model answers.

A convolution and the LeakyRelu behind it are two integer operators, and the tensor between them has one step for both
sides, although errors of the negative side come out a tenth as large.  The cut with the least squared error behind the
LeakyRelu is not the one that keeps answers closest to float: what is clipped is large and rare.  So the sites are
gone through in graph order, and each gets the cut with which examples come closest to float, all others as they are.

Steps of weights and biases do not depend on these ranges. What layers learn, they learn without cuts, and keep: learned
anew, codes change too, and the same three cuts left Tiny Darknet at 38.5 millinats (31.2 so, 39.4 without cuts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fewbits.calibration.statistics import Statistics
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role

RULE = "mse-low"
# The range rule whose negative end is cut.
_WHOLE = "mse"
# Parts of the negative end that are tried; a quarter was never the best of a site of Tiny Darknet.
SHARES = (0.7, 0.5, 0.35)
# What a cut must bring, as a part of the distance before: single sites move it by a few percent by luck.
_CLOSER = 0.98
# Readers that shrink what is negative.
_SHRINKING = ("LeakyRelu",)
# Each site is some runs of the model.
_MOST_SITES = 24
# Examples that cuts are compared on.
MOST_EXAMPLES = 128


def cuttable(model: OnnxModel, plan: Plan, statistics: Statistics) -> tuple[str, ...]:
    """Returns the sites whose negative end may be cut, in graph order: those where it takes the most codes.

    Only those with a range of their own by least error, and with both signs.
    """
    members = {link.member for link in plan.links} | {link.root for link in plan.links}
    found: dict[str, float] = {}
    for decision in plan.quantized:
        name = decision.site
        if name in model.view.outputs:
            continue
        if decision.role is not Role.ACTIVATION or decision.range_rule != _WHOLE or name in members:
            continue
        readers, seen = model.view.consumers.get(name, ()), statistics.histograms.get(name)
        if decision.scheme is None or decision.scheme.symmetric or seen is None:
            continue
        if readers and all(op.op in _SHRINKING for op in readers) and seen.low < 0 < seen.high:
            found[name] = seen.low / (seen.low - seen.high)
    most = set(sorted(found, key=lambda name: -found[name])[:_MOST_SITES])
    return tuple(name for name in found if name in most)


def cut(plan: Plan, sites: tuple[str, ...], distance: Callable[[Plan], float]) -> Plan:
    """Returns the plan with the cuts that bring examples closest to float; the same plan where none does.

    Args:
      plan: The plan.
      sites: Those of ``cuttable``.
      distance: Of the answers of a plan's file to float.
    """
    best = plan
    least = distance(plan) if sites else 0.0
    for site in sites:
        start, before = best, least
        for share in SHARES:
            tried = _with_rule(start, site, f"{RULE}:{share:g}")
            found = distance(tried)
            if found < min(_CLOSER * before, least):
                best, least = tried, found
    return best


def uncut(plan: Plan) -> Plan:
    """Returns the plan as it was before ranges were cut."""
    decisions = tuple(
        replace(d, range_rule=_WHOLE) if (d.range_rule or "").startswith(f"{RULE}:") else d for d in plan.decisions
    )
    return replace(plan, decisions=decisions)


def _with_rule(plan: Plan, site: str, rule: str) -> Plan:
    decisions = tuple(replace(d, range_rule=rule) if d.site == site else d for d in plan.decisions)
    return replace(plan, decisions=decisions)
