"""By which rule a node could run in integers, or why it cannot. What else it takes is placement's matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits.planning.site import GraphView, OpView
from fewbits.targets.base import OpRule, Target


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a node stays float.

    Args:
      slug: Short name of the rule.
      text: The rule in words.
    """

    slug: str
    text: str


def candidate(op: OpView, graph: GraphView, target: Target) -> OpRule | Reason:
    """Returns the rule by which a node could run in integers, or the reason why it cannot."""
    if op.domain not in ("", "ai.onnx"):
        return Reason(slug="custom-domain", text=f"operator of the domain {op.domain!r}, unknown to the target")
    if op.has_subgraph:
        return Reason(slug="subgraph", text="holds graphs of its own, which stay float")
    # Of two changing matrices neither can be kept from sums of pairs that saturate.
    paired = target.paired.get(op.op) if target.variant.pair_limit is None else None
    for special in (target.scaling.get(op.op), paired):
        if special is not None and all(condition.holds(op, graph) for condition in special.conditions):
            return special
    rule = target.rules.get(op.op)
    if rule is None:
        text = target.float_reasons.get(op.op, f"{target.name} has no integer kernel for {op.op}")
        return Reason(slug="no-integer-kernel", text=text)
    for condition in rule.conditions:
        if not condition.holds(op, graph):
            return Reason(slug=condition.slug, text=f"it would need that {condition.text}")
    return rule
