"""Which nodes may quantize their inputs as they come, by the range of each run, and which tables are rows of codes.

Beside what runs in integers with fixed ranges, these are the other two forms that a node of one plan may have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import final

from fewbits.numerics.granularity import PerChannel, PerTensor
from fewbits.numerics.scheme import Scheme
from fewbits.planning.site import GraphView, OpView, Role, Site
from fewbits.targets._candidates import Reason, candidate
from fewbits.targets._placement import PlacedSite, Placement, place
from fewbits.targets._stored import storable, stored_rule
from fewbits.targets.base import DynamicRule, Target

# A table of fewer elements is not worth the three small operators that pick and scale its rows.
_LEAST_TABLE = 16_384
_FIXED_RANGES = "its inputs could be quantized with fixed ranges only, and none are asked for"
_ROWS = "rows of codes with a scale each, dequantized as they are picked"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """Which nodes have another form than the first: integers with fixed ranges, tables as rows of codes.

    Args:
      keep_float: Nodes that stay float although they need not; a table does by the first node that picks its rows.
      dynamic: Nodes that quantize their inputs as they come, besides those that run in integers in no other way.
      coarse: Of these, the nodes whose weights have one scale each: less exact, and faster in some kernels.
      paired: Nodes that multiply two changing matrices in integers.
    """

    keep_float: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    coarse: tuple[str, ...] = ()
    paired: tuple[str, ...] = ()

    def without(self, nodes: Iterable[str]) -> Forms:
        """Returns the same with more nodes in float."""
        return replace(self, keep_float=tuple(dict.fromkeys((*self.keep_float, *nodes))))


FIRST_FORMS = Forms()


def place_forms(graph: GraphView, target: Target, forms: Forms = FIRST_FORMS) -> Placement:
    """Returns where the target wants Q/DQ, which nodes quantize their inputs as they come, and which tables are codes.

    Args:
      graph: The model, passes done.
      target: The rules.
      forms: Of the nodes; those that the target cannot run so have the first form.
    """
    floats = set(forms.keep_float)
    nodes = with_all_readers(graph, target, ({*forms.dynamic} | only_dynamic(graph, target)) - floats)
    static = place(graph, target, keep_float=floats | nodes, paired=forms.paired)
    sites = (*static.sites, *dynamic_sites(graph, target, nodes, forms.coarse))
    taken = {placed.site.name for placed in sites}
    tables = tuple(p for p in row_sites(graph, target) if p.site.name not in taken and p.site.node not in floats)
    return replace(
        static,
        sites=(*sites, *tables),
        kept_float={name: reason for name, reason in static.kept_float.items() if name not in nodes},
        dynamic=tuple(op.name for op in graph.ops if op.name in nodes),
    )


def only_dynamic(graph: GraphView, target: Target) -> set[str]:
    """Returns the nodes that run in integers with inputs quantized as they come, and in no other way."""
    able = may_be_dynamic(graph, target) if target.dynamic else ()
    return {name for name in able if isinstance(candidate(graph.by_name[name], graph, target), Reason)}


def place_dynamic(graph: GraphView, target: Target) -> Placement:
    """Returns where nothing needs calibration: products whose inputs are quantized as they come, tables as codes."""
    forms = forms_without_ranges(graph, target)
    placed, others = place_forms(graph, target, forms), set(forms.keep_float)
    fixed = Reason(slug="kept-by-choice", text=_FIXED_RANGES)
    return replace(placed, kept_float={n: fixed if n in others else r for n, r in placed.kept_float.items()})


def forms_without_ranges(graph: GraphView, target: Target) -> Forms:
    """Returns the forms in which no range is fixed ahead: what could have no other stays float."""
    dynamic = may_be_dynamic(graph, target)
    return Forms(keep_float=tuple(sorted(set(place(graph, target).integer) - set(dynamic))), dynamic=dynamic)


def row_sites(graph: GraphView, target: Target) -> Iterator[PlacedSite]:
    """Yields the large tables of which nothing but whole rows is read."""
    seen = set[str]()
    for op in graph.ops:
        rule = stored_rule(op, target) if op.op == "Gather" else None
        name = op.inputs[0] if rule is not None else ""
        if rule is None or name in seen or not storable(name, graph) or graph.tensors[name].elements < _LEAST_TABLE:
            continue
        seen.add(name)
        if all(
            r.op == "Gather" and name == r.inputs[0] and not r.attributes.get("axis") for r in graph.consumers[name]
        ):
            scheme = Scheme(format=target.variant.weight, granularity=PerChannel(rule.axis(op)), symmetric=True)
            site = Site(name=name, role=Role.WEIGHT, op=op.op, node=op.name, shape=graph.tensors[name].shape or ())
            yield PlacedSite(site=site, scheme=scheme, reason=_ROWS, stored=True)


def dynamic_rule(op: OpView, graph: GraphView, target: Target) -> DynamicRule | Reason:
    """Returns the rule by which a node could quantize its inputs as they come, or the reason why it cannot."""
    rule = target.dynamic.get(op.op) if op.domain in ("", "ai.onnx") else None
    if rule is None:
        text = f"{target.name} has no kernel for {op.label} that quantizes its inputs as they come"
        return Reason(slug="no-dynamic-kernel", text=text)
    for condition in rule.conditions:
        if not condition.holds(op, graph):
            return Reason(slug=condition.slug, text=f"it would need that {condition.text}")
    return rule


def may_be_dynamic(graph: GraphView, target: Target) -> tuple[str, ...]:
    """Returns the names of all nodes that could quantize their inputs as they come, in graph order.

    A weight is laid out for one kind of kernel: whoever else reads it must be able to do so too.
    """
    able = _agreeing(
        graph, target, {op.name for op in graph.ops if isinstance(dynamic_rule(op, graph, target), DynamicRule)}
    )
    return tuple(op.name for op in graph.ops if op.name in able)


def _agreeing(graph: GraphView, target: Target, nodes: set[str]) -> set[str]:
    """Returns the nodes without those whose weight is read by one that is not among them."""
    left = nodes
    while True:
        able = {name for name in left if _all_able(graph.by_name[name], graph, target, left)}
        if able == left:
            return left
        left = able


def _all_able(op: OpView, graph: GraphView, target: Target, able: set[str]) -> bool:
    weights = target.dynamic[op.op].weight_inputs(op)
    readers = {reader.name for name in weights for reader in graph.consumers[name]}
    return readers <= able and not set(weights) & set(graph.outputs)


def dynamic_nodes(graph: GraphView, target: Target, sites: Iterable[str]) -> tuple[str, ...]:
    """Returns the nodes that quantize their inputs as they come when just these weights are in codes for it."""
    have = set(sites)
    found = []
    for op in graph.ops:
        rule = dynamic_rule(op, graph, target) if op.op in target.dynamic and have.intersection(op.inputs) else None
        if isinstance(rule, DynamicRule) and have.issuperset(rule.weight_inputs(op)):
            found.append(op.name)
    return tuple(found)


def with_all_readers(graph: GraphView, target: Target, asked: Iterable[str]) -> set[str]:
    """Returns the nodes asked for, without those whose weight a node reads that is not asked for."""
    return _agreeing(graph, target, set(asked) & set(may_be_dynamic(graph, target)))


def dynamic_sites(
    graph: GraphView, target: Target, nodes: Iterable[str], coarse: Iterable[str]
) -> Iterator[PlacedSite]:
    """Yields the weights of nodes that quantize their inputs as they come, each once, in graph order."""
    wanted, seen, whole = set(nodes), set[str](), set(coarse)
    for op in graph.ops:
        if op.name not in wanted:
            continue
        rule = target.dynamic[op.op]
        for name in rule.weight_inputs(op):
            if name not in seen:
                seen.add(name)
                yield PlacedSite(
                    site=Site(
                        name=name, role=Role.WEIGHT, op=op.op, node=op.name, shape=graph.tensors[name].shape or ()
                    ),
                    scheme=dynamic_scheme(op, target, coarse=op.name in whole),
                    reason=f"runs as {rule.runs_as}: its input is quantized as it comes",
                    dynamic=True,
                )


def dynamic_scheme(op: OpView, target: Target, *, coarse: bool = False) -> Scheme:
    """Returns how the weights of a node are held that quantizes its inputs as they come."""
    granularity = PerTensor() if coarse else PerChannel(target.dynamic[op.op].axis(op))
    return Scheme(format=target.dynamic_weight, granularity=granularity, symmetric=True)


def may_be_coarse(graph: GraphView, target: Target, nodes: Iterable[str]) -> tuple[str, ...]:
    """Returns those of some nodes whose kernel is faster where a weight has one scale."""
    wanted = set(nodes) | only_dynamic(graph, target)
    return tuple(op.name for op in graph.ops if op.name in wanted and target.dynamic[op.op].coarse)
