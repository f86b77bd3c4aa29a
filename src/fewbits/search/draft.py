"""The first plan: all that the target runs in integers, and the reason for each site."""

from __future__ import annotations

from dataclasses import replace

from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Decision, Plan
from fewbits.planning.site import Role, Site
from fewbits.targets import Placement, place, place_stored
from fewbits.targets.base import Target


def draft_plan(
    model: OnnxModel,
    target: Target,
    *,
    keep_float: tuple[str, ...] = (),
    activation_range: str = "mse",
    weight_range: str = "minmax",
    base: Plan | None = None,
) -> Plan:
    """Returns the plan in which the target runs all that it can in integers, but for the nodes kept float.

    Args:
      model: The model.
      target: The rules.
      keep_float: Nodes that stay float by choice.
      activation_range: Range rule of activations.
      weight_range: Range rule of weights.
      base: Where seed, hashes, versions and the size of the calibration part are taken from.
    """
    whole = place(model.view, target)
    placed = place(model.view, target, keep_float=keep_float) if keep_float else whole
    chosen = {p.site.name: p for p in placed.sites}
    decisions = []
    for p in whole.sites:
        site = p.site
        kept = chosen.get(site.name)
        rule = {Role.ACTIVATION: activation_range, Role.WEIGHT: weight_range, Role.CONSTANT: "minmax"}.get(site.role)
        rounder = None if site.role is Role.ACTIVATION else "nearest"
        decisions.append(
            Decision(
                site=site.name,
                role=site.role,
                op=site.op,
                node=site.node,
                scheme=None if kept is None else kept.scheme,
                range_rule=None if kept is None else rule,
                rounder=None if kept is None else rounder,
                reason=_float_reason(placed, site) if kept is None else kept.reason,
            )
        )
    empty = Plan(target=target.full_name, decisions=())
    return replace(
        base or empty,
        target=target.full_name,
        decisions=tuple(decisions),
        links=placed.links,
        transforms=model.steps,
    )


def draft_stored(model: OnnxModel, target: Target, *, base: Plan | None = None) -> Plan:
    """Returns the plan in which every weight that the target can hold in codes is held so, and all compute in float.

    Args:
      model: The model.
      target: The rules.
      base: Where seed, hashes and versions are taken from.
    """
    decisions = tuple(
        Decision(
            site=p.site.name,
            role=p.site.role,
            op=p.site.op,
            node=p.site.node,
            scheme=p.scheme,
            range_rule="minmax",
            rounder="nearest",
            reason=p.reason,
            stored=True,
        )
        for p in place_stored(model.view, target, target.variant.weight).sites
    )
    empty = Plan(target=target.full_name, decisions=())
    return replace(base or empty, target=target.full_name, decisions=decisions, links=(), transforms=model.steps)


def _float_reason(placed: Placement, site: Site) -> str:
    reason = placed.kept_float.get(site.node)
    return "no integer operator reads or writes it" if reason is None else reason.text
