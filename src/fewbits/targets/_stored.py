"""Which weights may be stored in codes while the model goes on computing in its own numbers."""

from __future__ import annotations

from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel
from fewbits.numerics.scheme import Scheme
from fewbits.planning.site import GraphView, OpView, Role, Site
from fewbits.targets._placement import PlacedSite, Placement, Reason
from fewbits.targets.base import StoredRule, Target

# A weight of fewer elements is not worth its scales and its DequantizeLinear: about 250 bytes of file.
_LEAST_ELEMENTS = 256
_STORED = "its weight is stored in 8 bits and dequantized before use, as asked: it computes in float"


def place_stored(graph: GraphView, target: Target, weight: Int) -> Placement:
    """Returns which weights the target may hold in codes; no node is placed to run in integers.

    Args:
      graph: The model.
      target: The rules.
      weight: Format of the codes.
    """
    sites: list[PlacedSite] = []
    reasons: dict[str, Reason] = {}
    seen: set[str] = set()
    for op in graph.ops:
        rule = stored_rule(op, target)
        found = () if rule is None else tuple(name for name in _weights(op, rule) if storable(name, graph))
        if rule is None or not found:
            reasons[op.name] = Reason(slug="weights-only", text="only weights are quantized, as asked, and it has none")
            continue
        reasons[op.name] = Reason(slug="weights-only", text=_STORED)
        for name in found:
            if name in seen or not all(
                _agrees(reader, name, rule.axis(op), target) for reader in graph.consumers[name]
            ):
                continue
            seen.add(name)
            site = Site(name=name, role=Role.WEIGHT, op=op.op, node=op.name, shape=graph.tensors[name].shape or ())
            scheme = Scheme(format=weight, granularity=PerChannel(rule.axis(op)), symmetric=True)
            sites.append(PlacedSite(site=site, scheme=scheme, reason=rule.runs_as))
    return Placement(sites=tuple(sites), links=(), integer=(), absorbed={}, moved=(), kept_float=reasons)


def stored_rule(op: OpView, target: Target) -> StoredRule | None:
    """Returns the rule by which an operator's weights may be stored in codes, None without one."""
    return target.stored.get(op.op) if op.domain in ("", "ai.onnx") else None


def _weights(op: OpView, rule: StoredRule) -> tuple[str, ...]:
    return tuple(op.inputs[i] for i in rule.weights if i < len(op.inputs) and op.inputs[i])


def storable(name: str, graph: GraphView) -> bool:
    """Returns whether a tensor is a fixed float32 matrix, or more, of a size that is worth it."""
    tensor = graph.tensors[name]
    return (
        tensor.constant
        and tensor.dtype == "float32"
        and len(tensor.shape or ()) >= 2
        and tensor.elements >= _LEAST_ELEMENTS
        and name not in graph.outputs
    )


def _agrees(reader: OpView, name: str, axis: int, target: Target) -> bool:
    """Returns whether a reader can do with the scales along this axis: all can but those that read the codes."""
    rule = stored_rule(reader, target)
    gathers = reader.op == "Gather" and rule is not None and name == reader.inputs[0]
    return axis == 0 and not reader.attributes.get("axis", 0) if gathers else True
