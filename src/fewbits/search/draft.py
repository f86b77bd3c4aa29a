"""The first plan: all that the target runs in integers, and the reason for each site."""

from __future__ import annotations

import re
from dataclasses import replace

from fewbits._base.errors import TargetError
from fewbits.algorithms.block_weights import range_without_data
from fewbits.algorithms.half_weights import beyond_half, lost_in_half
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.scheme import Scheme
from fewbits.planning.plan import Decision, Plan
from fewbits.planning.site import Role, Site
from fewbits.planning.slopes import slope_behind
from fewbits.targets import FIRST_FORMS, Forms, PlacedSite, Placement, forms_without_ranges, place_forms, place_stored
from fewbits.targets.base import Target

# The range rule that knows of slopes.
_MSE = "mse"
# A shorthand that says how many elements share a scale.
_SIZED = re.compile(r"-g\d+")


def draft_plan(
    model: OnnxModel,
    target: Target,
    *,
    forms: Forms = FIRST_FORMS,
    activation_range: str = _MSE,
    weight_range: str | None = None,
    base: Plan | None = None,
) -> Plan:
    """Returns the plan in which the target runs all that it can in integers, each node in its form.

    Args:
      model: The model.
      target: The rules.
      forms: Which nodes stay float, or quantize their inputs as they come.
      activation_range: Range rule of activations; "mse" looks behind a LeakyRelu that alone reads a site.
      weight_range: Range rule of weights; by default all of the range for 8 bits, and the least error for fewer.
      base: Where seed, hashes, versions and the size of the calibration part are taken from.
    """
    if weight_range is None:
        weight_range = "minmax" if target.variant.weight.bits >= 8 else _MSE
    placed = place_forms(model.view, target, forms)
    chosen = {p.site.name: p for p in placed.sites}
    decisions = []
    # All that could be quantized, in whatever form, has a line: it may be asked for there.
    whole = {p.site.name: p for p in (*place_forms(model.view, target).sites, *placed.sites)}
    for p in whole.values():
        site = p.site
        kept = chosen.get(site.name)
        rule = {Role.ACTIVATION: activation_range, Role.WEIGHT: weight_range, Role.CONSTANT: "minmax"}.get(site.role)
        if kept is not None and kept.stored:
            rule = "minmax"
        if rule == _MSE and (slope := slope_behind(site.name, model.view)) is not None:
            rule = f"{_MSE}:{slope:g}"
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
                stored=kept is not None and kept.stored,
                dynamic=kept is not None and kept.dynamic,
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


def draft_dynamic(model: OnnxModel, target: Target, *, base: Plan | None = None) -> Plan:
    """Returns the plan of nothing but products that quantize their inputs as they come, and tables of codes."""
    return draft_plan(model, target, forms=forms_without_ranges(model.view, target), base=base)


def draft_stored(
    model: OnnxModel,
    target: Target,
    wanted: Scheme | None = None,
    *,
    asked: str | None = None,
    base: Plan | None = None,
) -> Plan:
    """Returns the plan in which every weight that the target can hold in codes is held so, and all compute in float.

    Args:
      model: The model.
      target: The rules.
      wanted: How weights are stored where their operators can; None for a scale a channel.
      asked: The shorthand that asked for it.
      base: Where seed, hashes and versions are taken from.
    Raises: TargetError(slug="half-out-of-range") where a 16-bit float is wanted that holds no weight of the model.
    """

    def reason(placed: PlacedSite) -> str:
        blocks = placed.scheme.granularity
        if not isinstance(blocks, PerGroup) or asked is None or _SIZED.search(asked):
            return placed.reason
        return f"{placed.reason}; blocks of {blocks.size}, since {asked} names no size"

    decisions = tuple(
        Decision(
            site=p.site.name,
            role=p.site.role,
            op=p.site.op,
            node=p.site.node,
            scheme=p.scheme,
            range_rule=_stored_range(p, target),
            rounder="nearest",
            reason=reason(p),
            stored=True,
        )
        for p in place_stored(model.view, target, wanted).sites
    )
    if wanted is not None and not wanted.scaled:
        decisions = _that_bear_it(decisions, model, wanted)
    empty = Plan(target=target.full_name, decisions=())
    return replace(base or empty, target=target.full_name, decisions=decisions, links=(), transforms=model.steps)


def _that_bear_it(decisions: tuple[Decision, ...], model: OnnxModel, wanted: Scheme) -> tuple[Decision, ...]:
    """Returns the decisions, float where a 16-bit format would overflow, or lose more than bf16 does."""
    fmt, found = wanted.format, []
    for decision in decisions:
        fault = beyond_half(model.slabs(decision.site), fmt) or lost_in_half(model.slabs(decision.site), fmt)
        kept = replace(decision, scheme=None, rounder=None, stored=False, reason=f"float32, not {fmt.name}: {fault}")
        found.append(decision if fault is None else kept)
    if found and all(decision.is_float for decision in found):
        fault = found[0].reason.partition(": ")[2]
        raise TargetError(
            f"{fmt.name} holds no weight of {model.name}: {found[0].site!r}: {fault}; the nearest scheme is "
            f"{'bf16' if fmt.name == 'fp16' else 'w8a16'!r}",
            slug="half-out-of-range",
        )
    return tuple(found)


def _stored_range(placed: PlacedSite, target: Target) -> str | None:
    if not placed.scheme.scaled:
        return None
    blocks = target.stored[placed.site.op].blocks
    if blocks is None or not isinstance(placed.scheme.granularity, PerGroup):
        return "minmax"
    return range_without_data(placed.scheme, multiplied=blocks.multiplies is not None)


def _float_reason(placed: Placement, site: Site) -> str:
    reason = placed.kept_float.get(site.node)
    if site.node in placed.dynamic:
        return "its node quantizes its input as it comes, and gives float"
    return "no integer operator reads or writes it" if reason is None else reason.text
